"""How long work may be held in silence, and what a worker is told about what it holds."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from serve.store.tables import JobClass


@dataclass(frozen=True, kw_only=True)
class LeasePolicy:
    """How long a silent worker is trusted, and how often a job may fail."""

    lease_s: float = 60.0
    """Far longer than clocks differ between machines: each worker goes by its own."""
    max_attempts: int = 5
    backoff_s: float = 5.0
    max_backoff_s: float = 300.0

    def backoff_after(self, attempts: int) -> timedelta:
        doubled_s = self.backoff_s * 2.0 ** min(attempts - 1, 32)
        return timedelta(seconds=min(doubled_s, self.max_backoff_s))


@dataclass(frozen=True)
class Claim:
    """A job that is ours until `expires_at`; the token says which of its leases this is."""

    tenant_id: str
    job_id: str
    token: str
    attempt: int
    priority: JobClass
    request: dict[str, Any]
    expires_at: datetime
    version: str = ""
    predicted_gpu_ms: int = 0
    subject: str = ""
    deadline_at: datetime | None = None


@dataclass(frozen=True)
class Heartbeat:
    """What a worker learns when it says it is alive."""

    expires_at: datetime
    is_cancel_requested: bool
