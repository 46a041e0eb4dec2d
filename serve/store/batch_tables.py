"""The tables of batches and of webhooks; the rules are those of `tables.py`."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from serve.store.columns import Rank, choice
from serve.store.tables import Id, JobClass, Table

HELD_UNTIL = datetime(9999, 1, 1, tzinfo=UTC)
"""`runnable_at` of a waiting job whose batch is paused: no claim ever reaches it."""


class BatchState(StrEnum):
    """A draft has an estimate and no job yet."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


class Batch(Table):
    """Products x persons with one set of options; each cell is a job with this batch's id."""

    __tablename__ = "batches"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    key_id: Mapped[str | None] = mapped_column(Id)
    state: Mapped[BatchState] = mapped_column(choice(BatchState, "state"))
    priority: Mapped[JobClass] = mapped_column(Rank(JobClass))
    version: Mapped[str] = mapped_column(String(120))
    spec: Mapped[dict[str, Any]]
    """What was asked for: options, products, persons, webhook URL."""
    num_cells: Mapped[int]
    num_ended: Mapped[int] = mapped_column(default=0)
    """Cells in a final state; raising it is what decides which of them was the last."""
    predicted_gpu_ms: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class WebhookSecret(Table):
    """A secret that signs a tenant's webhooks. Readable, unlike a key's: signing needs it."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    secret: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    """After a rotation both sign until this."""


class DeliveryState(StrEnum):
    """`failed` is given up: a person may ask for another delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


PENDING = text("state = 'pending'")


class WebhookDelivery(Table):
    """One message to one URL, written with what it tells, in one transaction."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "tenant_id", "created_at"),
        Index(
            "ix_webhook_deliveries_due",
            "next_attempt_at",
            sqlite_where=PENDING,
            postgresql_where=PENDING,
        ),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    """Also the message's `webhook-id`, the same at every attempt."""
    event: Mapped[str] = mapped_column(String(40))
    """`job.succeeded`, `batch.finished` and so on."""
    subject_id: Mapped[str] = mapped_column(Id)
    """The job or batch it is about."""
    url: Mapped[str] = mapped_column(String(4096))
    payload: Mapped[dict[str, Any]]
    state: Mapped[DeliveryState] = mapped_column(choice(DeliveryState, "state"))
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    """While an attempt is made: when another process may take it for lost."""
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
