"""Every table. A row that belongs to a tenant is found through its tenant, never around it.

`assets` and `jobs` have the tenant in their primary key, and what refers to them does too: a row
of one tenant cannot point at a row of another. Two indexes begin without the tenant, and a test
names them: workers claim across tenants.
"""

from datetime import date, datetime
from enum import IntEnum, StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from serve.store.columns import Document, Rank, UtcTime, choice

Id = String(40)
Sha256 = String(64)

# Named by rule, so that a migration can find what it changes on both databases.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class LedgerState(StrEnum):
    """A reservation is closed once, one way or the other."""

    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"


class JobState(StrEnum):
    """`parked` is a failure that nobody retries until a person has looked."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PARKED = "parked"


class JobClass(IntEnum):
    """Who goes first; smaller is sooner."""

    INTERACTIVE = 0
    BATCH = 1


class AssetKind(StrEnum):
    """Inputs and results have retentions of their own."""

    INPUT = "input"
    RESULT = "result"


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcTime, dict[str, Any]: Document, list[str]: Document}


class Tenant(Table):
    """A brand; what it may do is one document, read as a whole."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    policy: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class ApiKey(Table):
    """A key by the hash of its secret. Found by its id: the tenant is what it tells us."""

    __tablename__ = "api_keys"
    __table_args__ = (
        # What a job or a ledger entry of the tenant refers to.
        UniqueConstraint("tenant_id", "id"),
        Index(None, "tenant_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(Sha256)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class LedgerEntry(Table):
    """What one accepted work item was promised and what it cost, in whole milliseconds.

    The work item is the key: a retry, a crash and a replay meet the row that is already there.
    Integers, because sums of floats depend on their order and a ledger must balance.
    """

    __tablename__ = "usage_ledger"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "key_id"], ["api_keys.tenant_id", "api_keys.id"]),
        CheckConstraint("reserved_gpu_ms >= 0 AND reserved_images >= 0", "reserved_not_negative"),
        CheckConstraint("settled_gpu_ms >= 0 AND settled_images >= 0", "settled_not_negative"),
        CheckConstraint(
            "(state = 'settled') = (settled_gpu_ms IS NOT NULL AND settled_images IS NOT NULL)",
            "settled_has_amounts",
        ),
        CheckConstraint("(state = 'reserved') = (closed_at IS NULL)", "closed_has_time"),
        Index(None, "tenant_id", "day"),
        Index(None, "tenant_id", "state", "expires_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    work_item: Mapped[str] = mapped_column(String(80), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(Id)
    expert: Mapped[str] = mapped_column(String(40))
    version: Mapped[str] = mapped_column(String(120))
    state: Mapped[LedgerState] = mapped_column(choice(LedgerState, "state"))
    reserved_gpu_ms: Mapped[int] = mapped_column(BigInteger)
    reserved_images: Mapped[int]
    settled_gpu_ms: Mapped[int | None] = mapped_column(BigInteger)
    settled_images: Mapped[int | None]
    upstream_microusd: Mapped[int | None] = mapped_column(BigInteger)
    """What a third party's API charged, in millionths of a dollar; none where nobody did."""
    day: Mapped[date]
    """The UTC day of the reservation, which usage and budgets are summed by."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    """When a reservation whose router died may be released; none for a job's, which outlives it."""
    closed_at: Mapped[datetime | None]


class UsageCounter(Table):
    """Sums of one tenant's ledger over one UTC month, changed in the transactions that change it.

    A budget is one row to lock and compare, however many entries there are.
    """

    __tablename__ = "usage_counters"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    period: Mapped[str] = mapped_column(String(7), primary_key=True)
    """`2026-11`, of the entries' `day`."""
    reserved_gpu_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of open reservations only."""
    reserved_images: Mapped[int] = mapped_column(BigInteger, default=0)
    settled_gpu_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    settled_images: Mapped[int] = mapped_column(BigInteger, default=0)


class Asset(Table):
    """A picture somebody brought or got; its bytes lie under (tenant, kind, sha256).

    Two subjects with the same bytes are two rows over one blob: erasing one subject leaves the
    other's row, and the blob goes with the last row.
    """

    __tablename__ = "assets"
    __table_args__ = (
        CheckConstraint("num_bytes >= 0", "num_bytes_not_negative"),
        UniqueConstraint("tenant_id", "kind", "sha256", "subject"),
        Index(None, "tenant_id", "expires_at"),
        Index(None, "tenant_id", "subject"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[AssetKind] = mapped_column(choice(AssetKind, "kind"))
    sha256: Mapped[str] = mapped_column(Sha256)
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))
    width_px: Mapped[int | None]
    """As it is seen, upright; none where it is no picture."""
    height_px: Mapped[int | None]
    subject: Mapped[str] = mapped_column(String(128), default="")
    """Whose picture it is, as the tenant calls them; empty where it said nothing."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


QUEUED = text("state = 'queued'")
DUE_QUEUED = text("state = 'queued' AND deadline_at IS NOT NULL")
RUNNING = text("state = 'running'")


class Job(Table):
    """One accepted piece of work. Whoever holds `lease_token` may change it, until it expires."""

    __tablename__ = "jobs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "key_id"], ["api_keys.tenant_id", "api_keys.id"]),
        CheckConstraint("(state = 'running') = (lease_token IS NOT NULL)", "running_has_lease"),
        CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", "lease_has_an_end"),
        Index(
            "ix_jobs_runnable",
            "priority",
            "runnable_at",
            "id",
            sqlite_where=QUEUED,
            postgresql_where=QUEUED,
        ),
        Index("ix_jobs_leases", "lease_expires_at", sqlite_where=RUNNING, postgresql_where=RUNNING),
        # Few jobs have a deadline: without this, every look for late ones reads all that wait.
        Index(
            "ix_jobs_deadlines",
            "deadline_at",
            sqlite_where=DUE_QUEUED,
            postgresql_where=DUE_QUEUED,
        ),
        Index(
            "ix_jobs_tenant_runnable",
            "tenant_id",
            "priority",
            "runnable_at",
            "id",
            sqlite_where=QUEUED,
            postgresql_where=QUEUED,
        ),
        Index(None, "tenant_id", "state", "created_at"),
        Index(None, "tenant_id", "subject"),
        Index(None, "tenant_id", "expires_at"),
        Index(None, "tenant_id", "batch_id", "cell"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    key_id: Mapped[str | None] = mapped_column(Id)
    version: Mapped[str] = mapped_column(String(120), default="", server_default="")
    """Chosen when the job was accepted: a retry is the same work."""
    batch_id: Mapped[str | None] = mapped_column(Id)
    cell: Mapped[int | None]
    """Place in the batch's matrix, row by row."""
    state: Mapped[JobState] = mapped_column(choice(JobState, "state"), default=JobState.QUEUED)
    priority: Mapped[JobClass] = mapped_column(Rank(JobClass))
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    """References to assets and the receipt; never bytes."""
    error: Mapped[dict[str, Any] | None]
    """The last failure as a problem; a job that later succeeds has none."""
    subject: Mapped[str] = mapped_column(String(128), default="")
    predicted_gpu_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    num_events: Mapped[int] = mapped_column(default=0)
    """The sequence of its newest event; raising it is what serialises those who append."""
    runnable_at: Mapped[datetime]
    """Not before this; `HELD_UNTIL` while its batch is paused."""
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]


class JobEvent(Table):
    """What happened to a job, numbered from 1 without gaps: `Last-Event-ID` is the sequence."""

    __tablename__ = "job_events"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "job_id"], ["jobs.tenant_id", "jobs.id"], ondelete="CASCADE"
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(Id, primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class IdempotencyKey(Table):
    """The first answer to a POST. Without a response it still runs, or its router died."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "tenant_id", "expires_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(Sha256)
    """Of method, path and body: another of them with the same key is a conflict."""
    response: Mapped[dict[str, Any] | None]
    """Status, headers and the reference of the body; never bytes."""
    locked_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditRecord(Table):
    """One administrative act; each names the hash of the one before, and no two name the same."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "tenant_id", "sequence"),)

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(100))
    tenant_id: Mapped[str | None] = mapped_column(Id)
    """No foreign key: the record outlives what it is about."""
    target: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    previous_sha256: Mapped[str] = mapped_column(Sha256, unique=True)
    sha256: Mapped[str] = mapped_column(Sha256, unique=True)
