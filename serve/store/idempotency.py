"""The rows of first answers: who may run a request now, and what it was answered.

A row is made once and keeps its `created_at` while others take it over, so that whatever is
charged for it is the same work item. The time a lock ends tells one holder from the next: each
takes over after the end of the one before.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, delete, select, tuple_, update

from serve.store.engine import Session
from serve.store.tables import IdempotencyKey
from serve.store.upserts import insert_into


class Standing(StrEnum):
    """How a request with a key stands to the others with it."""

    OURS = "ours"
    RUNNING = "running"
    ANSWERED = "answered"
    CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One key as this request found or made it."""

    standing: Standing
    tenant_id: str
    key: str
    created_at: datetime
    locked_until: datetime | None = None
    """While it is ours: what proves it."""
    response: dict[str, Any] | None = None


async def take_key(
    session: Session,
    tenant_id: str,
    key: str,
    request_sha256: str,
    *,
    now: datetime,
    locked_until: datetime,
    kept_s: float,
) -> Row:
    """Make the row, take over one that nobody works on any more, or say how it stands."""
    row = await _locked(session, tenant_id, key)
    if row is not None and row.expires_at <= now:
        await session.delete(row)
        await session.flush()
        row = None
    if row is None:
        insert = insert_into(session, IdempotencyKey).values(
            tenant_id=tenant_id,
            key=key,
            request_sha256=request_sha256,
            response=None,
            locked_until=locked_until,
            created_at=now,
            expires_at=now + timedelta(seconds=kept_s),
        )
        made = insert.on_conflict_do_nothing().returning(IdempotencyKey.key)
        if await session.scalar(made) is not None:
            return _ours(tenant_id, key, now, locked_until)
        row = await _locked(session, tenant_id, key)
        if row is None:  # made and freed by another meanwhile; the next look decides
            return _seen(Standing.RUNNING, tenant_id, key, now)
    return _judge(row, request_sha256, now, locked_until, kept_s)


def _judge(
    row: IdempotencyKey,
    request_sha256: str,
    now: datetime,
    locked_until: datetime,
    kept_s: float,
) -> Row:
    is_other = row.request_sha256 != request_sha256
    is_free = row.response is None and row.locked_until is None
    if is_other and not is_free:
        return _seen(Standing.CONFLICT, row.tenant_id, row.key, row.created_at)
    if row.response is not None:
        seen = _seen(Standing.ANSWERED, row.tenant_id, row.key, row.created_at)
        return Row(**{**vars(seen), "response": row.response})
    if row.locked_until is not None and row.locked_until > now:
        return _seen(Standing.RUNNING, row.tenant_id, row.key, row.created_at)
    if is_other:  # an answer that was not kept bound the key to nothing
        row.request_sha256 = request_sha256
        row.created_at, row.expires_at = now, now + timedelta(seconds=kept_s)
    row.locked_until = locked_until
    return _ours(row.tenant_id, row.key, row.created_at, locked_until)


async def is_running(session: Session, tenant_id: str, key: str, now: datetime) -> bool:
    """Whether somebody works on it, without waiting for anybody who writes."""
    found = select(IdempotencyKey.key).where(
        IdempotencyKey.tenant_id == tenant_id,
        IdempotencyKey.key == key,
        IdempotencyKey.response.is_(None),
        IdempotencyKey.locked_until > now,
    )
    return await session.scalar(found) is not None


async def keep_lock(session: Session, row: Row, locked_until: datetime) -> Row | None:
    """While it still runs; None when somebody else has taken it over."""
    kept = await _change(session, row, locked_until=locked_until)
    return Row(**{**vars(row), "locked_until": locked_until}) if kept else None


async def answer_key(session: Session, row: Row, response: dict[str, Any]) -> bool:
    """Keep the first answer; False when somebody else has taken over."""
    return await _change(session, row, response=response, locked_until=None)


async def free_key(session: Session, row: Row) -> bool:
    """The answer is not kept: whoever comes next runs it again."""
    return await _change(session, row, locked_until=None)


async def forget_answers(
    session: Session,
    tenant_id: str,
    after: str,
    references: Collection[str],
    forgotten: dict[str, Any],
    limit: int,
) -> tuple[str | None, Sequence[dict[str, Any]]]:
    """Put `forgotten` in the place of answers that refer to any of these; one page of the keys.

    The keys stay: a request that is sent again must not run again.

    Returns:
        The last key looked at, None at the end; and the answers that were forgotten.
    """
    found = (
        select(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key > after)
        .order_by(IdempotencyKey.key)
        .limit(limit)
        .with_for_update()
    )
    rows = (await session.scalars(found)).all()
    gone = []
    for row in rows:
        if row.response is not None and not set(row.response.get("refers", ())).isdisjoint(
            references
        ):
            gone.append(row.response)
            row.response = forgotten
    await session.flush()
    return (rows[-1].key if len(rows) == limit else None), gone


async def remove_expired_keys(
    session: Session, tenant_id: str, now: datetime, limit: int
) -> list[dict[str, Any]]:
    """Up to `limit` rows whose time is over; the answers they had, or {}."""
    picked = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.expires_at <= now)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    gone = (
        delete(IdempotencyKey)
        .where(_key().in_(select(picked.c.tenant_id, picked.c.key)))
        .returning(IdempotencyKey.response)
        .execution_options(synchronize_session=False)
    )
    return [response or {} for response in await session.scalars(gone)]


def _key() -> Any:
    return tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key)


async def _locked(session: Session, tenant_id: str, key: str) -> IdempotencyKey | None:
    found = (
        select(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        .with_for_update()
    )
    row: IdempotencyKey | None = await session.scalar(
        found, execution_options={"populate_existing": True}
    )
    return row


async def _change(session: Session, row: Row, **values: Any) -> bool:
    is_ours: list[ColumnElement[bool]] = [
        IdempotencyKey.tenant_id == row.tenant_id,
        IdempotencyKey.key == row.key,
        IdempotencyKey.locked_until == row.locked_until,
        IdempotencyKey.response.is_(None),
    ]
    changed = (
        update(IdempotencyKey)
        .where(*is_ours)
        .values(**values)
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return await session.scalar(changed) is not None


def _ours(tenant_id: str, key: str, created_at: datetime, locked_until: datetime) -> Row:
    return Row(
        standing=Standing.OURS,
        tenant_id=tenant_id,
        key=key,
        created_at=created_at,
        locked_until=locked_until,
    )


def _seen(standing: Standing, tenant_id: str, key: str, created_at: datetime) -> Row:
    return Row(standing=standing, tenant_id=tenant_id, key=key, created_at=created_at)
