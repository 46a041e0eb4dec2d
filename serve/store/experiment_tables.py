"""The tables of experiments, and of what decides which version a request gets.

Experiments, defaults and served versions are the cluster's and have no tenant; what requests leave
behind them is the tenant's. The rules are those of `tables.py`.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Double, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from serve.store.columns import Document, choice
from serve.store.tables import Id, Table

Version = String(80)


class RoutingRevision(Table):
    """One row: raised in the transaction of every change of what routers choose by, so that they
    need to read no more than this to know that nothing changed."""

    __tablename__ = "routing_revision"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger)


class ExperimentState(StrEnum):
    """`paused` assigns nobody; `frozen` assigns as before, and nobody may move a weight."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    FROZEN = "frozen"
    ENDED = "ended"


class Experiment(Table):
    """One experiment as it stands."""

    __tablename__ = "experiments"
    __table_args__ = (Index(None, "created_at"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    design: Mapped[dict[str, Any]]
    """`serve.designs.ExperimentDesign`; its weights are those of the newest allocation."""
    state: Mapped[ExperimentState] = mapped_column(choice(ExperimentState, "state"))
    reason: Mapped[str] = mapped_column(String(500), default="")
    """Why it is in this state, where somebody or something said so."""
    revision: Mapped[int]
    """Of the newest allocation."""
    created_by: Mapped[str] = mapped_column(String(200))
    """The id of a key, or the name of what acts alone."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class ExperimentAllocation(Table):
    """Which buckets were whose from one change of the weights to the next; never changed."""

    __tablename__ = "experiment_allocations"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ranges: Mapped[list[Any]] = mapped_column(Document)
    """`[[end, arm], ...]`, the ends exclusive and rising to 10000."""
    reason: Mapped[str] = mapped_column(String(500), default="")
    at: Mapped[datetime]


class ExpertDefault(Table):
    """The version an expert's requests get that no experiment, pin or caller decides about."""

    __tablename__ = "expert_defaults"

    expert: Mapped[str] = mapped_column(String(40), primary_key=True)
    version: Mapped[str] = mapped_column(Version)
    previous: Mapped[str | None] = mapped_column(Version)
    """The last good one before it."""
    changed_by: Mapped[str] = mapped_column(String(200))
    changed_at: Mapped[datetime]


class ServedState(StrEnum):
    """`wanted` until it runs; `removing` until it is gone."""

    WANTED = "wanted"
    READY = "ready"
    FAILED = "failed"
    REMOVING = "removing"


class ServedVersion(Table):
    """A version that was added to the running cluster, beside those of the family file."""

    __tablename__ = "served_versions"

    version: Mapped[str] = mapped_column(Version, primary_key=True)
    bundle: Mapped[dict[str, Any]]
    """The bundle's document, as its YAML has it."""
    home: Mapped[str] = mapped_column(String(1000), default="")
    """The folder that relative paths of the bundle start from, on the cluster's machines."""
    deployed: Mapped[dict[str, Any]]
    """`serve.config.DeployedVersion`: autoscaling, resources and so on."""
    state: Mapped[ServedState] = mapped_column(choice(ServedState, "state"))
    reason: Mapped[str] = mapped_column(String(2000), default="")
    """Why it is not ready."""
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Pin(Table):
    """A collection that stays on the versions it was begun with."""

    __tablename__ = "pins"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    collection: Mapped[str] = mapped_column(String(200), primary_key=True)
    manifest: Mapped[dict[str, Any]]
    """`{expert: {"version": ..., "bundle_sha256": ...}}`."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Exposure(Table):
    """One request that took part in an experiment: which arm it got, and what came of it.

    Holds no picture and no name: the unit is a hash. A challenger's shadow is a row of its own,
    beside that of the request whose inputs it had.
    """

    __tablename__ = "exposures"
    __table_args__ = (
        Index(None, "experiment_id", "revision", "at"),
        Index(None, "tenant_id", "request_id"),
        Index(None, "tenant_id", "expires_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    """Of the answer (`tr_...`) or the job: written again it is the same row."""
    is_shadow: Mapped[bool] = mapped_column(primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    revision: Mapped[int]
    """Of the allocation that chose the arm."""
    arm: Mapped[str] = mapped_column(Id)
    version: Mapped[str] = mapped_column(Version)
    unit: Mapped[str] = mapped_column(String(32))
    """Hash of what was kept on this arm."""
    request_id: Mapped[str] = mapped_column(String(200))
    category: Mapped[str] = mapped_column(String(80), default="")
    tags: Mapped[dict[str, Any]]
    code: Mapped[str] = mapped_column(String(60), default="")
    """Of the problem it ended with; empty where it was answered."""
    is_failure: Mapped[bool]
    """The problem may be the version's: no mistake of the caller's, no caller who left."""
    latency_ms: Mapped[float] = mapped_column(Double)
    gpu_ms: Mapped[int] = mapped_column(BigInteger, default=0)
    upstream_microusd: Mapped[int | None] = mapped_column(BigInteger)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    """By `serve.designs.MetricName`, those that were measured."""
    pictures: Mapped[dict[str, Any] | None]
    """Where a pair of pictures was kept: `{"painted": "ast_...", "before": ..., "product": ...}`,
    assets of the tenant."""
    at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Verdict(StrEnum):
    """What became of a picture, as the caller's people or shop say."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    RETURNED = "returned"
    CONVERTED = "converted"


class Outcome(Table):
    """What somebody said about an answer, joined to its exposure by the request's id."""

    __tablename__ = "outcomes"
    __table_args__ = (
        UniqueConstraint("tenant_id", "request_id", "verdict"),
        Index(None, "tenant_id", "expires_at"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    request_id: Mapped[str] = mapped_column(String(200))
    """`X-Request-Id` of the answer, its id (`tr_...`), or the job's."""
    verdict: Mapped[Verdict] = mapped_column(choice(Verdict, "verdict"))
    reason: Mapped[str] = mapped_column(String(200), default="")
    at: Mapped[datetime]
    expires_at: Mapped[datetime]
