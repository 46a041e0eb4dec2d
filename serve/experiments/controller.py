"""Walks every open rollout through its stages; all it must remember is in the database.

Whoever holds a rollout's lease decides about it. A controller that dies leaves the lease to lapse,
and another goes on from the rows: a decision and what it changes are one transaction.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from serve.designs import RolloutPlan
from serve.errors import Sm4llError, StoreUnavailable
from serve.experiments.allocation import load_allocation
from serve.experiments.counts import RolloutCounts
from serve.experiments.findings import gather
from serve.experiments.moves import Move
from serve.experiments.rollout import Decision, Evidence, Readiness, Standing, decide
from serve.observing.meter import NO_METER, Meter
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.experiments import read_ranges
from serve.store.exposures import count_exposures, read_exposures
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.rollouts import (
    BEFORE_FIRST,
    CONTROLLER,
    Note,
    claim_lease,
    list_open,
    lock_rollout,
    release_leases,
)

Probe = Callable[[str], Awaitable[Readiness]]
"""Whether a version's deployment can be asked."""

LEASE = timedelta(seconds=10)
RENEW_BELOW = timedelta(seconds=5)
BETWEEN_WORDS = timedelta(seconds=10)
# What people say about a picture comes without an exposure; it is looked for this often.
MAX_AGE_S = 15.0
# A rollout with 200,000 exposures takes seconds to read: at most a quarter of the time goes there.
REST_PER_WORK = 3.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, and how to find out that nothing is new."""

    evidence: Evidence
    count: tuple[int, datetime | None]
    looked_s: float
    rest_until_s: float


class RolloutController:
    """One of any number; for each rollout one of them decides.

    Args:
        probe: asked before the first stage.
    """

    def __init__(
        self,
        database: Database,
        probe: Probe,
        *,
        now: Callable[[], datetime] = utc_now,
        clock_s: Callable[[], float] = time.monotonic,
        logger: logging.Logger | None = None,
        meter: Meter = NO_METER,
    ):
        self._counts = RolloutCounts(meter)
        self._database = database
        self._probe = probe
        self._now = now
        self._clock_s = clock_s
        self._logger = logger or logging.getLogger(__name__)
        self._token = secrets.token_hex(16)
        self._looks: dict[tuple[str, int], Look] = {}

    async def turn(self) -> None:
        """Decide once about every open rollout; one that fails holds up no other.

        Raises:
            StoreUnavailable: the database is away.
        """
        async with self._database.reading() as session:
            under_way = await list_open(session)
        self._counts.show(under_way)
        rollouts = [row for row in under_way if row.state is RolloutState.RUNNING]
        open_ones = {(row.id, row.revision) for row in rollouts}
        self._looks = {key: look for key, look in self._looks.items() if key in open_ones}
        for rollout in rollouts:
            try:
                await self._turn(rollout)
            except StoreUnavailable:
                raise
            except Exception:
                self._logger.exception("the rollout %s could not be judged", rollout.id)

    async def stop(self) -> None:
        """Another controller may begin at once."""
        try:
            async with self._database.transaction() as session:
                await release_leases(session, self._token)
        except Sm4llError as exc:
            self._logger.warning("leases of rollouts lapse by themselves: %s", exc.detail)

    async def _turn(self, rollout: Rollout) -> None:
        plan = RolloutPlan.model_validate(rollout.plan)
        if not await self._hold(rollout):
            return
        disturbed, evidence = await self._look(rollout, plan)
        now = self._now()
        if disturbed:
            note = Note(
                actor=CONTROLLER, action="hold", reason=disturbed, cause=disturbed,
                stage=rollout.stage,
            )  # fmt: skip
        else:
            standing = Standing(
                stage=rollout.stage,
                stage_started_at=rollout.stage_started_at,
                approved_stage=rollout.approved_stage,
            )
            note = _note(decide(plan, standing, evidence, now))
        if not _is_said(rollout, note, now):
            await self._carry_out(rollout, plan, note, now)

    async def _hold(self, rollout: Rollout) -> bool:
        """Whether the lease is ours, renewed where it ends soon."""
        now, expires_at = self._now(), rollout.lease_expires_at
        is_ours = rollout.lease_token == self._token
        if is_ours and expires_at is not None and expires_at - now > RENEW_BELOW:
            return True
        if not is_ours and expires_at is not None and expires_at > now:
            return False
        look = self._looks.get((rollout.id, rollout.revision))
        numbers = None if look is None else look.evidence.numbers()
        async with self._database.transaction() as session:
            return await claim_lease(session, rollout.id, self._token, now, LEASE, numbers)

    async def _look(self, rollout: Rollout, plan: RolloutPlan) -> tuple[str, Evidence]:
        """What disturbs the rollout, if anything does, and what is known."""
        if rollout.stage == BEFORE_FIRST:
            return "", Evidence(readiness=await self._probe(plan.version))
        key, now_s = (rollout.id, rollout.revision), self._clock_s()
        look = self._looks.get(key)
        async with self._database.reading() as session:
            disturbed = await _find_disturbance(session, rollout)
            if disturbed:
                return disturbed, Evidence()
            if look is not None and now_s < look.rest_until_s:
                return "", look.evidence
            count = await count_exposures(session, rollout.experiment_id, rollout.revision)
            if look is not None and look.count == count and now_s - look.looked_s < MAX_AGE_S:
                return "", look.evidence
            seen = await read_exposures(session, rollout.experiment_id, revision=rollout.revision)
            ranges = await read_ranges(session, rollout.experiment_id, rollout.revision)
        allocation, stage = load_allocation(ranges), plan.stages[rollout.stage]
        evidence = await asyncio.to_thread(gather, plan, stage, rollout.revision, allocation, seen)
        done_s = self._clock_s()
        rest_until_s = done_s + REST_PER_WORK * (done_s - now_s)
        self._looks[key] = Look(evidence, count, now_s, rest_until_s)
        return "", evidence

    async def _carry_out(self, seen: Rollout, plan: RolloutPlan, note: Note, now: datetime) -> None:
        async with self._database.transaction() as session:
            rollout = await lock_rollout(session, seen.id)
            # A person may have been faster, or another controller after our lease.
            is_ours = rollout.lease_token == self._token
            is_same = (rollout.stage, rollout.revision) == (seen.stage, seen.revision)
            if is_ours and is_same and rollout.state is RolloutState.RUNNING:
                await Move(session, rollout, plan, now).carry_out(note)
        self._counts.decided(note.action)
        self._logger.info("rollout %s: %s: %s", seen.id, note.action, note.reason)


def _is_said(rollout: Rollout, note: Note, now: datetime) -> bool:
    """Nothing is written twice, and what moves nothing not too often: two reasons to wait may take
    turns as numbers swing."""
    if note.key == rollout.cause:
        return True
    if note.action != "hold" and not note.is_dry_run:
        return False
    was_here = rollout.num_decisions > 1 and rollout.cause.startswith(f"{rollout.stage} ")
    return was_here and now - rollout.updated_at < BETWEEN_WORDS


async def _find_disturbance(session: Session, rollout: Rollout) -> str:
    experiment = await session.get_one(Experiment, rollout.experiment_id)
    if experiment.state is ExperimentState.RUNNING:
        return ""
    return (
        f"its experiment is {experiment.state.value}: resume the rollout to begin the stage anew, "
        "or abort it"
    )


def _note(decision: Decision) -> Note:
    return Note(
        actor=CONTROLLER,
        action=decision.action,
        reason=decision.reason,
        cause=decision.cause,
        stage=decision.stage,
        to_stage=decision.to_stage,
        is_dry_run=decision.is_dry_run,
        numbers=decision.numbers,
    )
