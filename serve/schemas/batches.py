"""Many products on many persons, as one piece of work."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from serve.messages import Expert
from serve.policy import Priority
from serve.schemas.assets import Subject
from serve.schemas.base import Wire, shown
from serve.schemas.jobs import JobOutput, JobProblem, JobStatus
from serve.schemas.receipt import Blend, Format, OutsideReport, Quality
from serve.schemas.tryon import MaskConvention, Tags, Word

MAX_CELLS = 10_000
MAX_SPEC_BYTES = 4 * 2**20
BatchStatus = Literal["draft", "running", "paused", "cancelled", "finished"]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
]


def _check_reference(value: str) -> str:
    if not value.startswith(("ast_", "https://", "http://")):
        raise ValueError("neither an asset id (ast_...) nor an https URL")
    return value


Reference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048, pattern=r"^[!-~]*$"),
    AfterValidator(_check_reference),
]
"""An `ast_` id, which is looked up now, or an https URL, which is fetched when its cell runs."""


class BatchProduct(Wire):
    """A row of the matrix."""

    sku: Name
    """As you call it; once in a batch."""
    image: Reference


class BatchPerson(Wire):
    """A column of the matrix."""

    name: Name
    """As you call them; once in a batch."""
    image: Reference
    mask: Reference | None = None
    """What may change in their picture; found in it when absent."""


class BatchOptions(Wire):
    """What holds for every cell, as in `POST /v1/tryon`."""

    seed: int | None = Field(default=None, ge=0, lt=2**32)
    num_images: int = Field(default=1, ge=1, le=4)
    quality: Quality = "normal"
    format: Format | None = None
    blend: Blend = "exact"
    mask_convention: MaskConvention = "white_edits"
    unit: Word | None = None
    """Which of your users all of it is for; see `POST /v1/tryon`."""
    collection: Word | None = None
    """What all of it belongs to: one experiment's arm, or the pin's version, for every cell."""
    category: Annotated[Word, Field(max_length=80)] | None = None
    tags: Tags = Field(default_factory=dict)


class BatchRequest(Wire):
    """`POST /v1/batches`: every product on every person."""

    model_config = shown(
        expert="eye",
        products=[
            {"sku": "A-100", "image": "https://shop.example/skus/A-100.png"},
            {"sku": "A-101", "image": "ast_01m8a0k3v5r9c2x7p4t6w8y0zb"},
        ],
        persons=[{"name": "anna", "image": "https://shop.example/people/anna.jpg"}],
        options={"quality": "high", "num_images": 2},
        webhook_url="https://shop.example/hooks/sm4ll",
    )

    expert: Expert
    version: str | None = Field(default=None, max_length=80)
    options: BatchOptions = BatchOptions()
    products: tuple[BatchProduct, ...] = Field(min_length=1, max_length=MAX_CELLS)
    persons: tuple[BatchPerson, ...] = Field(min_length=1, max_length=MAX_CELLS)
    subject: Subject = ""
    webhook_url: str | None = Field(default=None, max_length=4096)
    """Told once, when all cells have ended."""
    priority: Priority = "batch"
    start: bool = False
    """Start at once; otherwise it is a draft with an estimate."""

    @property
    def references(self) -> set[str]:
        masks = {person.mask for person in self.persons if person.mask is not None}
        pictures = {person.image for person in self.persons}
        return masks | pictures | {product.image for product in self.products}

    @model_validator(mode="after")
    def _check_matrix(self) -> Self:
        num_cells = len(self.products) * len(self.persons)
        if num_cells > MAX_CELLS:
            raise ValueError(f"{num_cells} cells; at most {MAX_CELLS}")
        for field, names in (
            ("products", [product.sku for product in self.products]),
            ("persons", [person.name for person in self.persons]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: the same name twice")
        return self


class BatchEstimate(Wire):
    """What all cells will take, predicted."""

    cells: int
    gpu_s: float
    images: int
    fits_budget: bool
    """Whether what is left of this month's budget covers a draft now; true once it has started."""
    estimated_duration_s: float
    """If nobody else used the version."""


class BatchCounts(Wire):
    """Cells by status; all zero for a draft."""

    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class BatchLinks(Wire):
    """Relative to this API."""

    self: str
    cells: str
    manifest: str | None
    """Null until it has ended."""


class BatchSummary(Wire):
    """One batch in a list."""

    id: str
    status: BatchStatus
    """A cancelled one may have cells that still run: it has ended with `finished_at`."""
    expert: Expert
    version: str
    """Chosen when the batch was made; every cell runs on it."""
    priority: Priority
    num_products: int
    num_persons: int
    num_cells: int
    num_ended: int
    progress: float
    """From 0 to 1."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: BatchLinks


class BatchCard(BatchSummary):
    """One batch as it stands."""

    counts: BatchCounts
    estimate: BatchEstimate


class BatchPage(Wire):
    """Newest first."""

    items: tuple[BatchSummary, ...]
    next: str | None


class CellCard(Wire):
    """One product on one person."""

    cell: int
    """From 0, row by row: product x number of persons + person."""
    sku: str
    person: str
    status: JobStatus
    job: str
    """Of its newest try."""
    attempts: int
    error: JobProblem | None


class CellPage(Wire):
    """In the order of the matrix."""

    items: tuple[CellCard, ...]
    next: int | None
    """Pass it as `after` for the next page; null on the last."""


class CellReceipt(Wire):
    """What a catalogue needs of a cell's receipt; the job has all of it."""

    version: str
    seed: int
    quality: Quality
    preview: bool
    outside: OutsideReport
    gpu_s: float


class ManifestEntry(Wire):
    """What became of one cell."""

    cell: int
    sku: str
    person: str
    status: JobStatus
    job: str
    outputs: tuple[JobOutput, ...]
    receipt: CellReceipt | None
    error: JobProblem | None


class Manifest(Wire):
    """What became of a batch, complete and in the order of the matrix."""

    batch: str
    status: BatchStatus
    version: str
    counts: BatchCounts
    finished_at: datetime
    cells: tuple[ManifestEntry, ...]
