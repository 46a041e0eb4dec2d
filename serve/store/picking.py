"""Which waiting jobs may be taken now, and whose they are: the statements behind claiming."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, func, literal, select
from sqlalchemy.orm import aliased

from serve.store.columns import Rank
from serve.store.engine import Session
from serve.store.tables import Job, JobClass, JobState, Tenant
from serve.store.upserts import is_postgres


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A tenant with work of one class that could start now."""

    tenant_id: str
    priority: JobClass
    policy: dict[str, Any]


def is_in(state: JobState) -> ColumnElement[bool]:
    """Written into the statement: a prepared plan cannot use an index over one state otherwise."""
    return Job.state == literal(state, Job.state.type, literal_execute=True)


def pick_runnable(
    now: datetime,
    limit: int,
    *,
    tenant_id: str | None = None,
    priority: JobClass | None = None,
    full_versions: Sequence[str] = (),
    full_tenants: Sequence[str] = (),
) -> Select[str, str]:
    """SQLite writes one transaction at a time and has no `FOR UPDATE`; there it is left out."""
    picked = select(Job.tenant_id, Job.id).where(is_in(JobState.QUEUED), Job.runnable_at <= now)
    if tenant_id is not None:
        picked = picked.where(Job.tenant_id == tenant_id)
    if priority is not None:
        picked = picked.where(Job.priority == priority)
    if full_versions:
        picked = picked.where(Job.version.not_in(full_versions))
    if full_tenants:
        picked = picked.where(Job.tenant_id.not_in(full_tenants))
    oldest = picked.order_by(Job.priority, Job.runnable_at, Job.id).limit(limit)
    return oldest.with_for_update(skip_locked=True)


async def find_waiting(session: Session, now: datetime) -> list[Waiting]:
    """Every tenant with work to start, however much of it: one step of an index per tenant.

    Counting distinct tenants would read every waiting job; ten thousand of one tenant cost as
    much here as one.
    """
    tenants = _walk_tenants()
    ranks = select(literal(JobClass.INTERACTIVE, Rank(JobClass)).label("priority")).union_all(
        select(literal(JobClass.BATCH, Rank(JobClass)))
    )
    rank = ranks.subquery("ranks")
    runnable = (
        select(literal(1))
        .select_from(Job)
        .where(
            is_in(JobState.QUEUED),
            Job.tenant_id == tenants.c.tenant_id,
            Job.priority == rank.c.priority,
            Job.runnable_at <= now,
        )
        .correlate(tenants, rank)
        .limit(1)
        .scalar_subquery()
    )
    found = (
        select(Tenant.id, rank.c.priority, Tenant.policy)
        .select_from(tenants)
        .join(Tenant, Tenant.id == tenants.c.tenant_id)
        .join(rank, literal(True))
        # Not EXISTS: PostgreSQL would turn that into a join with every waiting job.
        .where(Tenant.disabled_at.is_(None), runnable.is_not(None))
        .order_by(Tenant.id, rank.c.priority)
    )
    rows = await session.execute(found)
    return [Waiting(tenant_id=row[0], priority=row[1], policy=row[2]) for row in rows]


def _walk_tenants() -> CTE:
    """A loose index scan: the least tenant, then the least above it, until there is none.

    Source: wiki.postgresql.org/wiki/Loose_indexscan
    """
    walk = select(_least(aliased(Job)).scalar_subquery().label("tenant_id")).cte(
        "walk", recursive=True
    )
    other = aliased(Job)
    above = _least(other).where(other.tenant_id > walk.c.tenant_id).correlate(walk)
    return walk.union_all(select(above.scalar_subquery()).where(walk.c.tenant_id.is_not(None)))


def _least(job: type[Job]) -> Select[str]:
    """In the whole order of the index that shall be used: a minimum would let SQLite take the one
    in which the jobs that have ended lie between the tenants."""
    state = literal(JobState.QUEUED, Job.state.type, literal_execute=True)
    ordered = select(job.tenant_id).where(job.state == state)
    return ordered.order_by(job.tenant_id, job.priority, job.runnable_at, job.id).limit(1)


async def count_running(session: Session) -> dict[str, int]:
    """Jobs that somebody holds, per tenant."""
    counted = (
        select(Job.tenant_id, func.count()).where(is_in(JobState.RUNNING)).group_by(Job.tenant_id)
    )
    return {tenant_id: count for tenant_id, count in await session.execute(counted)}


async def lock_tenant(session: Session, tenant_id: str) -> int:
    """Until the commit nobody else claims of this tenant; says how many of its jobs run.

    Not the tenant's row: a batch of ten thousand cells holds that for seconds while it starts, and
    a runner that waits for one tenant claims for no other.
    """
    if is_postgres(session):
        number = func.hashtextextended(f"claim/{tenant_id}", 0)
        await session.execute(select(func.pg_advisory_xact_lock(number)))
    counted = (
        select(func.count())
        .select_from(Job)
        .where(is_in(JobState.RUNNING), Job.tenant_id == tenant_id)
    )
    return await session.scalar(counted) or 0
