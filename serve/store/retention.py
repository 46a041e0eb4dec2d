"""Rows whose time is over, or whose subject is to be forgotten; one tenant and one batch a time."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, tuple_, update

from serve.store.batch_tables import Batch, BatchState, DeliveryState, WebhookDelivery
from serve.store.engine import Session
from serve.store.job_states import ENDED
from serve.store.tables import Job, JobEvent, Tenant

UNSEEN = {"synchronize_session": False}
EVENT = (JobEvent.tenant_id, JobEvent.job_id, JobEvent.sequence)
PREVIEW_EVENT = "preview"


async def list_policies(
    session: Session, after: str, limit: int
) -> Sequence[tuple[str, dict[str, object]]]:
    """Ids and policies of tenants, the disabled ones too, after the id of the page before."""
    found = select(Tenant.id, Tenant.policy).where(Tenant.id > after).order_by(Tenant.id)
    return [(row.id, row.policy) for row in await session.execute(found.limit(limit))]


async def remove_expired_jobs(
    session: Session, tenant_id: str, now: datetime, finished_before: datetime, limit: int
) -> list[str]:
    """Up to `limit` ended jobs, with their events, past their expiry or finished long ago.

    A cell is as old as its batch, which has a manifest to write when all of them have ended.
    """
    is_old = and_(
        Job.expires_at.is_(None),
        Job.finished_at <= finished_before,
        _is_batch_over(finished_before),
    )
    is_over = or_(Job.expires_at <= now, is_old)
    return await _remove_jobs(session, tenant_id, is_over, limit)


async def remove_old_previews(
    session: Session, tenant_id: str, before: datetime, limit: int
) -> int:
    """Up to `limit` pictures in the story of a job, which stays: they are results too."""
    picked = (
        select(*EVENT)
        .where(
            JobEvent.tenant_id == tenant_id, JobEvent.kind == PREVIEW_EVENT, JobEvent.at <= before
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    is_picked = tuple_(*EVENT).in_(select(*picked.c))
    gone = delete(JobEvent).where(is_picked).returning(JobEvent.sequence)
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())


async def remove_old_batches(session: Session, tenant_id: str, before: datetime, limit: int) -> int:
    """Up to `limit` batches without a cell that finished before then, or were never started."""
    has_cells = exists().where(Job.tenant_id == tenant_id, Job.batch_id == Batch.id)
    is_over = or_(
        Batch.finished_at <= before,
        and_(Batch.state == BatchState.DRAFT, Batch.created_at <= before),
    )
    picked = (
        select(Batch.tenant_id, Batch.id)
        .where(Batch.tenant_id == tenant_id, is_over, ~has_cells)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    gone = (
        delete(Batch)
        .where(tuple_(Batch.tenant_id, Batch.id).in_(select(picked.c.tenant_id, picked.c.id)))
        .returning(Batch.id)
    )
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())


async def remove_subject_jobs(
    session: Session, tenant_id: str, subject: str, limit: int
) -> list[str]:
    """Up to `limit` ended jobs of one subject, with their events."""
    return await _remove_jobs(session, tenant_id, Job.subject == subject, limit)


async def find_unfinished(session: Session, tenant_id: str, subject: str) -> Sequence[str]:
    """Jobs of one subject that wait or run."""
    found = select(Job.id).where(
        Job.tenant_id == tenant_id, Job.subject == subject, Job.state.not_in(ENDED)
    )
    return (await session.scalars(found)).all()


async def expire_jobs(
    session: Session, tenant_id: str, job_ids: Sequence[str], now: datetime
) -> None:
    """The sweeper takes them as soon as they have ended."""
    expired = update(Job).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))
    await session.execute(expired.values(expires_at=now), execution_options=UNSEEN)


async def remove_deliveries_about(
    session: Session, tenant_id: str, subject_ids: Sequence[str]
) -> int:
    """Webhook messages about these jobs, sent or not; says how many."""
    about = and_(
        WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.subject_id.in_(subject_ids)
    )
    gone = delete(WebhookDelivery).where(about).returning(WebhookDelivery.id)
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())


async def remove_old_deliveries(
    session: Session, tenant_id: str, before: datetime, limit: int
) -> int:
    """Up to `limit` messages that were delivered or given up, made before then."""
    picked = (
        select(WebhookDelivery.tenant_id, WebhookDelivery.id)
        .where(
            WebhookDelivery.tenant_id == tenant_id,
            WebhookDelivery.created_at < before,
            WebhookDelivery.state != DeliveryState.PENDING,
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    key = tuple_(WebhookDelivery.tenant_id, WebhookDelivery.id)
    gone = (
        delete(WebhookDelivery)
        .where(key.in_(select(picked.c.tenant_id, picked.c.id)))
        .returning(WebhookDelivery.id)
    )
    return len((await session.scalars(gone, execution_options=UNSEEN)).all())


def _is_batch_over(before: datetime) -> ColumnElement[bool]:
    """Of a job: it is in no batch, or in one that finished before then or is gone."""
    is_of_job = and_(Batch.tenant_id == Job.tenant_id, Batch.id == Job.batch_id)
    is_young = or_(Batch.finished_at.is_(None), Batch.finished_at > before)
    return ~exists().where(is_of_job, is_young)


async def _remove_jobs(
    session: Session, tenant_id: str, condition: ColumnElement[bool], limit: int
) -> list[str]:
    picked = (
        select(Job.tenant_id, Job.id)
        .where(Job.tenant_id == tenant_id, Job.state.in_(ENDED), condition)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    gone = (
        delete(Job)
        .where(tuple_(Job.tenant_id, Job.id).in_(select(picked.c.tenant_id, picked.c.id)))
        .returning(Job.id)
    )
    return list(await session.scalars(gone, execution_options=UNSEEN))
