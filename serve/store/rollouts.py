"""Rows of rollouts and their decisions, read and changed in the caller's transaction.

Whoever changes one takes the audit log's lock first and the rollout's row after it: in one order,
so that a person and a controller never wait for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, tuple_, update

from serve.designs import RolloutPlan
from serve.errors import Conflict, NotFound
from serve.store.audit import Act, append_record, lock_audit
from serve.store.engine import Session
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.ids import ID
from serve.store.rollout_cards import describe_news
from serve.store.rollout_tables import Rollout, RolloutDecision, RolloutState
from serve.store.webhooks import enqueue

CONTROLLER = "rollouts"
"""The actor of what nobody asked for."""
BEFORE_FIRST = -1
"""The stage of a rollout that has not begun to ask the challenger for anything."""
LIVE = (ExperimentState.RUNNING, ExperimentState.PAUSED, ExperimentState.FROZEN)
MAX_REASON_CHARS = 500
UNSEEN = {"populate_existing": True, "synchronize_session": False}

TOLD = {
    "create": "created",
    "start": "started",
    "promote": "promoted",
    "finish": "finished",
    "hold": "held",
    "roll_back": "rolled_back",
    "freeze": "frozen",
    "pause": "paused",
    "resume": "resumed",
    "abort": "aborted",
    "approve": "approved",
}
"""How an action is called in the event of its webhook, `rollout.promoted` and so on."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """One decision as it is logged."""

    actor: str
    action: str
    reason: str
    cause: str = ""
    stage: int
    to_stage: int | None = None
    is_dry_run: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Two notes with the same one say the same."""
        return f"{self.stage} {self.action} {self.cause}"[:MAX_REASON_CHARS]


async def insert_rollout(
    session: Session,
    *,
    rollout_id: str,
    tenant_id: str,
    experiment_id: str,
    revision: int,
    plan: RolloutPlan,
    actor: str,
    now: datetime,
) -> Rollout:
    """A rollout that waits for its first stage.

    Args:
        tenant_id: whose webhook secret signs what is told.
        plan: with the version that it is against.
    """
    rollout = Rollout(
        id=rollout_id,
        told_tenant_id=tenant_id,
        experiment_id=experiment_id,
        expert=plan.expert,
        plan=plan.model_dump(mode="json"),
        state=RolloutState.RUNNING,
        reason="waits for its controller",
        stage=BEFORE_FIRST,
        revision=revision,
        stage_started_at=now,
        num_decisions=0,
        numbers={},
        created_by=actor,
        created_at=now,
        updated_at=now,
    )
    session.add(rollout)
    await session.flush()
    return rollout


async def refuse_beside_rollout(session: Session, expert: str) -> None:
    """After `lock_audit` nobody begins one.

    Raises:
        Conflict: a rollout of this expert is open.
    """
    is_open = select(Rollout.id).where(Rollout.expert == expert, Rollout.finished_at.is_(None))
    open_id = await session.scalar(is_open.limit(1))
    if open_id is not None:
        raise Conflict(
            f"the rollout {open_id} of {expert} is open: two at once would measure each other",
            remedy=f"wait for its end, or abort it: sm4ll rollouts abort {open_id}",
        )


async def refuse_if_taken(session: Session, expert: str) -> None:
    """
    Raises:
        Conflict: a rollout or an experiment decides about this expert already.
    """
    await refuse_beside_rollout(session, expert)
    live = select(Experiment).where(Experiment.state.in_(LIVE)).order_by(Experiment.created_at)
    for experiment in await session.scalars(live):
        if experiment.design.get("expert") == expert:
            raise Conflict(
                f"the experiment {experiment.id} of {expert} is {experiment.state.value}: "
                "two at once would measure each other",
                remedy=f"end it first: sm4ll experiments end {experiment.id}",
            )


async def get_rollout(session: Session, rollout_id: str) -> Rollout:
    """
    Raises:
        NotFound: there is none.
    """
    # PostgreSQL stumbles over a NUL, and no id looks like that.
    rollout = await session.get(Rollout, rollout_id) if ID.fullmatch(rollout_id) else None
    if rollout is None:
        raise NotFound(f"there is no rollout {rollout_id!r}", remedy="GET /v1/rollouts lists them")
    return rollout


async def lock_rollout(session: Session, rollout_id: str) -> Rollout:
    """The row, nobody else's until this transaction ends, as it is now.

    Raises:
        NotFound: there is none.
    """
    await lock_audit(session)
    await get_rollout(session, rollout_id)
    locked = select(Rollout).where(Rollout.id == rollout_id).with_for_update()
    return (await session.scalars(locked, execution_options=UNSEEN)).one()


