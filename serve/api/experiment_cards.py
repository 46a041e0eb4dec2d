"""Experiments as the API answers them."""

from collections.abc import Sequence
from itertools import pairwise

from serve.experiments.allocation import Allocation, count_moved, load_allocation
from serve.experiments.changes import design_of
from serve.experiments.desk import Standing
from serve.experiments.explanation import Explanation
from serve.schemas import experiments as wire
from serve.store.experiment_tables import ExperimentAllocation
from serve.store.routing import ASSIGNING


def describe_experiment(standing: Standing) -> wire.ExperimentCard:
    row = standing.row
    return wire.ExperimentCard(
        id=row.id,
        design=design_of(row),
        status=row.state.value,
        reason=row.reason,
        revision=row.revision,
        ranges=_ranges(load_allocation(standing.ranges)),
        rollout=standing.owner,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def list_allocations(rows: Sequence[ExperimentAllocation]) -> wire.AllocationList:
    found = [load_allocation(row.ranges) for row in rows]
    moved = [0, *(count_moved(before, after) for before, after in pairwise(found))]
    return wire.AllocationList(
        items=tuple(
            wire.Allocation(
                revision=row.revision,
                weights=allocation.shares(),
                ranges=_ranges(allocation),
                num_moved=num_moved,
                reason=row.reason,
                at=row.at,
            )
            for row, allocation, num_moved in zip(rows, found, moved, strict=True)
        )
    )


def answer_question(standing: Standing, found: Explanation) -> wire.AssignmentAnswer:
    row = standing.row
    is_assigning = row.state in ASSIGNING
    return wire.AssignmentAnswer(
        experiment=row.id,
        status=row.state.value,
        takes_part=is_assigning and found.arm is not None,
        arm=found.arm,
        version=None if found.arm is None else design_of(row).arm(found.arm).version,
        reason=found.reason if is_assigning else f"it is {row.state.value} and assigns nobody",
        unit=found.unit,
        unit_hash=found.unit_hash,
        bucket=found.bucket,
        revision=row.revision,
    )


def _ranges(allocation: Allocation) -> tuple[wire.AllocationRange, ...]:
    return tuple(
        wire.AllocationRange(start=start, end=end, arm=arm)
        for start, end, arm in allocation.ranges()
    )
