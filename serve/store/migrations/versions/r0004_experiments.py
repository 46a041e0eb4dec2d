"""Experiments, exposures, outcomes, pins, versions that are added while it runs, and rollouts."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_routing()
    _create_experiments()
    _create_evidence()
    _create_rollouts()
    _let_keys_name_versions()


def downgrade() -> None:
    for table in (
        *("rollout_decisions", "rollouts", "outcomes", "exposures", "pins"),
        *("experiment_allocations", "experiments"),
        *("served_versions", "expert_defaults", "routing_revision"),
    ):
        op.drop_table(table)


def document() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(JSONB(), "postgresql")


def choice(name: str, *words: str) -> sa.Enum:
    return sa.Enum(*words, name=name, native_enum=False, create_constraint=True, length=16)


def time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def words(name: str, length: int, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length=length), nullable=nullable)


def refers(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [to], name=op.f(f"fk_{table}_{column}"))


def key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns), unique=False)


def _create_routing() -> None:
    routing = op.create_table(
        "routing_revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        key("routing_revision", "id"),
    )
    op.bulk_insert(routing, [{"id": 1, "revision": 1}])
    op.create_table(
        "expert_defaults",
        words("expert", 40),
        words("version", 80),
        words("previous", 80, nullable=True),
        words("changed_by", 200),
        time("changed_at"),
        key("expert_defaults", "expert"),
    )
    op.create_table(
        "served_versions",
        words("version", 80),
        sa.Column("bundle", document(), nullable=False),
        words("home", 1000),
        sa.Column("deployed", document(), nullable=False),
        sa.Column(
            "state", choice("state", "wanted", "ready", "failed", "removing"), nullable=False
        ),
        words("reason", 2000),
        words("created_by", 200),
        time("created_at"),
        time("updated_at"),
        key("served_versions", "version"),
    )


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        words("id", 40),
        sa.Column("design", document(), nullable=False),
        sa.Column(
            "state",
            choice("state", "draft", "running", "paused", "frozen", "ended"),
            nullable=False,
        ),
        words("reason", 500),
        sa.Column("revision", sa.Integer(), nullable=False),
        words("created_by", 200),
        time("created_at"),
        time("updated_at"),
        time("started_at", nullable=True),
        time("ended_at", nullable=True),
        key("experiments", "id"),
    )
    index("experiments", "created_at")
    op.create_table(
        "experiment_allocations",
        words("experiment_id", 40),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ranges", document(), nullable=False),
        words("reason", 500),
        time("at"),
        refers("experiment_allocations", "experiment_id", "experiments.id"),
        key("experiment_allocations", "experiment_id", "revision"),
    )
    op.create_table(
        "pins",
        words("tenant_id", 40),
        words("collection", 200),
        sa.Column("manifest", document(), nullable=False),
        time("created_at"),
        time("updated_at"),
        refers("pins", "tenant_id", "tenants.id"),
        key("pins", "tenant_id", "collection"),
    )


def _create_evidence() -> None:
    op.create_table(
        "exposures",
        words("tenant_id", 40),
        words("id", 80),
        sa.Column("is_shadow", sa.Boolean(), nullable=False),
        words("experiment_id", 40),
        sa.Column("revision", sa.Integer(), nullable=False),
        words("arm", 40),
        words("version", 80),
        words("unit", 32),
        words("request_id", 200),
        words("category", 80),
        sa.Column("tags", document(), nullable=False),
        words("code", 60),
        sa.Column("is_failure", sa.Boolean(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("upstream_microusd", sa.BigInteger(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("metrics", document(), nullable=False),
        sa.Column("pictures", document(), nullable=True),
        time("at"),
        time("expires_at"),
        refers("exposures", "tenant_id", "tenants.id"),
        refers("exposures", "experiment_id", "experiments.id"),
        key("exposures", "tenant_id", "id", "is_shadow"),
    )
    index("exposures", "experiment_id", "revision", "at")
    index("exposures", "tenant_id", "request_id")
    index("exposures", "tenant_id", "expires_at")
    op.create_table(
        "outcomes",
        words("tenant_id", 40),
        words("id", 40),
        words("request_id", 200),
        sa.Column(
            "verdict",
            choice("verdict", "accepted", "rejected", "returned", "converted"),
            nullable=False,
        ),
        words("reason", 200),
        time("at"),
        time("expires_at"),
        refers("outcomes", "tenant_id", "tenants.id"),
        key("outcomes", "tenant_id", "id"),
        sa.UniqueConstraint(
            "tenant_id",
            "request_id",
            "verdict",
            name=op.f("uq_outcomes_tenant_id_request_id_verdict"),
        ),
    )
    index("outcomes", "tenant_id", "expires_at")


def _create_rollouts() -> None:
    is_open = sa.text("finished_at IS NULL")
    op.create_table(
        "rollouts",
        words("id", 40),
        words("told_tenant_id", 40),
        words("experiment_id", 40),
        words("expert", 40),
        sa.Column("plan", document(), nullable=False),
        sa.Column(
            "state",
            choice("state", "running", "paused", "promoted", "rolled_back", "aborted"),
            nullable=False,
        ),
        words("reason", 500),
        words("cause", 500),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        time("stage_started_at"),
        sa.Column("approved_stage", sa.Integer(), nullable=True),
        sa.Column("num_decisions", sa.Integer(), nullable=False),
        sa.Column("numbers", document(), nullable=False),
        words("lease_token", 32, nullable=True),
        time("lease_expires_at", nullable=True),
        words("created_by", 200),
        time("created_at"),
        time("updated_at"),
        time("finished_at", nullable=True),
        refers("rollouts", "told_tenant_id", "tenants.id"),
        refers("rollouts", "experiment_id", "experiments.id"),
        key("rollouts", "id"),
    )
    index("rollouts", "created_at")
    op.create_index(
        "uq_rollouts_open",
        "rollouts",
        ["expert"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "rollout_decisions",
        words("rollout_id", 40),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        time("at"),
        words("actor", 200),
        words("action", 40),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("to_stage", sa.Integer(), nullable=True),
        sa.Column("is_dry_run", sa.Boolean(), nullable=False),
        words("reason", 1000),
        sa.Column("numbers", document(), nullable=False),
        refers("rollout_decisions", "rollout_id", "rollouts.id"),
        key("rollout_decisions", "rollout_id", "sequence"),
    )


def _let_keys_name_versions() -> None:
    """What every key could do until now needs a scope from here on: those there are get it."""
    connection = op.get_bind()
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", document()))
    for row in connection.execute(sa.select(keys.c.id, keys.c.scopes)).all():
        scopes = json.loads(row.scopes) if isinstance(row.scopes, str) else list(row.scopes)
        if "versions" not in scopes and {"tryon", "jobs"} & set(scopes):
            changed = sa.update(keys).where(keys.c.id == row.id)
            connection.execute(changed.values(scopes=[*scopes, "versions"]))
