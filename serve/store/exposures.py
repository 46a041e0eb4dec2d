"""What requests in experiments left behind them: written in groups, read as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic_core import from_json
from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    cast,
    delete,
    func,
    or_,
    select,
    tuple_,
    union_all,
)

from serve.store.engine import Session
from serve.store.experiment_tables import Exposure, Outcome, Verdict
from serve.store.upserts import insert_on

KEY = (Exposure.tenant_id, Exposure.id, Exposure.is_shadow)
IDENTITY = ("tenant_id", "id", "is_shadow")
OPINIONS = frozenset({Verdict.ACCEPTED, Verdict.REJECTED})
"""Of these two the latest counts: people change their minds."""
PAGED = {"yield_per": 2_000}
"""Rows between two turns of the event loop: about 10 ms."""
UNSEEN = {"synchronize_session": False}


@dataclass(frozen=True, kw_only=True)
class NewExposure:
    """The columns of a row, without its expiry."""

    tenant_id: str
    id: str
    is_shadow: bool = False
    experiment_id: str
    revision: int
    arm: str
    version: str
    unit: str
    request_id: str
    category: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    is_failure: bool = False
    latency_ms: float
    gpu_ms: int = 0
    upstream_microusd: int | None = None
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, str] | None = None
    at: datetime


@dataclass(frozen=True, slots=True)
class Seen:
    """One exposure as reports read it, with what people said about it."""

    tenant_id: str
    id: str
    is_shadow: bool
    revision: int
    arm: str
    unit: str
    request_id: str
    category: str
    tags: Mapping[str, str]
    code: str
    is_failure: bool
    latency_ms: float
    gpu_ms: int
    upstream_microusd: int | None
    metrics: Mapping[str, float]
    pictures: Mapping[str, str] | None
    at: datetime
    verdicts: frozenset[str]
    """The latest of accepted and rejected, and what else was said; none about a shadow, which
    nobody was shown."""


NAMES = tuple(name for name in Seen.__dataclass_fields__ if name != "verdicts")
DOCUMENTS = ("tags", "metrics", "pictures")
# As text: SQLAlchemy's own reading of JSON takes as long as all the rest of a row.
COLUMNS = tuple(
    cast(getattr(Exposure, name), Text) if name in DOCUMENTS else getattr(Exposure, name)
    for name in NAMES
)
TAGS, METRICS, PICTURES = map(NAMES.index, DOCUMENTS)
NOTHING: frozenset[str] = frozenset()


async def insert_exposures(
    session: Session, exposures: Sequence[NewExposure], expires_at: datetime
) -> int:
    """`write_exposures`, as a part of the session's transaction."""
    connection = await session.connection()
    return await connection.run_sync(write_exposures, exposures, expires_at)


def write_exposures(
    connection: Connection, exposures: Sequence[NewExposure], expires_at: datetime
) -> int:
    """Write rows, and say how many are new or changed.

    A row that is there stays, so that a group may be written twice. Only of a job, whose attempts
    have one id, a better end is kept instead of a worse one: an answer before a failure, a failure
    before whatever else; in whichever order they come.

    Raises:
        IntegrityError: a tenant or an experiment is not there; nothing is written.
    """
    best: dict[tuple[str, str, bool], NewExposure] = {}
    for one in exposures:
        key = (one.tenant_id, one.id, one.is_shadow)
        if key not in best or _rank(one) > _rank(best[key]):
            best[key] = one
    if not best:
        return 0
    rows = [{**_columns_of(one), "expires_at": expires_at} for one in best.values()]
    return len(connection.execute(_build_upsert(connection.dialect.name), rows).all())


@lru_cache
def _build_upsert(dialect: str) -> Any:
    """Once: building it takes 0.6 ms, as long as a request takes the router."""
    insert = insert_on(dialect, Exposure)
    new = insert.excluded
    is_better = or_(new.code == "", and_(new.is_failure, ~Exposure.is_failure))
    changed = {
        column.name: new[column.name]
        for column in Exposure.__table__.columns
        if column.name not in IDENTITY
    }
    return insert.on_conflict_do_update(
        index_elements=IDENTITY, set_=changed, where=and_(Exposure.code != "", is_better)
    ).returning(Exposure.id)


