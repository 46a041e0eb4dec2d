"""Experiments as administrators change them: each change and its audit record are one
transaction. What a rollout owns is not theirs to change."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from serve.designs import ExperimentDesign
from serve.errors import Conflict
from serve.experiments.allocation import load_allocation
from serve.experiments.assignment import LiveExperiment, Party
from serve.experiments.changes import (
    DRAFT,
    ENDED,
    FROZEN,
    PAUSED,
    RUNNING,
    as_live,
    create_experiment,
    design_of,
    set_state,
    set_weights,
)
from serve.experiments.explanation import Explanation, explain, find_missing
from serve.policy import TenantPolicy
from serve.store.audit import Act, append_record, lock_audit
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.experiments import find_experiment, find_owner, get_experiment, read_ranges
from serve.store.rollouts import refuse_beside_rollout
from serve.store.routing import list_assigning

ROLLOUT_PREFIX = "rollout-"
Verb = Literal["start", "pause", "resume", "end"]
VERBS: Mapping[Verb, tuple[ExperimentState, tuple[ExperimentState, ...], str]] = {
    "start": (RUNNING, (DRAFT, RUNNING), "resume it"),
    "pause": (PAUSED, (RUNNING, FROZEN, PAUSED), "start it first"),
    "resume": (RUNNING, (PAUSED, FROZEN, RUNNING), "start it"),
    "end": (ENDED, tuple(ExperimentState), ""),
}
"""What each makes of an experiment, from which states, and what helps in the others."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An experiment as it stands."""

    row: Experiment
    ranges: list[Any]
    owner: str | None
    """The open rollout that moves its weights."""

    @property
    def live(self) -> LiveExperiment:
        return LiveExperiment(design_of(self.row), self.row.revision, load_allocation(self.ranges))


@dataclass(frozen=True, slots=True)
class Made:
    """What a wish for an experiment led to."""

    standing: Standing
    is_new: bool


async def read_standing(session: Session, row: Experiment) -> Standing:
    ranges = await read_ranges(session, row.id, row.revision)
    return Standing(row, ranges, await find_owner(session, row.id))


class ExperimentDesk:
    """Every change takes the actor: the id of the key that asks."""

    def __init__(
        self,
        database: Database,
        list_deployed: Callable[[], Collection[str]],
        now: Callable[[], datetime] = utc_now,
    ):
        """
        Args:
            list_deployed: every version that is there now.
        """
        self._database = database
        self._list_deployed = list_deployed
        self._now = now

    async def create(self, actor: str, design: ExperimentDesign, *, start: bool) -> Made:
        """The same again is the same experiment.

        Raises:
            Conflict: another has this id, a version is not deployed, or the namespace has no room.
        """
        if design.id.startswith(ROLLOUT_PREFIX):
            raise Conflict(
                f"ids that begin with {ROLLOUT_PREFIX!r} are those of rollouts",
                remedy="choose another id",
            )
        async with self._act() as (session, now):
            is_there = await find_experiment(session, design.id) is not None
            row = await create_experiment(session, design, created_by=actor, now=now)
            if not is_there:
                detail = {"design": row.design}
                await record_change(session, now, actor, "experiment.create", row.id, detail)
            if start and row.state is DRAFT:
                await self._move(session, now, actor, row, "start", "")
            return Made(await read_standing(session, row), not is_there)

    async def act(self, actor: str, experiment_id: str, verb: Verb, reason: str) -> Standing:
        """Asked twice, it is done once.

        Raises:
            NotFound: there is no such experiment.
            Conflict: it cannot be done in this state, a rollout owns it, a version is not
                deployed, or the namespace has no room.
        """
        async with self._act() as (session, now):
            row = await get_experiment(session, experiment_id)
            await _require_own(session, experiment_id)
            await self._move(session, now, actor, row, verb, reason)
            return await read_standing(session, row)

    async def weigh(
        self,
        actor: str,
        experiment_id: str,
        weights: Mapping[str, int],
        *,
        reason: str,
        revision: int | None,
    ) -> Standing:
        """As `changes.set_weights`.

        Raises:
            Conflict: also where a rollout owns it.
        """
        async with self._act() as (session, now):
            before = (await get_experiment(session, experiment_id)).revision
            await _require_own(session, experiment_id)
            row = await set_weights(
                session, experiment_id, weights, reason=reason, now=now, seen_revision=revision
            )
            if row.revision != before:
                detail = {"weights": dict(weights), "revision": row.revision, "reason": reason}
                await record_change(session, now, actor, "experiment.weights", row.id, detail)
            return await read_standing(session, row)

    async def explain(
        self, experiment_id: str, party: Party, policy: TenantPolicy
    ) -> tuple[Standing, Explanation]:
        """What the experiment would do with a party if it assigned, whatever its state.

        Raises:
            NotFound: there is no such experiment.
        """
        async with self._database.reading() as session:
            standing = await read_standing(session, await get_experiment(session, experiment_id))
            rows = await list_assigning(session)
        row, expert = standing.row, standing.live.design.expert
        earlier = [
            live
            for other, allocation in rows
            if (other.created_at, other.id) < (row.created_at, row.id)
            and (live := as_live(other, allocation)).design.expert == expert
        ]
        deployed = self._list_deployed()
        return standing, explain(standing.live, party, policy, deployed=deployed, earlier=earlier)

    async def _move(
        self,
        session: Session,
        now: datetime,
        actor: str,
        row: Experiment,
        verb: Verb,
        reason: str,
    ) -> None:
        state, sources, remedy = VERBS[verb]
        before = row.state
        if before not in sources:
            raise Conflict(f"{row.id} is {before}: {verb} is for others", remedy=remedy)
        if state is RUNNING:
            self._require_deployed(design_of(row))
        if state is RUNNING and before is not RUNNING:
            await refuse_beside_rollout(session, design_of(row).expert)
        await set_state(session, row.id, state, reason=reason, now=now)
        if before is not state:
            detail = {"before": before.value, "reason": reason}
            await record_change(session, now, actor, f"experiment.{verb}", row.id, detail)

    def _require_deployed(self, design: ExperimentDesign) -> None:
        missing = find_missing(design, self._list_deployed())
        if missing:
            raise Conflict(
                f"{design.id} needs versions that are not deployed: {', '.join(missing)}",
                remedy="; ".join(f"sm4ll experts deploy {version}" for version in missing),
            )

    @asynccontextmanager
    async def _act(self) -> AsyncIterator[tuple[Session, datetime]]:
        async with self._database.transaction() as session:
            # First: what is looked at here must still be so at the commit.
            await lock_audit(session)
            yield session, self._now()


async def _require_own(session: Session, experiment_id: str) -> None:
    owner = await find_owner(session, experiment_id)
    if owner is not None:
        raise Conflict(
            f"{experiment_id} belongs to the rollout {owner}",
            remedy=f"use the rollout: POST /v1/rollouts/{owner}/pause, resume or abort",
        )


async def record_change(
    session: Session,
    now: datetime,
    actor: str,
    action: str,
    experiment_id: str,
    detail: Mapping[str, Any],
) -> None:
    """In the audit log, in the transaction of the change."""
    act = Act(actor=actor, action=action, tenant_id=None, target=experiment_id, detail=detail)
    await append_record(session, act, now)
