"""Batches, webhooks, sums of the ledger; the version a job runs on."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_ledger", sa.Column("upstream_microusd", sa.BigInteger(), nullable=True))
    op.add_column(
        "jobs", sa.Column("version", sa.String(length=120), server_default="", nullable=False)
    )
    op.add_column("jobs", sa.Column("batch_id", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("cell", sa.Integer(), nullable=True))
    op.create_index(
        op.f("ix_jobs_tenant_id_batch_id_cell"),
        "jobs",
        ["tenant_id", "batch_id", "cell"],
        unique=False,
    )
    due = sa.text("state = 'queued' AND deadline_at IS NOT NULL")
    op.create_index(
        "ix_jobs_deadlines", "jobs", ["deadline_at"], sqlite_where=due, postgresql_where=due
    )
    _create_usage_counters()
    _create_batches()
    _create_webhook_secrets()
    _create_webhook_deliveries()


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhook_secrets", "batches", "usage_counters"):
        op.drop_table(table)
    op.drop_index("ix_jobs_deadlines", "jobs")
    op.drop_index(op.f("ix_jobs_tenant_id_batch_id_cell"), "jobs")
    for column in ("cell", "batch_id", "version"):
        op.drop_column("jobs", column)
    op.drop_column("usage_ledger", "upstream_microusd")


def document() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(JSONB(), "postgresql")


def tenant_id(table: str) -> tuple[sa.Column[str], sa.ForeignKeyConstraint]:
    return sa.Column("tenant_id", sa.String(length=40), nullable=False), sa.ForeignKeyConstraint(
        ["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id")
    )


def choice(*words: str) -> sa.Enum:
    return sa.Enum(*words, name="state", native_enum=False, create_constraint=True, length=16)


def time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _create_usage_counters() -> None:
    op.create_table(
        "usage_counters",
        *tenant_id("usage_counters"),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("reserved_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("reserved_images", sa.BigInteger(), nullable=False),
        sa.Column("settled_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("settled_images", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "period", name=op.f("pk_usage_counters")),
    )


def _create_batches() -> None:
    op.create_table(
        "batches",
        *tenant_id("batches"),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column(
            "state",
            choice("draft", "running", "paused", "cancelled", "finished"),
            nullable=False,
        ),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.String(length=120), nullable=False),
        sa.Column("spec", document(), nullable=False),
        sa.Column("num_cells", sa.Integer(), nullable=False),
        sa.Column("num_ended", sa.Integer(), nullable=False),
        sa.Column("predicted_gpu_ms", sa.BigInteger(), nullable=False),
        time("created_at"),
        time("started_at", nullable=True),
        time("finished_at", nullable=True),
        time("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_batches")),
    )
    op.create_index(op.f("ix_batches_tenant_id_created_at"), "batches", ["tenant_id", "created_at"])


def _create_webhook_secrets() -> None:
    op.create_table(
        "webhook_secrets",
        *tenant_id("webhook_secrets"),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("secret", sa.String(length=200), nullable=False),
        time("created_at"),
        time("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_webhook_secrets")),
    )
    op.create_index(
        op.f("ix_webhook_secrets_tenant_id_created_at"),
        "webhook_secrets",
        ["tenant_id", "created_at"],
    )


def _create_webhook_deliveries() -> None:
    pending = sa.text("state = 'pending'")
    op.create_table(
        "webhook_deliveries",
        *tenant_id("webhook_deliveries"),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("event", sa.String(length=40), nullable=False),
        sa.Column("subject_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.String(length=4096), nullable=False),
        sa.Column("payload", document(), nullable=False),
        sa.Column("state", choice("pending", "delivered", "failed"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        time("next_attempt_at"),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.String(length=500), nullable=True),
        time("created_at"),
        time("delivered_at", nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(
        op.f("ix_webhook_deliveries_tenant_id_created_at"),
        "webhook_deliveries",
        ["tenant_id", "created_at"],
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_attempt_at"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
