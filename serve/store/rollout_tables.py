"""The tables of rollouts: where each one stands, and every decision with what made it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from serve.store.columns import choice
from serve.store.tables import Id, Table

OPEN = text("finished_at IS NULL")


class RolloutState(StrEnum):
    """The last three are final."""

    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class Rollout(Table):
    """A version on its way to being the default. Whoever holds `lease_token` may decide, until it
    expires."""

    __tablename__ = "rollouts"
    __table_args__ = (
        Index(None, "created_at"),
        # At most one way at a time for each expert.
        Index("uq_rollouts_open", "expert", unique=True, sqlite_where=OPEN, postgresql_where=OPEN),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    told_tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    """Whose webhook secret signs what is told."""
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    expert: Mapped[str] = mapped_column(String(40))
    plan: Mapped[dict[str, Any]]
    """`serve.designs.RolloutPlan`."""
    state: Mapped[RolloutState] = mapped_column(choice(RolloutState, "state"))
    reason: Mapped[str] = mapped_column(String(500), default="")
    """What it waits for, or how it ended."""
    cause: Mapped[str] = mapped_column(String(500), default="")
    """The reason without its numbers: while it stays the same, nothing is logged again."""
    stage: Mapped[int]
    """Index into the plan's stages; -1 before the first has begun."""
    revision: Mapped[int]
    """Of the allocation that began the stage: its exposures are what the stage is judged by."""
    stage_started_at: Mapped[datetime]
    approved_stage: Mapped[int | None]
    """The stage that a person allowed to be left."""
    num_decisions: Mapped[int] = mapped_column(default=0)
    numbers: Mapped[dict[str, Any]]
    """What was known when it was last looked at; written with the lease."""
    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_expires_at: Mapped[datetime | None]
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class RolloutDecision(Table):
    """One decision, numbered from 1 without gaps; never changed."""

    __tablename__ = "rollout_decisions"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(40))
    """start, promote, hold, roll_back, finish, pause, resume, abort, approve, freeze."""
    stage: Mapped[int]
    to_stage: Mapped[int | None]
    is_dry_run: Mapped[bool]
    reason: Mapped[str] = mapped_column(String(1000))
    numbers: Mapped[dict[str, Any]]
