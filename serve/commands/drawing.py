"""Flat pictures of boxes and words, written as SVG, as a page, or as PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Colour = str
"""`#rrggbb`."""

PNG_SCALE = 2
HATCH_PX = 6
# Mean advance of a letter in sans-serif faces, in ems: what fits is decided before it is drawn.
LETTER_EMS = 0.6
FONTS = "Inter, 'Segoe UI', system-ui, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; x and y are its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    fill: Colour
    radius: float = 0.0
    stroke: Colour | None = None
    hatch: Colour | None = None
    """Colour of diagonal lines over the fill."""
    hint: str = ""
    """Shown when pointed at, where the format can."""


@dataclass(frozen=True, slots=True)
class Words:
    """One line of text; y is its baseline."""

    x: float
    y: float
    text: str
    size: float
    fill: Colour
    bold: bool = False
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes in the order they are drawn."""

    width: float
    height: float
    ground: Colour
    title: str
    shapes: Sequence[Box | Words]


def fit_words(text: str, size: float, width: float) -> str:
    """The text, cut with an ellipsis where it is wider; empty where nothing of use is left."""
    room = int(width / (LETTER_EMS * size))
    if len(text) <= room:
        return text
    return f"{text[: room - 1]}…" if room >= 4 else ""


def words_width(text: str, size: float, bold: bool = False) -> float:
    """About how wide it will be, rather too wide than too narrow."""
    return len(text) * (LETTER_EMS + 0.08 * bold) * size


def to_svg(drawing: Drawing) -> str:
    """One SVG file, without anything from elsewhere."""
    hatches = sorted({s.hatch for s in drawing.shapes if isinstance(s, Box) and s.hatch})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" font-family="{FONTS}" '
        f'width="{drawing.width:g}" height="{drawing.height:g}" '
        f'viewBox="0 0 {drawing.width:g} {drawing.height:g}">',
        f"<title>{escape(drawing.title)}</title>",
        *(_svg_hatch(colour) for colour in hatches),
        f'<rect width="100%" height="100%" fill="{drawing.ground}"/>',
        *(_svg_box(s) if isinstance(s, Box) else _svg_words(s) for s in drawing.shapes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _hatch_id(colour: Colour) -> str:
    return f"hatch{colour.removeprefix('#')}"


def _svg_hatch(colour: Colour) -> str:
    return (
        f'<pattern id="{_hatch_id(colour)}" width="{HATCH_PX}" height="{HATCH_PX}" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<line x1="0" y1="0" x2="0" y2="{HATCH_PX}" stroke="{colour}" stroke-width="2"/></pattern>'
    )


def _svg_box(box: Box) -> str:
    place = (
        f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{box.radius:g}"'
    )
    stroke = f' stroke="{box.stroke}"' if box.stroke else ""
    hint = f"<title>{escape(box.hint)}</title>" if box.hint else ""
    drawn = f'<rect {place} fill="{box.fill}"{stroke}>{hint}</rect>'
    if box.hatch:
        drawn += f'<rect {place} fill="url(#{_hatch_id(box.hatch)})">{hint}</rect>'
    return drawn


def _svg_words(words: Words) -> str:
    weight = ' font-weight="600"' if words.bold else ""
    return (
        f'<text x="{words.x:.1f}" y="{words.y:.1f}" font-size="{words.size:g}" '
        f'fill="{words.fill}" text-anchor="{words.anchor}"{weight} pointer-events="none">'
        f"{escape(words.text)}</text>"
    )


def to_html(drawing: Drawing) -> str:
    """A page around the SVG that scales with the window."""
    svg = to_svg(drawing).replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(drawing.title)}</title></head>"
        f'<body style="margin:0;background:{drawing.ground};text-align:center">\n'
        f"{svg}</body></html>\n"
    )


def to_png(drawing: Drawing) -> bytes:
    """At twice the size, for screens that show it."""
    size = int(drawing.width * PNG_SCALE), int(drawing.height * PNG_SCALE)
    image = Image.new("RGB", size, drawing.ground)
    canvas = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            _png_box(image, canvas, shape)
        else:
            _png_words(canvas, shape)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _png_box(image: Image.Image, canvas: ImageDraw.ImageDraw, box: Box) -> None:
    left, top = round(box.x * PNG_SCALE), round(box.y * PNG_SCALE)
    right = max(left, round((box.x + box.width) * PNG_SCALE) - 1)
    bottom = max(top, round((box.y + box.height) * PNG_SCALE) - 1)
    corners = (left, top, right, bottom)
    canvas.rounded_rectangle(
        corners, box.radius * PNG_SCALE, box.fill, box.stroke, PNG_SCALE if box.stroke else 0
    )
    if not box.hatch:
        return
    lines = Image.new("L", (right - left + 1, bottom - top + 1), 0)
    pen = ImageDraw.Draw(lines)
    step = round(HATCH_PX * PNG_SCALE * 2**0.5)
    for start in range(-lines.height, lines.width, step):
        pen.line((start, lines.height, start + lines.height, 0), 255, 2 * PNG_SCALE - 1)
    image.paste(box.hatch, (left, top), lines)


def _png_words(canvas: ImageDraw.ImageDraw, words: Words) -> None:
    canvas.text(
        (words.x * PNG_SCALE, words.y * PNG_SCALE),
        words.text,
        words.fill,
        ImageFont.load_default(words.size * PNG_SCALE),
        anchor={"start": "ls", "middle": "ms", "end": "rs"}[words.anchor],
        # The one face that comes with Pillow has no bold.
        stroke_width=0.4 * PNG_SCALE if words.bold else 0,
    )
