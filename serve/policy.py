"""What a tenant may do: one document, the same in YAML, over HTTP and in the database."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serve.described import Described
from serve.messages import Expert

Scope = Literal["tryon", "jobs", "versions", "review", "admin"]
"""`versions`: may name the version it wants, and pin a collection to versions."""
SCOPES: tuple[Scope, ...] = ("tryon", "jobs", "versions", "review", "admin")
Priority = Literal["interactive", "batch"]

DAY_S = 86_400.0
# What is larger is a mistake, and would not fit into the store's whole milliseconds.
MAX_COUNT = 10**12
MAX_RETENTION_S = 36_500 * DAY_S

VersionName = Annotated[str, Field(pattern=r"^[a-z]+@[a-z0-9][a-z0-9._-]{0,62}$")]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]
RetentionSeconds = Annotated[float, Field(ge=0, le=MAX_RETENTION_S)]


class TenantPolicy(Described):
    """Limits of one tenant; what is absent is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: tuple[Expert, ...] | None = None
    """Experts it may use; all when absent."""
    versions: Annotated[tuple[VersionName, ...], Field(max_length=1000)] | None = None
    """Versions it may name or get, such as `eye@1`; all of its experts' when absent."""
    requests_per_minute: PositiveCount | None = None
    """Over all routers, in any 60 s; more are answered 429."""
    concurrency: PositiveCount | None = None
    """Try-ons at once: more synchronous ones are answered 429, more jobs wait."""
    monthly_gpu_seconds: Annotated[float, Field(ge=0, le=MAX_COUNT)] | None = None
    """Of one UTC month; a reservation above what is left is answered 429."""
    monthly_images: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Of one UTC month, as above."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Its part of the devices against the other tenants' while all of them wait."""
    max_priority: Priority = "interactive"
    """The highest class its work may have; `batch` goes behind everybody's interactive work."""
    max_queued_jobs: PositiveCount = 50_000
    """Jobs that may wait at once, batches' cells included."""
    input_retention_s: RetentionSeconds = 30 * DAY_S
    """How long uploaded pictures are kept; at 0 they go as soon as their job has ended."""
    result_retention_s: RetentionSeconds = 30 * DAY_S
    """How long results of jobs, and pairs of pictures that versions are compared by, are kept; at 0
    only synchronous answers are given."""

    def allows(self, expert: str, version: str) -> bool:
        """Whether work of the tenant may run on this version of this expert."""
        is_expert = self.experts is None or expert in self.experts
        return is_expert and (self.versions is None or version in self.versions)
