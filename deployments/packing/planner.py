"""Footprints x GPUs x wanted replicas -> which replica on which GPU with which share, or a refusal.

Pure: the same demands, placement and previous plan give the same plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deployments.packing.bins.bounds import lower_bound
from deployments.packing.bins.solve import pack_bins
from deployments.packing.board import Board
from deployments.packing.demand import Demand
from deployments.packing.division import divide_by_kind
from deployments.packing.placement import UNITS, Gpu, Placement
from serve.config import FamilyConfig, VersionId
from serve.errors import PackingImpossible

MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class Share:
    """One replica on one GPU."""

    name: str
    """Of the deployment: the version, or the name of the shared replicas."""
    versions: tuple[VersionId, ...]
    replica: int
    units: int
    """In 1/10,000 of the GPU."""
    gib: float
    """What was measured."""
    batch: int

    @property
    def num_gpus(self) -> float:
        """Ray's fraction, and the part of the memory that the replica may hold."""
        return self.units / UNITS


@dataclass(frozen=True, slots=True)
class PlannedGpu:
    """One GPU of the inventory, maybe empty."""

    gpu: Gpu
    reserve_gib: float
    shares: tuple[Share, ...]

    @property
    def num_gpus(self) -> float:
        return sum(share.units for share in self.shares) / UNITS

    @property
    def used_gib(self) -> float:
        """What was measured of the replicas on it."""
        return sum(share.gib for share in self.shares)

    @property
    def free_gib(self) -> float:
        """What another replica could be given."""
        return max(0.0, self.gpu.gib * (1 - self.num_gpus) - self.reserve_gib)


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """Where every replica goes."""

    gpus: tuple[PlannedGpu, ...]
    lower_bound: int
    """No plan uses fewer GPUs."""
    num_kept: int = 0
    """Replicas that lie where the previous plan had them."""

    @property
    def used(self) -> tuple[PlannedGpu, ...]:
        return tuple(planned for planned in self.gpus if planned.shares)

    @property
    def num_replicas(self) -> int:
        return sum(len(planned.shares) for planned in self.gpus)

    @property
    def num_gpus_by_name(self) -> Mapping[str, float]:
        """What `resources.num_gpus` of each deployment has to be."""
        return {share.name: share.num_gpus for planned in self.gpus for share in planned.shares}

    @property
    def kinds_by_name(self) -> Mapping[str, tuple[str, ...]]:
        """Kinds of GPU that each deployment lies on."""
        kinds: dict[str, dict[str, None]] = {}
        for planned in self.gpus:
            for share in planned.shares:
                kinds.setdefault(share.name, {})[planned.gpu.kind] = None
        return {name: tuple(seen) for name, seen in kinds.items()}


def plan_packing(
    demands: Sequence[Demand], placement: Placement, previous: PackingPlan | None = None
) -> PackingPlan:
    """Find a place for every replica on as few GPUs as can be.

    Replicas of one deployment are spread over nodes, and over the GPUs of a node, as far as that
    needs no further GPU. With a previous plan, every replica that still fits where it was stays
    there, which may use more GPUs than a plan from nothing; only where the rest then has no room
    is all planned anew.

    Raises:
        PackingImpossible: says which deployments do not fit, by how much, and what helps.
    """
    board = Board(demands, placement)
    bound = _lower_bound(board)
    if previous is not None:
        _keep(board, previous)
    if previous is None or not _fill_gaps(board):
        board.clear()
        bound = max(bound, _pack_anew(board))
        if not _fill_gaps(board):
            raise _does_not_fit(board, placement)
    board.spread()
    return _plan(board, placement, previous, bound)


