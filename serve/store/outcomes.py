"""Rows of what people and shops said about answers; the first to say a thing has said it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, tuple_

from serve.store.engine import Session
from serve.store.experiment_tables import Outcome, Verdict
from serve.store.ids import new_id
from serve.store.upserts import insert_into

KEY = (Outcome.tenant_id, Outcome.id)
UNSEEN = {"synchronize_session": False}


@dataclass(frozen=True, kw_only=True)
class NewOutcome:
    """What was said about one answer."""

    request_id: str
    verdict: Verdict
    reason: str = ""


async def record_outcomes(
    session: Session,
    tenant_id: str,
    outcomes: Sequence[NewOutcome],
    now: datetime,
    expires_at: datetime,
) -> list[tuple[Outcome, bool]]:
    """Write them in their order, each a microsecond after the one before, so that of two opinions
    in one message the second is the later.

    Returns:
        For each, the row that says it and whether that is new; the first one's reason stays.
    """
    rows = [
        {
            "tenant_id": tenant_id,
            "id": new_id("out"),
            "request_id": one.request_id,
            "verdict": one.verdict,
            "reason": one.reason,
            "at": now + timedelta(microseconds=index),
            "expires_at": expires_at,
        }
        for index, one in enumerate(outcomes)
    ]
    # In one order for everybody: two messages that say the same never wait for each other.
    rows.sort(key=lambda row: (row["request_id"], row["verdict"], row["at"]))
    insert = insert_into(session, Outcome).on_conflict_do_nothing(
        index_elements=["tenant_id", "request_id", "verdict"]
    )
    connection = await session.connection()
    new = set((await connection.execute(insert.returning(Outcome.id), rows)).scalars())
    about = {one.request_id for one in outcomes}
    found = select(Outcome).where(Outcome.tenant_id == tenant_id, Outcome.request_id.in_(about))
    by_saying = {(row.request_id, row.verdict): row for row in await session.scalars(found)}
    answers = []
    for one in outcomes:
        row = by_saying[one.request_id, one.verdict]
        answers.append((row, row.id in new))
        new.discard(row.id)
    return answers


async def list_outcomes(
    session: Session,
    tenant_id: str,
    *,
    request_id: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Sequence[Outcome]:
    """Newest first; `after` is the last id of the page before."""
    found = select(Outcome).where(Outcome.tenant_id == tenant_id)
    if request_id is not None:
        found = found.where(Outcome.request_id == request_id)
    if after is not None:
        found = found.where(Outcome.id < after)
    return (await session.scalars(found.order_by(Outcome.id.desc()).limit(limit))).all()


async def remove_expired_outcomes(
    session: Session, tenant_id: str, now: datetime, limit: int
) -> int:
    """Up to `limit` rows of a tenant whose time is over."""
    picked = (
        select(*KEY)
        .where(Outcome.tenant_id == tenant_id, Outcome.expires_at <= now)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    gone = delete(Outcome).where(tuple_(*KEY).in_(select(*picked.c))).returning(Outcome.id)
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())
