"""What crosses between the job runner and a router: references, never pictures."""

from dataclasses import dataclass
from typing import Any

from serve.policy import Priority, TenantPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One attempt at one job."""

    tenant_id: str
    job_id: str
    lease_token: str
    """What this attempt says is written down only as long as this is the job's."""
    version: str
    priority: Priority
    request: dict[str, Any]
    subject: str
    policy: TenantPolicy
    timeout_s: float
    """What is not finished by then is stopped everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What a successful attempt made, and what it took."""

    result: dict[str, Any]
    gpu_ms: int
    images: int
    upstream_microusd: int | None = None
