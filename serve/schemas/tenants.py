"""Tenants and the audit log as administrators see them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from serve.policy import TenantPolicy
from serve.schemas.base import Wire, shown

TENANT_ID = r"^[a-z0-9][a-z0-9_-]{0,39}$"

TenantId = Annotated[str, Field(pattern=TENANT_ID, examples=["acme"])]
# No control characters: PostgreSQL keeps no NUL, and a name is shown on one line.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class TenantCard(Wire):
    """One tenant."""

    id: str
    name: str
    policy: TenantPolicy
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None
    """Since when none of its keys works."""


class TenantList(Wire):
    """One page, newest first."""

    items: tuple[TenantCard, ...]
    next: str | None
    """`after` of the next page."""


class NewTenant(Wire):
    """What a tenant begins as."""

    model_config = shown(
        id="acme",
        name="Acme Eyewear",
        policy={"experts": ["eye"], "requests_per_minute": 600, "monthly_images": 100_000},
    )

    id: TenantId | None = None
    """Made when absent; never changes."""
    name: Name
    policy: TenantPolicy = TenantPolicy()


class TenantChange(Wire):
    """What is absent stays as it is."""

    model_config = shown(policy={"requests_per_minute": 1200, "monthly_images": None})

    name: Name | None = None
    policy: TenantPolicy | None = None
    """Only the fields given are changed; null takes a limit away."""
    disabled: bool | None = None
    """None of its keys works while it is; effective within 5 s on every router."""


class AuditEntry(Wire):
    """One administrative act."""

    sequence: int
    at: datetime
    actor: str
    """The id of the key that asked, or the name of what acted without one."""
    action: str
    tenant: str | None
    target: str
    detail: dict[str, Any]
    previous_sha256: str
    sha256: str
    """Over all of the above as canonical JSON, that of the record before included."""


class AuditPage(Wire):
    """One page, newest first."""

    items: tuple[AuditEntry, ...]
    next: str | None
    """`after` of the next page."""


class AuditVerdict(Wire):
    """What a walk along the whole chain found."""

    intact: bool
    num_records: int
    """In order, from the first on."""
    head_sha256: str
    """Of the last one in order: keep it elsewhere, and a log whose end was cut off is found too."""
    broken_sequence: int | None
    """The first record that does not fit."""
    reason: str | None