async def read_exposures(
    session: Session,
    experiment_id: str,
    *,
    revision: int | None = None,
    tenant_id: str | None = None,
    since: datetime | None = None,
    limit: int = 200_000,
) -> list[Seen]:
    """The newest `limit` rows, shadows among them, the oldest first.

    Args:
        revision: of the allocation that chose the arm.
        tenant_id: only of this tenant.
    """
    condition = _belongs(experiment_id, revision, tenant_id, since)
    verdicts = await _read_verdicts(session, condition)
    newest = (
        select(*COLUMNS)
        .where(condition)
        .order_by(Exposure.at.desc(), Exposure.id.desc(), Exposure.is_shadow)
        .limit(limit)
    )
    found: list[Seen] = []
    known_tags: dict[str, Mapping[str, str]] = {}
    rows = await (await session.connection()).stream(newest, execution_options=PAGED)
    async for page in rows.partitions():
        for row in page:
            said = NOTHING if row[2] else verdicts.get((row[0], row[1]), NOTHING)
            values: list[Any] = [*row, said]
            tags = known_tags.get(row[TAGS])
            if tags is None:
                tags = known_tags[row[TAGS]] = from_json(row[TAGS])
            values[TAGS], values[METRICS] = tags, from_json(row[METRICS])
            values[PICTURES] = None if row[PICTURES] is None else from_json(row[PICTURES])
            found.append(Seen(*values))
    found.reverse()
    return found


async def count_exposures(
    session: Session, experiment_id: str, revision: int | None = None
) -> tuple[int, datetime | None]:
    """How many rows there are and when the newest was made: enough to know that nothing came."""
    counted = select(func.count(), func.max(Exposure.at)).where(
        _belongs(experiment_id, revision, None, None)
    )
    number, newest = (await session.execute(counted)).one()
    return number, newest


async def remove_expired_exposures(
    session: Session, tenant_id: str, now: datetime, limit: int
) -> int:
    """Up to `limit` rows of a tenant whose time is over."""
    picked = (
        select(*KEY)
        .where(Exposure.tenant_id == tenant_id, Exposure.expires_at <= now)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    gone = delete(Exposure).where(tuple_(*KEY).in_(select(*picked.c))).returning(Exposure.id)
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())


def _rank(one: NewExposure) -> int:
    return 2 if not one.code else int(one.is_failure)


def _columns_of(one: NewExposure) -> dict[str, Any]:
    columns = {name: getattr(one, name) for name in NewExposure.__dataclass_fields__}
    pictures = None if one.pictures is None else dict(one.pictures)
    columns |= {"tags": dict(one.tags), "metrics": dict(one.metrics), "pictures": pictures}
    return columns


def _belongs(
    experiment_id: str, revision: int | None, tenant_id: str | None, since: datetime | None
) -> ColumnElement[bool]:
    conditions = [Exposure.experiment_id == experiment_id]
    if revision is not None:
        conditions.append(Exposure.revision == revision)
    if tenant_id is not None:
        conditions.append(Exposure.tenant_id == tenant_id)
    if since is not None:
        conditions.append(Exposure.at >= since)
    return and_(*conditions)


async def _read_verdicts(
    session: Session, condition: ColumnElement[bool]
) -> dict[tuple[str, str], frozenset[str]]:
    """By tenant and exposure; an outcome names the request or the answer."""
    wanted = (Exposure.tenant_id, Exposure.id, Outcome.verdict, Outcome.at)
    of_tenant = Outcome.tenant_id == Exposure.tenant_id
    named = [
        select(*wanted)
        .join(Outcome, and_(of_tenant, Outcome.request_id == column))
        .where(condition, ~Exposure.is_shadow)
        for column in (Exposure.request_id, Exposure.id)
    ]
    both = union_all(*named).subquery()
    in_order = select(both.c.tenant_id, both.c.id, both.c.verdict).order_by(both.c.at)
    said: dict[tuple[str, str], set[str]] = {}
    rows = await (await session.connection()).stream(in_order, execution_options=PAGED)
    async for page in rows.partitions():
        for tenant_id, exposure_id, verdict in page:
            words = said.setdefault((tenant_id, exposure_id), set())
            if verdict in OPINIONS:
                words -= OPINIONS
            words.add(verdict.value)
    return {key: frozenset(words) for key, words in said.items()}
