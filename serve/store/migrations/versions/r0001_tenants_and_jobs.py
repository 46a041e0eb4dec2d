"""Tenants, keys, the usage ledger, assets, jobs with their events, and the audit log."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_tenants()
    _create_api_keys()
    _create_usage_ledger()
    _create_assets()
    _create_jobs()
    _create_job_events()
    _create_idempotency_keys()
    _create_audit_log()


def downgrade() -> None:
    for table in (
        "audit_log",
        "idempotency_keys",
        "job_events",
        "jobs",
        "assets",
        "usage_ledger",
        "api_keys",
        "tenants",
    ):
        op.drop_table(table)


def document() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(JSONB(), "postgresql")


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("policy", document(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", document(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_api_keys_tenant_id_id")),
    )
    op.create_index(
        op.f("ix_api_keys_tenant_id_created_at"),
        "api_keys",
        ["tenant_id", "created_at"],
        unique=False,
    )


def _create_usage_ledger() -> None:
    op.create_table(
        "usage_ledger",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("work_item", sa.String(length=80), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("expert", sa.String(length=40), nullable=False),
        sa.Column("version", sa.String(length=120), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "reserved",
                "settled",
                "released",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("reserved_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("reserved_images", sa.Integer(), nullable=False),
        sa.Column("settled_gpu_ms", sa.BigInteger(), nullable=True),
        sa.Column("settled_images", sa.Integer(), nullable=True),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'reserved') = (closed_at IS NULL)",
            name=op.f("ck_usage_ledger_closed_has_time"),
        ),
        sa.CheckConstraint(
            "(state = 'settled') = (settled_gpu_ms IS NOT NULL AND settled_images IS NOT NULL)",
            name=op.f("ck_usage_ledger_settled_has_amounts"),
        ),
        sa.CheckConstraint(
            "reserved_gpu_ms >= 0 AND reserved_images >= 0",
            name=op.f("ck_usage_ledger_reserved_not_negative"),
        ),
        sa.CheckConstraint(
            "settled_gpu_ms >= 0 AND settled_images >= 0",
            name=op.f("ck_usage_ledger_settled_not_negative"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "key_id"],
            ["api_keys.tenant_id", "api_keys.id"],
            name=op.f("fk_usage_ledger_tenant_id_key_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_usage_ledger_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "work_item", name=op.f("pk_usage_ledger")),
    )
    op.create_index(
        op.f("ix_usage_ledger_tenant_id_day"), "usage_ledger", ["tenant_id", "day"], unique=False
    )
    op.create_index(
        op.f("ix_usage_ledger_tenant_id_state_expires_at"),
        "usage_ledger",
        ["tenant_id", "state", "expires_at"],
        unique=False,
    )


def _create_assets() -> None:
    op.create_table(
        "assets",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "input", "result", name="kind", native_enum=False, create_constraint=True, length=16
            ),
            nullable=False,
        ),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("num_bytes >= 0", name=op.f("ck_assets_num_bytes_not_negative")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_assets_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_assets")),
        sa.UniqueConstraint(
            "tenant_id",
            "kind",
            "sha256",
            "subject",
            name=op.f("uq_assets_tenant_id_kind_sha256_subject"),
        ),
    )
    op.create_index(
        op.f("ix_assets_tenant_id_expires_at"), "assets", ["tenant_id", "expires_at"], unique=False
    )
    op.create_index(
        op.f("ix_assets_tenant_id_subject"), "assets", ["tenant_id", "subject"], unique=False
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "succeeded",
                "failed",
                "cancelled",
                "parked",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("request", document(), nullable=False),
        sa.Column("result", document(), nullable=True),
        sa.Column("error", document(), nullable=True),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("predicted_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("num_events", sa.Integer(), nullable=False),
        sa.Column("runnable_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_token IS NOT NULL)",
            name=op.f("ck_jobs_running_has_lease"),
        ),
        sa.CheckConstraint(
            "(lease_token IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("ck_jobs_lease_has_an_end"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "key_id"],
            ["api_keys.tenant_id", "api_keys.id"],
            name=op.f("fk_jobs_tenant_id_key_id"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_leases",
        "jobs",
        ["lease_expires_at"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_jobs_runnable",
        "jobs",
        ["priority", "runnable_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        op.f("ix_jobs_tenant_id_expires_at"), "jobs", ["tenant_id", "expires_at"], unique=False
    )
    op.create_index(
        op.f("ix_jobs_tenant_id_state_created_at"),
        "jobs",
        ["tenant_id", "state", "created_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_jobs_tenant_id_subject"), "jobs", ["tenant_id", "subject"], unique=False
    )
    op.create_index(
        "ix_jobs_tenant_runnable",
        "jobs",
        ["tenant_id", "priority", "runnable_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )


def _create_job_events() -> None:
    op.create_table(
        "job_events",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("data", document(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name=op.f("fk_job_events_tenant_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "sequence", name=op.f("pk_job_events")),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("response", document(), nullable=True),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(
        op.f("ix_idempotency_keys_tenant_id_expires_at"),
        "idempotency_keys",
        ["tenant_id", "expires_at"],
        unique=False,
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=True),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("detail", document(), nullable=False),
        sa.Column("previous_sha256", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("previous_sha256", name=op.f("uq_audit_log_previous_sha256")),
        sa.UniqueConstraint("sha256", name=op.f("uq_audit_log_sha256")),
    )
    op.create_index(
        op.f("ix_audit_log_tenant_id_sequence"),
        "audit_log",
        ["tenant_id", "sequence"],
        unique=False,
    )
