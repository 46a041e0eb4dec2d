"""A packing plan as a file: to be read by people, by other programs, and by the next plan."""

from pathlib import Path

import yaml
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from deployments.packing.placement import UNITS, Gpu
from deployments.packing.planner import PackingPlan, PlannedGpu, Share
from serve.config import Config, VersionId, load_yaml


class ShareLine(Config):
    """One replica on a GPU."""

    name: str
    replica: NonNegativeInt
    num_gpus: PositiveFloat
    gib: PositiveFloat
    batch: PositiveInt = 1
    versions: tuple[VersionId, ...] = ()


class GpuLine(Config):
    """One GPU of the inventory."""

    id: str
    node: str
    kind: str
    gib: PositiveFloat
    reserve_gib: float
    replicas: tuple[ShareLine, ...] = ()


class PlanFile(Config):
    """Every GPU, those left empty too."""

    lower_bound: NonNegativeInt
    gpus: tuple[GpuLine, ...]


def write_plan(path: Path, plan: PackingPlan) -> None:
    """Write the plan as YAML."""
    gpus = tuple(
        GpuLine(
            id=planned.gpu.id,
            node=planned.gpu.node,
            kind=planned.gpu.kind,
            gib=planned.gpu.gib,
            reserve_gib=round(planned.reserve_gib, 4),
            replicas=tuple(_line(share) for share in planned.shares),
        )
        for planned in plan.gpus
    )
    file = PlanFile(lower_bound=plan.lower_bound, gpus=gpus)
    text = yaml.safe_dump(
        file.model_dump(mode="json", exclude_defaults=True),
        sort_keys=False,
        default_flow_style=None,
        width=120,
    )
    path.write_text(f"# Made by `sm4ll plan`.\n{text}", encoding="utf-8")


def _line(share: Share) -> ShareLine:
    return ShareLine(
        name=share.name,
        replica=share.replica,
        num_gpus=share.num_gpus,
        gib=round(share.gib, 4),
        batch=share.batch,
        versions=share.versions,
    )


def read_plan(path: Path) -> PackingPlan:
    """Read what `write_plan` wrote.

    Raises:
        ConfigError: not a plan.
    """
    file = load_yaml(path, PlanFile)
    gpus = tuple(
        PlannedGpu(
            Gpu(line.id, line.node, line.kind, line.gib),
            line.reserve_gib,
            tuple(_share(share) for share in line.replicas),
        )
        for line in file.gpus
    )
    return PackingPlan(gpus, file.lower_bound)


def _share(line: ShareLine) -> Share:
    units = round(line.num_gpus * UNITS)
    return Share(line.name, line.versions, line.replica, units, line.gib, line.batch)
