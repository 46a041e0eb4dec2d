"""How one answer came to be."""

from typing import Literal

from serve.messages import Expert
from serve.schemas.base import Wire

Format = Literal["png", "webp", "jpeg", "tiff"]
Blend = Literal["exact", "seamless"]
Quality = Literal["draft", "normal", "high"]


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


class Usage(Wire):
    """What the tenant is charged for the answer."""

    gpu_s: float
    """This request's share of the passes that painted it."""
    images: int


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
    """Whether what is known of the person was remembered from an earlier request of the tenant."""
    product_cached: bool = False
    """The same of the product: cut out or encoded by the expert, or decoded where it does
    neither."""
    arm: str
    """Of the experiment; `explicit` where the caller named the version, `pinned` where its
    collection is, `default` otherwise."""
    experiment: str | None = None
    """Which one chose the version; none where none did."""
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
    usage: Usage
    upstream: Upstream | None = None
    """None when the picture was painted in this cluster."""
    notes: tuple[str, ...] = ()