def with_planned_resources(family: FamilyConfig, plan: PackingPlan) -> FamilyConfig:
    """The family with every deployment's `num_gpus` as planned."""
    shares = plan.num_gpus_by_name
    experts = tuple(
        deployed.model_copy(
            update={"resources": deployed.resources.model_copy(update={"num_gpus": share})}
        )
        if (share := shares.get(deployed.version)) is not None and deployed.shared is None
        else deployed
        for deployed in family.experts
    )
    shared = tuple(
        replicas.model_copy(
            update={"resources": replicas.resources.model_copy(update={"num_gpus": share})}
        )
        if (share := shares.get(replicas.name)) is not None
        else replicas
        for replicas in family.shared
    )
    return family.model_copy(update={"experts": experts, "shared": shared})


def _keep(board: Board, previous: PackingPlan) -> None:
    """Put back what is still wanted, and still fits, where it was."""
    stays = list(_stays(board, previous))
    # All replicas of a deployment get the same share: the largest that one of them needs.
    for replica, gpu, _ in stays:
        demand = board.owner[replica]
        needed = board.units[board.kind_of[gpu], demand]
        board.share[demand] = max(board.share[demand], needed)
    # Whoever needs more than before gives way to those who do not.
    stays.sort(key=lambda stay: bool(board.share[board.owner[stay[0]]] > stay[2]))
    for replica, gpu, _ in stays:
        if board.size(replica, gpu) <= board.free[gpu] and board.count[gpu] < board.most:
            board.put(replica, gpu)
            board.fixed[replica] = True


def _stays(board: Board, previous: PackingPlan) -> Iterator[tuple[int, int, int]]:
    """Replicas that are still wanted, the GPU they lay on, and the share they had."""
    places = {gpu.id: at for at, gpu in enumerate(board.gpus)}
    names = {demand.name: at for at, demand in enumerate(board.demands)}
    first = np.searchsorted(board.owner, np.arange(len(board.demands)))
    for planned in previous.gpus:
        gpu = places.get(planned.gpu.id)
        if gpu is None or board.gpus[gpu].kind != planned.gpu.kind:
            continue
        for share in planned.shares:
            demand = names.get(share.name)
            if demand is None or share.replica >= board.demands[demand].num_replicas:
                continue
            board.held[gpu, demand] = True
            if board.takes(int(board.kind_of[gpu]), demand):
                yield int(first[demand]) + share.replica, gpu, share.units


def _fill_gaps(board: Board) -> bool:
    """Place what is left one by one, largest first; True when nothing is left."""
    largest = board.units.min(axis=0) if len(board.demands) else board.share
    left = board.unplaced
    order = left[np.argsort(-largest[board.owner[left]], kind="stable")]
    placed = [board.put_somewhere(replica) for replica in order.tolist()]
    return all(placed)


def _pack_anew(board: Board) -> int:
    """Kind by kind: whole GPUs, then bins of light replicas; returns how many GPUs it takes."""
    bound = 0
    for kind, replicas in divide_by_kind(board):
        demands = board.owner[replicas].tolist()
        sizes = np.array([board.sizes_on(kind, demand) for demand in demands], np.int64)
        capacity = int(board.capacity[kind])
        light = np.flatnonzero(sizes < capacity)
        packing = pack_bins(sizes[light], capacity, board.most)
        together = [replicas[light[positions]].tolist() for positions in packing.bins]
        # Those with many find it harder to avoid each other: they choose their node first.
        together.sort(key=len, reverse=True)
        alone = [[replica] for replica in replicas[sizes == capacity].tolist()]
        for group in (*alone, *together):
            board.put_together(group, kind)
        bound = len(alone) + packing.lower_bound
    # What one kind needs at least says nothing of the sum, where a choice of kinds was made.
    return bound if board.num_kinds == 1 else 0


