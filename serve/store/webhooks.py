"""The outbox of webhooks: a message is written with what it tells, and sent afterwards.

Sent at least once: a sender that dies between the answer and its note about it leaves a message
that is sent again, under the same id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, literal, or_, select, tuple_, update

from serve.errors import NotFound
from serve.store.batch_tables import DeliveryState, WebhookDelivery
from serve.store.engine import Session
from serve.store.ids import ID, new_id
from serve.store.tables import Tenant

MAX_ERROR_CHARS = 500


@dataclass(frozen=True)
class Receiver:
    """Whose server is asked: one tenant's messages to one host."""

    tenant_id: str
    origin: str
    """How its URLs begin, `https://shop.example.org/`."""


@dataclass(frozen=True)
class DueDelivery:
    """A message that is ours to send until `lease_expires_at`."""

    tenant_id: str
    id: str
    attempt: int
    """Counts up for ever; says which attempt a note is about."""
    url: str
    payload: dict[str, Any]
    lease_expires_at: datetime

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.tenant_id, origin_of(self.url))


def origin_of(url: str) -> str:
    return "/".join(url.split("/", 3)[:3]) + "/"


async def enqueue(
    session: Session,
    *,
    tenant_id: str,
    event: str,
    subject_id: str,
    url: str,
    payload: dict[str, Any],
    now: datetime,
) -> WebhookDelivery:
    """Write a message to be sent, in the transaction of what it tells.

    Args:
        event: `job.succeeded`, `batch.finished` and so on.
        payload: what a GET of the subject would answer; goes out as the message's `data`.
    """
    delivery = WebhookDelivery(
        tenant_id=tenant_id,
        id=new_id("whd"),
        event=event,
        subject_id=subject_id,
        url=url,
        payload={"type": event, "timestamp": now.isoformat(), "data": payload},
        state=DeliveryState.PENDING,
        next_attempt_at=now,
        created_at=now,
    )
    session.add(delivery)
    await session.flush()
    return delivery


async def claim_due(
    session: Session,
    now: datetime,
    lease: timedelta,
    limit: int = 1,
    *,
    busy_tenants: Collection[str] = (),
    busy_receivers: Collection[Receiver] = (),
) -> list[DueDelivery]:
    """Take messages that are due, of any tenant; nobody else gets them until the lease ends.

    Args:
        busy_tenants: whose messages wait, because enough of them are being sent already.
        busy_receivers: as above, for one of a tenant's servers.
    """
    due = select(WebhookDelivery.tenant_id, WebhookDelivery.id).where(
        _is_pending(),
        WebhookDelivery.next_attempt_at <= now,
        # Theirs wait: nobody is asked on behalf of a tenant that was shut out.
        WebhookDelivery.tenant_id.not_in(select(Tenant.id).where(Tenant.disabled_at.is_not(None))),
    )
    if busy_tenants:
        due = due.where(WebhookDelivery.tenant_id.not_in(busy_tenants))
    if busy_receivers:
        due = due.where(~or_(*map(_goes_to, busy_receivers)))
    due = due.order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id).limit(limit)
    picked = due.with_for_update(skip_locked=True).cte("picked")
    taken = (
        update(WebhookDelivery)
        .where(KEY.in_(select(picked.c.tenant_id, picked.c.id)))
        .values(attempts=WebhookDelivery.attempts + 1, next_attempt_at=now + lease)
        .returning(WebhookDelivery)
    )
    rows = await session.scalars(taken, execution_options=UNSEEN)
    return [
        DueDelivery(row.tenant_id, row.id, row.attempts, row.url, row.payload, row.next_attempt_at)
        for row in sorted(rows, key=lambda row: row.id)
    ]


async def mark_delivered(session: Session, due: DueDelivery, status: int, now: datetime) -> bool:
    """Note that it arrived; False where another attempt was begun meanwhile."""
    return await _note(
        session,
        due,
        state=DeliveryState.DELIVERED,
        last_status=status,
        last_error=None,
        delivered_at=now,
    )


