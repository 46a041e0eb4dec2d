"""Which GPUs the cluster has, and how they may be shared; read from configs/placement.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve.config import Config

UNITS = 10_000
"""A whole GPU. Ray keeps fractions to four decimals."""


class Gpus(Config):
    """GPUs of one kind in a node."""

    name: str = Field(min_length=1)
    """As `nvidia-smi` calls it: a version may run only on kinds that it was measured on."""
    gib: PositiveFloat
    """Memory of each, as `nvidia-smi` says."""
    count: PositiveInt = 1


class Node(Config):
    """One machine, or several alike."""

    name: str = Field(min_length=1)
    count: PositiveInt = 1
    """Above 1 they are called name-0, name-1 and so on."""
    gpus: tuple[Gpus, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of the inventory."""

    id: str
    """`node/0`."""
    node: str
    kind: str
    gib: float


class Placement(Config):
    """The inventory, and what the planner may do with it."""

    nodes: tuple[Node, ...] = Field(min_length=1)
    reserve: NonNegativeFloat = Field(default=0.05, lt=1.0)
    """Part of each GPU that no replica is given: for what others leave behind, and for driver."""
    reserve_gib: NonNegativeFloat = 0.0
    """The same in GiB; the larger of the two counts."""
    whole_gpu_above: PositiveFloat = Field(default=0.5, le=1.0)
    """A version that needs more than this part of a GPU gets all of it: what is left beside it
    would hold little, and would slow the slowest version down."""
    max_replicas_per_gpu: PositiveInt | None = None
    """However small they are: replicas on one GPU take turns computing."""
    replicas: Literal["max", "min"] = "max"
    """What is planned for: every deployment at its max_replicas, so that autoscaling never waits
    for a GPU that is not there; or at its min_replicas, what must run at all times."""
    wanted: Mapping[str, PositiveInt] = Field(default_factory=dict)
    """Replicas of single deployments in place of that, by version or by name of shared replicas."""

    @model_validator(mode="after")
    def _node_names_are_unique(self) -> Self:
        names = [name for node in self.nodes for name in _node_names(node)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two nodes have the same name: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _a_kind_has_one_size(self) -> Self:
        sizes: dict[str, float] = {}
        for gpus in (gpus for node in self.nodes for gpus in node.gpus):
            if sizes.setdefault(gpus.name, gpus.gib) != gpus.gib:
                raise ValueError(
                    f"{gpus.name} has {sizes[gpus.name]} GiB in one place and {gpus.gib} in another"
                )
        return self

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU, in the file's order."""
        return tuple(
            Gpu(id=f"{name}/{index}", node=name, kind=kind, gib=gib)
            for node in self.nodes
            for name in _node_names(node)
            for index, (kind, gib) in enumerate(
                (gpus.name, gpus.gib) for gpus in node.gpus for _ in range(gpus.count)
            )
        )

    @property
    def kinds(self) -> Mapping[str, float]:
        """GiB by kind of GPU, smallest first."""
        sizes = {gpus.name: gpus.gib for node in self.nodes for gpus in node.gpus}
        return dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))

    def reserve_gib_of(self, gib: float) -> float:
        """What is kept free of a GPU of that size."""
        return max(self.reserve * gib, self.reserve_gib)

    def usable_units(self, gib: float) -> int:
        """What replicas may share of a GPU of that size."""
        return max(0, int(UNITS * (1 - self.reserve_gib_of(gib) / gib) + 1e-6))


def _node_names(node: Node) -> tuple[str, ...]:
    if node.count == 1:
        return (node.name,)
    return tuple(f"{node.name}-{index}" for index in range(node.count))
