"""Wire models: the same over HTTP and over a Ray handle."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.messages import Expert

Format = Literal["png", "webp", "jpeg", "tiff"]
Blend = Literal["exact", "seamless"]
Output = Literal["image", "layers"]
Quality = Literal["draft", "normal", "high"]
MaskConvention = Literal["white_edits", "black_edits", "alpha_edits"]


class Wire(BaseModel):
    """Base of every wire model: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TryOnOptions(Wire):
    """Everything a try-on request says besides its pictures."""

    expert: Expert
    """Which expert works on the picture."""
    version: str | None = Field(default=None, max_length=80)
    """`eye@2` or just `2`; the deployment's default when absent."""
    mask_convention: MaskConvention = "white_edits"
    """What the mask's white, black or transparent pixels mean: may be edited."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Same inputs and seed, same picture. Derived from the inputs when absent."""
    num_images: int = Field(default=1, ge=1, le=4)
    quality: Quality = "normal"
    """How many denoising steps; each version says what a tier means for it."""
    format: Format | None = None
    """Of the answer; the person picture's own when absent (HEIC is answered as PNG)."""
    blend: Blend = "exact"
    """`exact` keeps the expert's colours, `seamless` solves for no visible seam; both inside
    the region only."""
    output: Output = "image"
    """`layers` answers a zip: final picture, product layer, region, receipt."""
    unit: str | None = Field(default=None, max_length=200)
    """Whom an experiment keeps on one version: a SKU, collection or user of yours."""


class TryOnJson(TryOnOptions):
    """`POST /v1/tryon` as JSON: a picture is a data URI (`data:image/png;base64,...`) or an
    https URL."""

    person: str = Field(repr=False)
    product: str = Field(repr=False)
    mask: str | None = Field(default=None, repr=False)


class InputDigest(Wire):
    """One input picture as it was read."""

    sha256: str
    width: int
    height: int
    format: str


class OutsideReport(Wire):
    """The proof: the final file, decoded again, compared with the person picture."""

    max_abs_diff: int
    """Largest difference over every pixel outside the region, in source levels; 0 is identical."""
    lossless: bool
    """False for JPEG, whose compression touches every pixel: then the number is a measurement."""


class Affine(Wire):
    """Crop pixel (x, y) lies at person pixel (x * scale_x + left, y * scale_y + top)."""

    scale_x: float
    scale_y: float
    left: float
    top: float


class Upstream(Wire):
    """What a third party's API charged for the picture."""

    provider: str
    usd: float
    credits: float | None = None
    """In the provider's own unit, where it has one."""


class Receipt(Wire):
    """How one answer came to be; enough to make it again."""

    id: str
    request_id: str
    expert: Expert
    version: str
    bundle_sha256: str
    backend: str
    preview: bool
    """True when the picture is a draft to look at, not one to publish."""
    licence: str
    commercial_use: bool
    masker: str
    """`caller` when the request brought its own mask."""
    segmentation_cached: bool
    arm: str
    seed: int
    quality: Quality
    num_steps: int
    batch_size: int
    """Requests that shared the pass; the same inputs and seed in another batch may differ by
    rounding."""
    batch_id: str = ""
    """The same for all of one pass; empty when nothing else was in it."""
    batch_index: int = 0
    blend: Blend
    format: Format
    person: InputDigest
    product: InputDigest
    mask: InputDigest | None
    region_box: tuple[int, int, int, int] | None
    """x0, y0, x1, y1 of every pixel that may change, in person pixels."""
    crop_box: tuple[int, int, int, int] | None
    crop_size: tuple[int, int] | None
    """Width and height of what the expert saw."""
    affine: Affine | None
    outside: OutsideReport
    timings_ms: dict[str, float]
    upstream: Upstream | None = None
    """None when the picture was painted in this cluster."""
    notes: tuple[str, ...] = ()


class OutputImage(Wire):
    """One picture of a JSON answer."""

    media_type: str
    width: int
    height: int
    sha256: str
    data: str = Field(repr=False)
    """A data URI."""


class TryOnAnswer(Wire):
    """`POST /v1/tryon` answered as JSON."""

    id: str
    outputs: tuple[OutputImage, ...]
    receipt: Receipt


class ModelCard(Wire):
    """One expert version as `GET /v1/models` lists it."""

    version: str
    expert: Expert
    title: str
    status: str
    """Published status of the expert."""
    state: Literal["ready", "starting", "idle"]
    """`idle` when it has no replica and starts on the first request."""
    default: bool
    backend: str
    preview: bool
    licence: str
    commercial_use: bool
    steps: dict[str, int]


class ModelList(Wire):
    """Every version this deployment serves."""

    models: tuple[ModelCard, ...]


class Readiness(Wire):
    """`GET /readyz`: ready only when everything that must answer does."""

    ready: bool
    waiting_for: tuple[str, ...] = ()


class FieldProblem(Wire):
    """One field of the request that does not fit."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details, for every refusal and failure."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable; for programs."""
    request_id: str
    remedy: str | None = None
    """What to change, for people."""
    retry_after_s: Annotated[float | None, Field(ge=0)] = None
    errors: list[FieldProblem] | None = None
