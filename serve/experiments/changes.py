"""What may become of an experiment, in the caller's transaction: made, started, weighed, ended.

Everything here is one step of whoever decides - a person, a rollout, a guard - and says nothing
about who may.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

from serve.designs import BUCKETS, ExperimentDesign
from serve.errors import Conflict, InvalidRequest
from serve.experiments.allocation import Allocation, allocate, load_allocation, reallocate
from serve.experiments.assignment import LiveExperiment
from serve.store.audit import lock_audit
from serve.store.engine import Session
from serve.store.experiment_tables import Experiment, ExperimentAllocation, ExperimentState
from serve.store.experiments import (
    FIRST_REVISION,
    allocate_anew,
    find_experiment,
    insert_experiment,
    list_ranges,
    lock_experiment,
    read_ranges,
    set_experiment_state,
)
from serve.store.routing import ASSIGNING, list_assigning

DRAFT, RUNNING, PAUSED, FROZEN, ENDED = ExperimentState
FOLLOWS: Mapping[ExperimentState, tuple[ExperimentState, ...]] = MappingProxyType(
    {
        DRAFT: (RUNNING, ENDED),
        RUNNING: (PAUSED, FROZEN, ENDED),
        PAUSED: (RUNNING, ENDED),
        FROZEN: (RUNNING, PAUSED, ENDED),
        ENDED: (),
    }
)
"""What may become of each state."""


async def create_experiment(
    session: Session,
    design: ExperimentDesign,
    *,
    created_by: str,
    now: datetime,
    state: ExperimentState = DRAFT,
) -> Experiment:
    """Make it; the one that is there where it was made like this.

    Raises:
        Conflict: there is another with this id, or its namespace has no room for it.
    """
    await lock_audit(session)
    experiment = await find_experiment(session, design.id)
    if experiment is not None:
        if await read_first_design(session, experiment) != design:
            raise Conflict(
                f"there is another experiment {design.id!r}",
                remedy="choose another id: what was seen under this one stays with it",
            )
        return experiment
    if state in ASSIGNING:
        await require_room(session, design)
    ranges = allocate(weights_of(design)).dump()
    return await insert_experiment(
        session, design, ranges, state=state, created_by=created_by, now=now
    )


async def set_state(
    session: Session, experiment_id: str, state: ExperimentState, *, reason: str, now: datetime
) -> Experiment:
    """Asked twice, it is done once.

    Raises:
        NotFound: there is no such experiment.
        Conflict: nothing of that kind may become of it, or its namespace has no room for it.
    """
    experiment = await lock_experiment(session, experiment_id)
    if experiment.state is state:
        return experiment
    if state not in FOLLOWS[experiment.state]:
        allowed = " or ".join(FOLLOWS[experiment.state]) or "nothing: begin another one"
        raise Conflict(
            f"{experiment_id} is {experiment.state} and cannot be {state}",
            remedy=f"it can become {allowed}",
        )
    if state in ASSIGNING and experiment.state not in ASSIGNING:
        await require_room(session, design_of(experiment))
    await set_experiment_state(session, experiment, state, reason, now)
    return experiment


async def set_weights(
    session: Session,
    experiment_id: str,
    weights: Mapping[str, int],
    *,
    reason: str,
    now: datetime,
    seen_revision: int | None = None,
) -> Experiment:
    """Another allocation, with the fewest units changing hands; asked twice, it is done once.

    Args:
        weights: hundredths of a percent of every arm.
        seen_revision: of the allocation that the caller knows; any when absent.

    Raises:
        NotFound: there is no such experiment.
        InvalidRequest: the weights are not one for each arm, or do not add up.
        Conflict: somebody else changed them meanwhile, or nobody may in this state.
    """
    experiment = await lock_experiment(session, experiment_id)
    design = reweigh(design_of(experiment), weights)
    if weights_of(design) == weights_of(design_of(experiment)):
        return experiment
    if seen_revision not in (None, experiment.revision):
        raise Conflict(
            f"the weights of {experiment_id} were changed meanwhile: revision "
            f"{experiment.revision}, not {seen_revision}",
            remedy="read it again, and send the revision it has now",
        )
    if experiment.state in (FROZEN, ENDED):
        raise Conflict(
            f"{experiment_id} is {experiment.state}: {experiment.reason or 'no weight moves'}",
            remedy="resume it, or end it and begin another one"
            if experiment.state is FROZEN
            else "begin another one",
        )
    before = load_allocation(await read_ranges(session, experiment_id, experiment.revision))
    after = reallocate(before, weights_of(design))
    await allocate_anew(session, experiment, design, after.dump(), reason, now)
    return experiment


async def list_allocations(session: Session, experiment_id: str) -> dict[int, Allocation]:
    """Every allocation the experiment had, by revision."""
    rows = await list_ranges(session, experiment_id)
    return {row.revision: load_allocation(row.ranges) for row in rows}


def as_live(experiment: Experiment, allocation: ExperimentAllocation) -> LiveExperiment:
    design, ranges = design_of(experiment), load_allocation(allocation.ranges)
    return LiveExperiment(design, allocation.revision, ranges)


def design_of(experiment: Experiment) -> ExperimentDesign:
    return ExperimentDesign.model_validate(experiment.design)


def weights_of(design: ExperimentDesign) -> dict[str, int]:
    return {arm.name: arm.weight for arm in design.arms}


def reweigh(design: ExperimentDesign, weights: Mapping[str, int]) -> ExperimentDesign:
    """
    Raises:
        InvalidRequest: the weights are not one for each arm, or do not add up.
    """
    wanted = weights_of(design)
    if set(weights) != set(wanted):
        raise InvalidRequest(
            f"one weight for each arm of {design.id}: {', '.join(wanted)}",
            fields=(("weights", f"not {', '.join(weights) or 'none'}"),),
        )
    if min(weights.values()) < 0 or sum(weights.values()) != BUCKETS:
        raise InvalidRequest(
            f"weights are hundredths of a percent and add up to {BUCKETS}",
            fields=(("weights", f"they add up to {sum(weights.values())}"),),
        )
    arms = tuple(arm.model_copy(update={"weight": weights[arm.name]}) for arm in design.arms)
    return design.model_copy(update={"arms": arms})


async def read_first_design(session: Session, experiment: Experiment) -> ExperimentDesign:
    """As it was made, before any weight moved."""
    first = load_allocation(await read_ranges(session, experiment.id, FIRST_REVISION))
    design = design_of(experiment)
    return reweigh(design, {**dict.fromkeys(weights_of(design), 0), **first.shares()})


async def require_room(session: Session, design: ExperimentDesign) -> None:
    """
    Raises:
        Conflict: another experiment has a part of its buckets, or tells units apart by something
            else: then they would share people although they share no bucket.
    """
    space = design.namespace
    if space is None:
        return
    live = [design_of(experiment) for experiment, _ in await list_assigning(session)]
    others = [d for d in live if d.id != design.id and d.namespace is not None]
    for other in others:
        theirs = other.namespace
        if theirs is None or theirs.name != space.name:
            continue
        if (other.unit, other.fallback) != (design.unit, design.fallback):
            raise Conflict(
                f"in the namespace {space.name!r}, {other.id} goes by {_kinds(other)} and "
                f"{design.id} by {_kinds(design)}",
                remedy=f"let {design.id} go by {_kinds(other)}, or choose another namespace",
            )
        if theirs.start < space.end and space.start < theirs.end:
            taken = ", ".join(_list_taken(others, space.name))
            raise Conflict(
                f"in the namespace {space.name!r}, {other.id} has the buckets {theirs.start} to "
                f"{theirs.end}",
                remedy=f"choose buckets that are free (taken: {taken}), or end {other.id}",
            )


def _kinds(design: ExperimentDesign) -> str:
    return design.unit if design.fallback is None else f"{design.unit} or {design.fallback}"


def _list_taken(designs: Iterable[ExperimentDesign], name: str) -> list[str]:
    spaces = [d.namespace for d in designs if d.namespace is not None and d.namespace.name == name]
    return [f"{space.start}-{space.end}" for space in sorted(spaces, key=lambda s: s.start)]
