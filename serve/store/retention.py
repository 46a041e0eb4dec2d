"""Rows whose time is over, or whose subject is to be forgotten; one tenant and one batch a time."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_, update

from serve.store.batch_tables import DeliveryState, WebhookDelivery
from serve.store.engine import Session
from serve.store.job_states import ENDED
from serve.store.tables import Job, Tenant

UNSEEN = {"synchronize_session": False}


async def list_policies(
    session: Session, after: str, limit: int
) -> Sequence[tuple[str, dict[str, object]]]:
    """Ids and policies of tenants, the disabled ones too, after the id of the page before."""
    found = select(Tenant.id, Tenant.policy).where(Tenant.id > after).order_by(Tenant.id)
    return [(row.id, row.policy) for row in await session.execute(found.limit(limit))]


async def remove_expired_jobs(
    session: Session, tenant_id: str, now: datetime, finished_before: datetime, limit: int
) -> list[str]:
    """Up to `limit` ended jobs, with their events, past their expiry or finished long ago."""
    is_over = or_(
        Job.expires_at <= now, and_(Job.expires_at.is_(None), Job.finished_at <= finished_before)
    )
    return await _remove_jobs(session, tenant_id, is_over, limit)


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
