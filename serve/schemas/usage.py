"""What a tenant used, and what is left of its month."""

from datetime import date
from typing import Literal

from serve.schemas.base import Wire

UsageBy = Literal["day", "expert", "version", "key"]


class UsageItem(Wire):
    """One group of settled work; a field that it was not grouped by is null."""

    day: date | None = None
    """UTC."""
    expert: str | None = None
    version: str | None = None
    key_id: str | None = None
    requests: int
    """Try-ons that were delivered; what failed or was cancelled costs nothing."""
    images: int
    gpu_seconds: float
    gpu_seconds_per_image: float | None
    upstream_usd: float
    """What third parties charged for it."""
    usd: float | None
    """GPU-seconds at the configured price, and the upstream's charge; null without a price."""
    usd_per_image: float | None


class BudgetState(Wire):
    """One limit of the current UTC month."""

    limit: float | None
    """Null where there is none."""
    used: float
    reserved: float
    """By work that waits or runs."""
    left: float | None


class MonthBudget(Wire):
    """The current UTC month, whatever days were asked for."""

    month: str
    """`2026-11`."""
    gpu_seconds: BudgetState
    images: BudgetState


class UsageReport(Wire):
    """Settled work of some days."""

    tenant_id: str
    first: date
    last: date
    """Included."""
    by: tuple[UsageBy, ...]
    items: tuple[UsageItem, ...]
    total: UsageItem
    budget: MonthBudget
