"""The secrets that sign a tenant's webhooks: one that is current, and older ones for a while."""

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, or_, select

from serve.errors import NotFound
from serve.store.batch_tables import WebhookSecret
from serve.store.engine import Session
from serve.store.ids import new_id
from serve.store.tables import Tenant

PREFIX = "whsec_"
NUM_BYTES = 32
MAX_ACTIVE = 5
"""Every one of them is a signature in each message's header."""


def create_secret() -> str:
    """As Standard Webhooks writes them."""
    return PREFIX + base64.b64encode(secrets.token_bytes(NUM_BYTES)).decode()


async def list_secrets(session: Session, tenant_id: str, now: datetime) -> Sequence[WebhookSecret]:
    """Those that sign now, the current one first."""
    found = (
        select(WebhookSecret)
        .where(WebhookSecret.tenant_id == tenant_id, _is_active(now))
        .order_by(WebhookSecret.expires_at.is_not(None), WebhookSecret.id.desc())
    )
    return (await session.scalars(found)).all()


async def ensure_secret(session: Session, tenant_id: str, now: datetime) -> Sequence[WebhookSecret]:
    """Those that sign now; the first is made here, where there is none yet."""
    active = await list_secrets(session, tenant_id, now)
    if active:
        return active
    await _lock(session, tenant_id)
    # Another process may have made it while we waited for the lock.
    active = await list_secrets(session, tenant_id, now)
    return active or [await _add(session, tenant_id, now)]


async def rotate_secret(
    session: Session, tenant_id: str, overlap: timedelta, now: datetime
) -> WebhookSecret:
    """A new current secret; the others go on signing for the overlap, and not longer than before.

    Raises:
        NotFound: there is no such tenant.
    """
    await _lock(session, tenant_id)
    await session.execute(
        delete(WebhookSecret).where(WebhookSecret.tenant_id == tenant_id, ~_is_active(now))
    )
    active = await list_secrets(session, tenant_id, now)
    for position, secret in enumerate(active, start=2):
        if position > MAX_ACTIVE:
            await session.delete(secret)
        else:
            secret.expires_at = min(secret.expires_at or now + overlap, now + overlap)
    return await _add(session, tenant_id, now)


def _is_active(now: datetime) -> ColumnElement[bool]:
    return or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > now)


async def _lock(session: Session, tenant_id: str) -> None:
    """One at a time per tenant: two first secrets would both be current."""
    locked = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
    if await session.scalar(locked) is None:
        raise NotFound("There is no such tenant.")


async def _add(session: Session, tenant_id: str, now: datetime) -> WebhookSecret:
    secret = WebhookSecret(
        tenant_id=tenant_id, id=new_id("whs"), secret=create_secret(), created_at=now
    )
    session.add(secret)
    await session.flush()
    return secret