async def list_rollouts(
    session: Session, *, limit: int, after: str | None = None
) -> Sequence[Rollout]:
    """Newest first; those that come after the rollout `after`.

    Raises:
        NotFound: there is no rollout `after`.
    """
    place = tuple_(Rollout.created_at, Rollout.id)
    query = select(Rollout).order_by(Rollout.created_at.desc(), Rollout.id.desc()).limit(limit)
    if after is not None:
        last = await get_rollout(session, after)
        query = query.where(place < tuple_(last.created_at, last.id))
    return (await session.scalars(query)).all()


async def list_decisions(
    session: Session, rollout_id: str, *, limit: int, before: int | None = None
) -> Sequence[RolloutDecision]:
    """Newest first; those whose sequence is smaller than `before`."""
    query = select(RolloutDecision).where(RolloutDecision.rollout_id == rollout_id)
    if before is not None:
        query = query.where(RolloutDecision.sequence < before)
    return (
        await session.scalars(query.order_by(RolloutDecision.sequence.desc()).limit(limit))
    ).all()


async def list_open(session: Session) -> Sequence[Rollout]:
    """Those under way, paused ones too, the oldest first."""
    query = select(Rollout).where(Rollout.finished_at.is_(None))
    return (await session.scalars(query.order_by(Rollout.created_at, Rollout.id))).all()


async def claim_lease(
    session: Session,
    rollout_id: str,
    token: str,
    now: datetime,
    lease: timedelta,
    numbers: Mapping[str, Any] | None = None,
) -> bool:
    """Take or keep the right to decide; False while somebody else has it.

    Args:
        token: the same at every claim of one controller.
        numbers: what it knows; what is there stays when absent.
    """
    is_free = or_(
        Rollout.lease_token.is_(None),
        Rollout.lease_token == token,
        Rollout.lease_expires_at <= now,
    )
    values: dict[str, Any] = {"lease_token": token, "lease_expires_at": now + lease}
    if numbers is not None:
        values["numbers"] = dict(numbers)
    taken = (
        update(Rollout)
        .where(Rollout.id == rollout_id, Rollout.finished_at.is_(None), is_free)
        .values(**values)
        .returning(Rollout.id)
    )
    return await session.scalar(taken, execution_options=UNSEEN) is not None


async def release_leases(session: Session, token: str) -> None:
    """Let another controller begin at once, as one does that is being stopped."""
    given = (
        update(Rollout)
        .where(Rollout.lease_token == token)
        .values(lease_token=None, lease_expires_at=None)
    )
    await session.execute(given, execution_options={"synchronize_session": False})


async def log_decision(session: Session, rollout: Rollout, note: Note, now: datetime) -> None:
    """Number a decision, tell it and put it into the audit log; the row is locked and says already
    what it says after it."""
    rollout.num_decisions += 1
    rollout.reason, rollout.cause = note.reason[:MAX_REASON_CHARS], note.key
    rollout.updated_at = now
    decision = RolloutDecision(
        rollout_id=rollout.id,
        sequence=rollout.num_decisions,
        at=now,
        actor=note.actor,
        action=note.action,
        stage=note.stage,
        to_stage=note.to_stage,
        is_dry_run=note.is_dry_run,
        reason=note.reason[: 2 * MAX_REASON_CHARS],
        numbers=dict(note.numbers),
    )
    session.add(decision)
    await session.flush()
    await _tell(session, rollout, decision, now)
    act = Act(
        actor=note.actor,
        action=f"rollout.{note.action}",
        tenant_id=None,
        target=rollout.id,
        detail={
            "version": rollout.plan["version"],
            "sequence": decision.sequence,
            "stage": note.stage,
            "to_stage": note.to_stage,
            "dry_run": note.is_dry_run,
            "reason": decision.reason,
        },
    )
    await append_record(session, act, now)


async def _tell(
    session: Session, rollout: Rollout, decision: RolloutDecision, now: datetime
) -> None:
    url = rollout.plan.get("webhook_url")
    if url is None:
        return
    await enqueue(
        session,
        tenant_id=rollout.told_tenant_id,
        event=f"rollout.{TOLD[decision.action]}",
        subject_id=rollout.id,
        url=url,
        payload=describe_news(rollout, decision).model_dump(mode="json"),
        now=now,
    )
