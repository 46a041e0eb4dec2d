"""What a try-on request says and how it is answered."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve.messages import Expert
from serve.schemas.base import Wire, shown
from serve.schemas.receipt import Blend, Format, Quality, Receipt

Output = Literal["image", "layers"]
MaskConvention = Literal["white_edits", "black_edits", "alpha_edits"]

# No control characters: PostgreSQL keeps no NUL, and assignment puts a line break between words.
Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
TagName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
TagWord = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f,=]*$")]


def split_tags(value: Any) -> Any:
    """A form's text as the mapping that JSON has."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    return {name.strip(): word.strip() for name, _, word in pairs}


def write_form(options: "TryOnOptions") -> dict[str, Any]:
    """As the fields of a form: what says nothing is left out, tags are one text."""
    fields = options.model_dump(mode="json", exclude_none=True)
    tags = ",".join(f"{name}={word}" for name, word in fields.pop("tags").items())
    return fields | ({"tags": tags} if tags else {})


Tags = Annotated[Mapping[TagName, TagWord], Field(max_length=8), BeforeValidator(split_tags)]


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
    unit: Word | None = None
    """Which of your users it is for: whom an experiment by users keeps on one version."""
    sku: Word | None = None
    """Which product it is: what an experiment by SKUs keeps on one version."""
    collection: Word | None = None
    """What it belongs to: experiments by collection keep it on one version, and so does a pin."""
    category: Annotated[Word, Field(max_length=80)] | None = None
    """What kind of product it is, in your words; reports tell categories apart."""
    tags: Tags = Field(default_factory=dict)
    """What else reports shall tell apart, at most 8 words by name; in a form
    `season=ss27,channel=web`."""


class TryOnJson(TryOnOptions):
    """`POST /v1/tryon` as JSON: a picture is a data URI (`data:image/png;base64,...`), an
    https URL or the id of an asset (`ast_...`)."""

    model_config = shown(
        expert="eye",
        person="https://shop.example/people/anna.jpg",
        product="ast_01m8a0k3v5r9c2x7p4t6w8y0zb",
        seed=7,
    )

    person: str = Field(repr=False)
    product: str = Field(repr=False)
    mask: str | None = Field(default=None, repr=False)


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
