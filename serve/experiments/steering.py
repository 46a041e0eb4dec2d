"""Rollouts as people begin and steer them; what is asked twice is done once."""

from collections.abc import Callable
from datetime import datetime

from serve.config import VersionId
from serve.designs import RolloutPlan
from serve.errors import Conflict
from serve.experiments.moves import Move, create_rollout
from serve.store.audit import lock_audit
from serve.store.columns import utc_now
from serve.store.defaults import find_default
from serve.store.engine import Database, Session
from serve.store.experiment_tables import ExperimentState
from serve.store.experiments import lock_experiment
from serve.store.ids import new_id
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.rollouts import BEFORE_FIRST, Note, lock_rollout, refuse_if_taken


class Steering:
    """Every method takes the actor: the id of the key that asks."""

    def __init__(self, database: Database, now: Callable[[], datetime] = utc_now):
        self._database = database
        self._now = now

    async def begin(
        self,
        actor: str,
        tenant_id: str,
        plan: RolloutPlan,
        rollout_id: str | None = None,
        *,
        seen_default: VersionId | None = None,
    ) -> Rollout:
        """
        Args:
            tenant_id: whose webhook secret signs what is told.
            plan: with the version that it is against.
            rollout_id: the one that is there with this id is the one that was asked for.
            seen_default: what somebody had made the default when the plan was settled, if anybody.

        Raises:
            Conflict: a rollout or an experiment decides about this expert already, or the default
                is another since.
        """
        async with self._database.transaction() as session:
            await lock_audit(session)  # or two could begin at once
            if rollout_id is not None and (made := await session.get(Rollout, rollout_id)):
                return made
            await refuse_if_taken(session, plan.expert)
            default = await find_default(session, plan.expert)
            if (default and default.version) != seen_default:
                raise Conflict(
                    f"the default of {plan.expert} was changed just now",
                    remedy="look whether it still is what you want, and ask again",
                )
            return await create_rollout(
                session,
                plan,
                rollout_id=rollout_id or new_id("rol"),
                tenant_id=tenant_id,
                actor=actor,
                now=self._now(),
            )

    async def pause(self, actor: str, rollout_id: str) -> Rollout:
        """Weights stay as they are, and nobody decides.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it has ended.
        """
        async with self._database.transaction() as session:
            move = await self._open(session, rollout_id)
            if move.rollout.state is RolloutState.RUNNING:
                move.rollout.state = RolloutState.PAUSED
                await self._log(move, actor, "pause", "paused by hand")
            return move.rollout

    async def resume(self, actor: str, rollout_id: str) -> Rollout:
        """Go on; a stage whose experiment was frozen or stopped begins anew, with nothing seen.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it has ended.
        """
        async with self._database.transaction() as session:
            move = await self._open(session, rollout_id)
            rollout = move.rollout
            is_disturbed = rollout.stage != BEFORE_FIRST and await _is_disturbed(session, rollout)
            if rollout.state is RolloutState.PAUSED or is_disturbed:
                rollout.state, reason = RolloutState.RUNNING, "resumed by hand"
                if is_disturbed:
                    reason = "resumed by hand: the stage begins anew"
                    await move.enter(rollout.stage, reason)
                await self._log(move, actor, "resume", reason)
            return rollout

    async def abort(self, actor: str, rollout_id: str) -> Rollout:
        """Everybody back to the control, at once and for good.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it has ended otherwise.
        """
        async with self._database.transaction() as session:
            rollout = await lock_rollout(session, rollout_id)
            if rollout.state is not RolloutState.ABORTED:
                move = self._move(session, rollout)
                await self._log(move, actor, "abort", "aborted by hand")
            return rollout

    async def approve(self, actor: str, rollout_id: str) -> Rollout:
        """Let the present stage be left, as soon as its numbers say so too.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it has ended, or this stage asks for no approval.
        """
        async with self._database.transaction() as session:
            move = await self._open(session, rollout_id)
            rollout = move.rollout
            if rollout.stage == BEFORE_FIRST or not move.plan.stages[rollout.stage].approval:
                raise Conflict(
                    "this stage asks for no approval",
                    remedy="approve while the rollout says `waits_for_approval`",
                )
            if rollout.approved_stage != rollout.stage:
                rollout.approved_stage = rollout.stage
                await self._log(move, actor, "approve", "approved by hand")
            return rollout

    async def _open(self, session: Session, rollout_id: str) -> Move:
        return self._move(session, await lock_rollout(session, rollout_id))

    def _move(self, session: Session, rollout: Rollout) -> Move:
        if rollout.finished_at is not None:
            raise Conflict(
                f"the rollout {rollout.id} has ended: {rollout.state.value}",
                remedy="begin another one",
            )
        return Move(session, rollout, RolloutPlan.model_validate(rollout.plan), self._now())

    async def _log(self, move: Move, actor: str, action: str, reason: str) -> None:
        stage = move.rollout.stage
        await move.carry_out(Note(actor=actor, action=action, reason=reason, stage=stage))


async def _is_disturbed(session: Session, rollout: Rollout) -> bool:
    experiment = await lock_experiment(session, rollout.experiment_id)
    return experiment.state is not ExperimentState.RUNNING
