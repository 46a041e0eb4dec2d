"""Work that is accepted now and done later: how it is asked for, polled and followed."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.messages import Expert
from serve.policy import Priority
from serve.schemas.assets import Subject
from serve.schemas.base import Wire, shown
from serve.schemas.receipt import Receipt
from serve.schemas.tryon import TryOnOptions

MAX_DEADLINE_S = 30 * 86_400
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobOptions(TryOnOptions):
    """What a job says besides its pictures: a try-on, and how it is to be done."""

    webhook_url: str | None = Field(default=None, max_length=4096)
    """Told when the job has ended; an https URL that anyone can reach."""
    priority: Priority = "interactive"
    """`batch` goes behind all interactive work; your tenant may have a ceiling."""
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_S)
    """Seconds from now after which the result is worth nothing: the job then fails."""
    subject: Subject = ""
    """Whose pictures these are, as you call them; what `erase` goes by."""


class JobJson(JobOptions):
    """`POST /v1/jobs` as JSON: a picture is a data URI, an https URL or an `ast_` id."""

    model_config = shown(
        expert="eye",
        person="https://shop.example/people/anna.jpg",
        product="ast_01m8a0k3v5r9c2x7p4t6w8y0zb",
        webhook_url="https://shop.example/hooks/sm4ll",
        subject="customer 4711",
    )

    person: str = Field(repr=False)
    product: str = Field(repr=False)
    mask: str | None = Field(default=None, repr=False)


class JobOutput(Wire):
    """One finished picture, or the zip of layers."""

    asset: str
    media_type: str
    width: int
    height: int
    sha256: str
    url: str
    """Where its bytes are, relative to this API."""


class JobProblem(Wire):
    """Why a job failed, or why its last attempt did."""

    code: str
    title: str
    detail: str
    remedy: str | None = None


class JobLinks(Wire):
    """Relative to this API."""

    self: str
    events: str
    cancel: str | None
    """`DELETE` it; null once the job has ended."""


class JobCard(Wire):
    """One job as it stands."""

    id: str
    status: JobStatus
    parked: bool
    """True where it failed so often that it is not tried again."""
    expert: Expert
    version: str
    """Chosen when the job was accepted; a retry runs on the same."""
    priority: Priority
    subject: str
    attempts: int
    quote_gpu_s: float
    """Predicted and reserved; what it really took is in the receipt and in your usage."""
    queue_position: int | None
    """Among your own waiting jobs, from 1; null when it does not wait, and in lists."""
    estimated_start_at: datetime | None
    """If nobody else were waiting; null when it does not wait."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    cancel_requested: bool
    """Somebody wants it cancelled, and its worker has not said yet that it has stopped."""
    batch: str | None
    cell: int | None
    outputs: tuple[JobOutput, ...]
    receipt: Receipt | None
    error: JobProblem | None
    links: JobLinks


class JobPage(Wire):
    """Newest first."""

    items: tuple[JobCard, ...]
    next: str | None
    """Pass it as `after` for the next page; null on the last."""


class JobEventCard(Wire):
    """One event of a job, as the client reads it from the stream."""

    id: Annotated[int, Field(ge=1)]
    kind: str
    data: dict[str, Any]