def _plan(
    board: Board, placement: Placement, previous: PackingPlan | None, bound: int
) -> PackingPlan:
    on_gpu: list[list[Share]] = [[] for _ in board.gpus]
    first = np.searchsorted(board.owner, np.arange(len(board.demands)))
    num_kept = 0
    for replica, gpu in enumerate(board.gpu_of.tolist()):
        at = int(board.owner[replica])
        demand = board.demands[at]
        need = demand.needs[board.gpus[gpu].kind]
        index, units = replica - int(first[at]), int(board.share[at])
        on_gpu[gpu].append(Share(demand.name, demand.versions, index, units, need.gib, need.batch))
    if previous is not None:
        before = set(_places(previous))
        num_kept = sum(
            (gpu.id, share.name, share.replica) in before
            for gpu, shares in zip(board.gpus, on_gpu, strict=True)
            for share in shares
        )
    planned = tuple(
        PlannedGpu(
            gpu,
            placement.reserve_gib_of(gpu.gib),
            tuple(sorted(shares, key=lambda share: (-share.units, share.name, share.replica))),
        )
        for gpu, shares in zip(board.gpus, on_gpu, strict=True)
    )
    return PackingPlan(planned, bound, num_kept)


def _places(plan: PackingPlan) -> Iterator[tuple[str, str, int]]:
    for planned in plan.gpus:
        for share in planned.shares:
            yield planned.gpu.id, share.name, share.replica


def _lower_bound(board: Board) -> int:
    """Every replica at the smallest part of a GPU it takes anywhere; whole ones apart."""
    if not len(board.owner):
        return 0
    parts = np.where(
        board.units == UNITS, UNITS, board.units * UNITS // np.maximum(board.capacity, 1)[:, None]
    )
    smallest = parts.min(axis=0)[board.owner]
    light = smallest[smallest < UNITS]
    return int((smallest >= UNITS).sum()) + lower_bound(light, UNITS, board.most)


def _does_not_fit(board: Board, placement: Placement) -> PackingImpossible:
    left = board.unplaced
    demands, counts = np.unique(board.owner[left], return_counts=True)
    lines, wanted_gib = [], 0.0
    for at, count in zip(demands.tolist(), counts.tolist(), strict=True):
        demand = board.demands[at]
        kind, need = min(demand.needs.items(), key=lambda item: item[1].units)
        gib = placement.kinds[kind]
        kind_at = list(placement.kinds).index(kind)
        given_gib = gib * board.sizes_on(kind_at, at) / UNITS
        free = board.free[(board.kind_of == kind_at) & (board.count < board.most)]
        free_gib = gib * int(free.max(initial=0)) / UNITS
        wanted_gib += count * given_gib
        whole = "a whole GPU, " if need.units == UNITS else ""
        lines.append(
            f"{demand.name}: {count} of {demand.num_replicas} replicas find no place: each takes "
            f"{whole}{given_gib:.2f} GiB of {kind}, and the most that is left on one is "
            f"{free_gib:.2f}: {given_gib - free_gib:.2f} GiB short"
        )
    named = lines[:MAX_NAMED]
    if len(lines) > MAX_NAMED:
        named.append(f"and {len(lines) - MAX_NAMED} more")
    total = f"{len(left)} of {len(board.owner)} replicas do not fit {len(board.gpus)} GPUs"
    return PackingImpossible("\n".join([total, *named]), remedy=_remedy(board, placement))


def _remedy(board: Board, placement: Placement) -> str:
    """How many GPUs are missing, and what needs none."""
    left = board.unplaced
    sizes: dict[int, list[int]] = {}
    for replica in left.tolist():
        demand = int(board.owner[replica])
        kind = min(range(board.num_kinds), key=lambda k: board.sizes_on(k, demand))
        sizes.setdefault(kind, []).append(board.sizes_on(kind, demand))
    missing = " and ".join(
        f"{len(pack_bins(np.array(wanted), int(board.capacity[kind]), board.most).bins)} more "
        f"{list(placement.kinds)[kind]}"
        for kind, wanted in sorted(sizes.items())
    )
    helps = [missing]
    if placement.replicas == "max":
        helps.append("replicas: min in the placement (plans for min_replicas)")
    helps.append("fewer max_replicas in the family")
    helps.append("versions on one base as shared replicas")
    return ", or ".join(helps)