async def mark_failed(
    session: Session,
    due: DueDelivery,
    *,
    status: int | None,
    error: str,
    retry_at: datetime | None,
) -> bool:
    """Note that this attempt failed; False where another attempt was begun meanwhile.

    Args:
        status: the answer's, where there was one.
        retry_at: when to try again; none gives the message up.
    """
    values: dict[str, Any] = {"last_status": status, "last_error": error[:MAX_ERROR_CHARS]}
    if retry_at is None:
        values["state"] = DeliveryState.FAILED
    else:
        values["next_attempt_at"] = retry_at
    return await _note(session, due, **values)


async def redeliver(
    session: Session, tenant_id: str, delivery_id: str, now: datetime, lease: timedelta
) -> WebhookDelivery:
    """Send a message again under its own id; one that waits is brought forward.

    A pending one may be on its way right now, so it is sent when that attempt must be over.

    Raises:
        NotFound: the tenant has no such message.
    """
    delivery = await get_delivery(session, tenant_id, delivery_id, is_locked=True)
    if delivery.state is DeliveryState.PENDING:
        delivery.next_attempt_at = min(delivery.next_attempt_at, now + lease)
    else:
        delivery.state, delivery.next_attempt_at = DeliveryState.PENDING, now
        delivery.delivered_at = None
    await session.flush()
    return delivery


async def get_delivery(
    session: Session, tenant_id: str, delivery_id: str, *, is_locked: bool = False
) -> WebhookDelivery:
    """
    Raises:
        NotFound: the tenant has no such message.
    """
    found = select(WebhookDelivery).where(_is(tenant_id, delivery_id))
    # PostgreSQL stumbles over a NUL, and no id looks like that.
    is_id = ID.fullmatch(delivery_id) is not None
    if is_locked:
        found = found.with_for_update()
    delivery = await session.scalar(found, execution_options=UNSEEN) if is_id else None
    if delivery is None:
        raise NotFound(
            "There is no such delivery.", remedy="GET /v1/webhooks/deliveries lists yours"
        )
    return delivery


async def list_deliveries(
    session: Session,
    tenant_id: str,
    *,
    state: DeliveryState | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Sequence[WebhookDelivery]:
    """Newest first, from the one after `after` on."""
    found = select(WebhookDelivery).where(WebhookDelivery.tenant_id == tenant_id)
    if state is not None:
        found = found.where(WebhookDelivery.state == state)
    if after is not None:
        found = found.where(WebhookDelivery.id < after)
    found = found.order_by(WebhookDelivery.id.desc()).limit(limit)
    return (await session.scalars(found)).all()


UNSEEN = {"populate_existing": True, "synchronize_session": False}


KEY = tuple_(WebhookDelivery.tenant_id, WebhookDelivery.id)


def _is(tenant_id: str, delivery_id: str) -> ColumnElement[bool]:
    return and_(WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.id == delivery_id)


def _is_pending() -> ColumnElement[bool]:
    """Written into the statement: a prepared plan cannot use an index over one state otherwise."""
    pending = literal(DeliveryState.PENDING, WebhookDelivery.state.type, literal_execute=True)
    return WebhookDelivery.state == pending


def _goes_to(receiver: Receiver) -> ColumnElement[bool]:
    return and_(
        WebhookDelivery.tenant_id == receiver.tenant_id,
        WebhookDelivery.url.startswith(receiver.origin, autoescape=True),
    )


async def _note(session: Session, due: DueDelivery, **values: Any) -> bool:
    """Only while this attempt is the latest: a note that comes late says nothing about the next."""
    noted = (
        update(WebhookDelivery)
        .where(
            _is(due.tenant_id, due.id),
            WebhookDelivery.attempts == due.attempt,
            _is_pending(),
        )
        .values(**values)
        .returning(WebhookDelivery.id)
    )
    return await session.scalar(noted, execution_options=UNSEEN) is not None
