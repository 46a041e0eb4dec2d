"""The picture files beside the demo page: originals as they are, and the region over the person."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter

from serve.demo.cases import DemoCase

TINT_RGB = (214, 51, 132)
TINT_OPACITY = 0.45
OUTLINE_PX = 5
"""Width of the filter that finds the region's outline: odd, as Pillow wants it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file beside the page."""

    name: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class CasePictures:
    """The files of one case; region and result are absent where the try-on failed before them."""

    person: Picture
    product: Picture
    region: Picture | None
    result: Picture | None


def write_case_pictures(
    case: DemoCase,
    out_dir: Path,
    stem: str,
    *,
    region_png: bytes | None,
    result_png: bytes | None,
) -> CasePictures:
    """Write the pictures of one case as `<stem>_person.jpg` and so on.

    Args:
        case: whose person and product are copied byte for byte.
        out_dir: an existing folder.
        stem: start of every file name, safe in a URL.
        region_png: one channel, nonzero where painting was allowed; drawn over the person.
        result_png: the finished picture, written byte for byte.
    """
    person = _write(out_dir, f"{stem}_person{case.person_path.suffix}", case.person_path)
    product = _write(out_dir, f"{stem}_product{case.product_path.suffix}", case.product_path)
    region = result = None
    if region_png is not None:
        with Image.open(case.person_path) as image:
            overlay = encode_jpeg(draw_region(image, region_png))
        region = _write(out_dir, f"{stem}_region.jpg", overlay)
    if result_png is not None:
        suffix = f".{Image.open(BytesIO(result_png)).format or 'png'}".lower()
        result = _write(out_dir, f"{stem}_result{suffix}", result_png)
    return CasePictures(person, product, region, result)


def draw_region(person: Image.Image, region_png: bytes) -> Image.Image:
    """The person in RGB with the region tinted and outlined."""
    person = person.convert("RGB")
    region = Image.open(BytesIO(region_png)).convert("L").resize(person.size, Image.Resampling.BOX)
    tint = Image.new("RGB", person.size, TINT_RGB)
    tinted = Image.composite(tint, person, region.point(lambda value: round(value * TINT_OPACITY)))
    binary = region.point(lambda value: 255 if value > 127 else 0)
    outline = ImageChops.difference(binary, binary.filter(ImageFilter.MinFilter(OUTLINE_PX)))
    return Image.composite(tint, tinted, outline)


def encode_jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write(out_dir: Path, name: str, source: Path | bytes) -> Picture:
    content = source if isinstance(source, bytes) else source.read_bytes()
    (out_dir / name).write_bytes(content)
    width_px, height_px = Image.open(BytesIO(content)).size
    return Picture(name, width_px, height_px)
