"""A packing plan to look at: one tile per GPU, its memory as a stack of replicas."""

import colorsys
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from deployments.packing.demand import CpuReplicas
from deployments.packing.planner import PackingPlan, PlannedGpu, Share
from serve.commands.drawing import Box, Drawing, Words, fit_words, words_width
from serve.messages import EXPERTS

GROUND, CARD, EDGE, EMPTY = "#f6f5f1", "#ffffff", "#dedbd2", "#f1efe9"
INK, SOFT, HATCH = "#23262b", "#6d7178", "#c4bfb2"
HUES = dict(zip(EXPERTS, (0.10, 0.40, 0.94, 0.59, 0.74, 0.02, 0.51), strict=True))
OTHER_HUES = (0.30, 0.83, 0.16, 0.66)
"""Of shared replicas and segmenters."""

KEPT_FREE = "kept free"
MARGIN = 32.0
PAD = 12.0
MAX_LEGEND_COLUMN = 560.0
MAX_LEGEND_ROWS = 10
"""Up to so many stand in one column."""


@dataclass(frozen=True, slots=True)
class Density:
    """How large a GPU is drawn."""

    tile: float
    bar: float
    gap: float
    letters: float
    """Size of what stands in a tile; 0 for none."""
    page: float
    """Width that node boxes flow in."""


DENSITIES = (
    (12, Density(tile=190, bar=250, gap=14, letters=13, page=1280)),
    (48, Density(tile=136, bar=180, gap=10, letters=11, page=1280)),
    (160, Density(tile=84, bar=110, gap=8, letters=9, page=1560)),
    (10**9, Density(tile=30, bar=54, gap=4, letters=0, page=1720)),
)
"""Up to so many GPUs."""


def choose_colours(plan: PackingPlan) -> Mapping[str, str]:
    """By deployment: an expert's hue, each of its versions in a shade of its own."""
    names = sorted(plan.num_gpus_by_name, key=_with_numbers)
    families = [name.split("@")[0] for name in names]  # its expert, or its own name
    others = [family for family in dict.fromkeys(families) if family not in HUES]
    hues = {name: OTHER_HUES[at % len(OTHER_HUES)] for at, name in enumerate(others)}
    hues.update({str(expert): hue for expert, hue in HUES.items()})
    seen: dict[str, int] = {}
    colours = {}
    for name, family in zip(names, families, strict=True):
        at = seen[family] = seen.get(family, -1) + 1
        # Darker and lighter in turn.
        colours[name] = _readable(hues[family], 0.47 + (-1) ** at * 0.05 * math.ceil(at % 5 / 2))
    return colours


def _readable(hue: float, light: float) -> str:
    """The colour, dark enough for white letters on it (contrast 3:1, WCAG 2.2 for large text)."""
    while True:
        parts = colorsys.hls_to_rgb(hue, light, 0.46)
        red, green, blue = (part**2.2 for part in parts)
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        if 1.05 / (luminance + 0.05) >= 3.0:
            return "#" + "".join(f"{round(part * 255):02x}" for part in parts)
        light -= 0.01


def draw_plan(plan: PackingPlan, cpu: Sequence[CpuReplicas], headline: str, note: str) -> Drawing:
    """The whole picture.

    Args:
        headline, note: what the plan says in one line, and how it was asked.
    """
    density = next(density for most, density in DENSITIES if len(plan.gpus) <= most)
    colours = choose_colours(plan)
    top = MARGIN + 30
    shapes: list[Box | Words] = [
        Words(MARGIN, top, headline, 24, INK, bold=True),
        Words(MARGIN, top + 24, note, 13, SOFT),
    ]
    width, bottom = _draw_nodes(shapes, plan, density, colours, top + 48)
    width = max(width, words_width(headline, 24) + 2 * MARGIN, words_width(note, 13) + 2 * MARGIN)
    bottom = _draw_legend(shapes, plan, colours, bottom + 30, width)
    bottom = _draw_cpu(shapes, cpu, bottom, width)
    return Drawing(width, bottom + MARGIN, GROUND, headline, shapes)


def _draw_nodes(
    shapes: list[Box | Words],
    plan: PackingPlan,
    density: Density,
    colours: Mapping[str, str],
    top: float,
) -> tuple[float, float]:
    """Boxes of nodes, flowing; returns the width and the lower end of all."""
    x, y, row_height, right = MARGIN, top, 0.0, 0.0
    for node, group in groupby(plan.gpus, key=lambda planned: planned.gpu.node):
        gpus = list(group)
        columns = max(1, int((density.page - 2 * MARGIN) // (density.tile + density.gap)))
        columns = min(columns, len(gpus))
        width = columns * (density.tile + density.gap) - density.gap + 2 * PAD
        rows = math.ceil(len(gpus) / columns)
        head = 30.0 if density.letters else 6.0
        height = head + rows * (_tile_height(density) + density.gap) - density.gap + 2 * PAD
        if x > MARGIN and x + width > density.page - MARGIN:
            x, y, row_height = MARGIN, y + row_height + 16, 0.0
        shapes.append(Box(x, y, width, height, CARD, 10, EDGE, hint=node))
        if density.letters:
            kind = _kinds(gpus) if density.letters > 9 else ""
            name = Words(x + PAD, y + 25, node, max(density.letters + 2, 12), INK, bold=True)
            shapes.append(name)
            room = width - 2 * PAD - words_width(node, name.size) - 10
            label = fit_words(kind, density.letters, room)
            shapes.append(
                Words(x + width - PAD, y + 25, label, density.letters, SOFT, anchor="end")
            )
        for at, planned in enumerate(gpus):
            left = x + PAD + at % columns * (density.tile + density.gap)
            upper = y + PAD + head + at // columns * (_tile_height(density) + density.gap)
            shapes += _draw_gpu(planned, density, colours, left, upper)
        x, row_height, right = x + width + 16, max(row_height, height), max(right, x + width)
    return right + MARGIN, y + row_height


def _tile_height(density: Density) -> float:
    return density.bar + (2.2 * density.letters if density.letters else 0)


def _kinds(gpus: Sequence[PlannedGpu]) -> str:
    kinds = groupby(gpus, key=lambda planned: (planned.gpu.kind, planned.gpu.gib))
    return ", ".join(f"{len(list(of))} x {kind}, {gib:g} GiB" for (kind, gib), of in kinds)


def _draw_gpu(
    planned: PlannedGpu,
    density: Density,
    colours: Mapping[str, str],
    left: float,
    top: float,
) -> Iterator[Box | Words]:
    """A stack from the bottom up: replicas, what is free, the reserve."""
    gib, letters = planned.gpu.gib, density.letters
    per_gib = density.bar / gib
    bottom = top + density.bar
    yield Box(left, top, density.tile, density.bar, EMPTY, 4, EDGE, hint=_gpu_hint(planned))
    for share in planned.shares:
        height = share.num_gpus * gib * per_gib
        bottom -= height
        yield from _draw_share(share, density, colours[share.name], left, bottom, height, gib)
    reserve = 0.0 if any(share.num_gpus == 1 for share in planned.shares) else planned.reserve_gib
    free = bottom - top - reserve * per_gib
    if reserve:
        hint = f"{reserve:.2f} GiB kept free"
        height = reserve * per_gib
        yield Box(left, top, density.tile, height, EMPTY, 0, None, HATCH, hint=hint)
    if letters and free > 1.6 * letters:
        middle = top + reserve * per_gib + free / 2 + letters / 3
        label = "empty" if not planned.shares else f"{planned.free_gib:.1f} GiB free"
        label = fit_words(label, letters, density.tile - 8)
        yield Words(left + density.tile / 2, middle, label, letters, SOFT, anchor="middle")
    if letters:
        y = top + density.bar + 1.5 * letters
        yield Words(left, y, planned.gpu.id.rsplit("/", 1)[1], letters, INK, bold=True)
        used = f"{planned.used_gib:.1f} / " if planned.shares else ""
        label = f"{used}{gib:g}" + (" GiB" if letters > 9 else "")
        yield Words(left + density.tile, y, label, letters, SOFT, anchor="end")


def _draw_share(
    share: Share,
    density: Density,
    colour: str,
    left: float,
    top: float,
    height: float,
    gib: float,
) -> Iterator[Box | Words]:
    hint = f"{share.name} #{share.replica}: {share.gib:.2f} GiB, num_gpus {share.num_gpus:g}"
    given = share.num_gpus * gib
    # What it is given beyond what it was measured to need: the rest of a whole GPU.
    solid = height * min(1.0, share.gib / given)
    seam = 1.0 if density.letters else 0.5
    tile = density.tile
    yield Box(left, top, tile, height - seam, _tint(colour), 3, hint=hint)
    yield Box(left, top + height - solid, tile, solid - seam, colour, 3, hint=hint)
    letters = density.letters
    if not letters or solid < 1.3 * letters:
        return
    lines = [fit_words(share.name, letters, tile - 10)]
    if solid > 3.2 * letters:
        words = f"{share.gib:.1f} GiB"
        words += f" · {share.num_gpus:g}" if letters > 11 and share.num_gpus < 1 else ""
        lines.append(fit_words(words, letters, tile - 10))
    first = top + height - solid / 2 - (len(lines) - 1) * 0.65 * letters + letters * 0.35
    for at, line in enumerate(lines):
        y = first + at * 1.3 * letters
        yield Words(left + tile / 2, y, line, letters, CARD, bold=not at, anchor="middle")
    if height - solid > 2 * letters:
        words = fit_words("whole GPU", letters, tile - 10)
        y = top + (height - solid) / 2 + letters / 3
        yield Words(left + tile / 2, y, words, letters, colour, anchor="middle")


def _tint(colour: str) -> str:
    """Three quarters of the way to white."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{255 - (255 - part) // 4:02x}" for part in parts)


def _gpu_hint(planned: PlannedGpu) -> str:
    gpu = planned.gpu
    held = ", ".join(f"{share.name} {share.gib:.1f}" for share in planned.shares) or "empty"
    return f"{gpu.id}, {gpu.kind}, {gpu.gib:g} GiB: {held}; {planned.free_gib:.1f} GiB free"


def _draw_legend(
    shapes: list[Box | Words],
    plan: PackingPlan,
    colours: Mapping[str, str],
    top: float,
    width: float,
) -> float:
    """Every deployment once, in columns; returns the lower end."""
    entries = list(_legend(plan))
    if not entries:
        return top
    indent = 24 + max(words_width(name, 13, bold=True) for name, _ in entries) + 10
    widest = indent + max(words_width(words, 13) for _, words in entries) + 20
    is_short = len(entries) <= MAX_LEGEND_ROWS
    column = width - 2 * MARGIN if is_short else min(widest, MAX_LEGEND_COLUMN)
    num_columns = max(1, int((width - 2 * MARGIN) // column))
    rows = math.ceil((len(entries) + 1) / num_columns)
    for at, (name, words) in enumerate([*entries, (KEPT_FREE, "")]):
        x, y = MARGIN + at // rows * column, top + at % rows * 22
        if name == KEPT_FREE:
            shapes.append(Box(x, y, 16, 14, EMPTY, 0, EDGE, HATCH))
        else:
            shapes.append(Box(x, y, 16, 14, colours[name], 3))
        shapes.append(Words(x + 24, y + 12, name, 13, INK, bold=name != KEPT_FREE))
        fitted = fit_words(words, 13, column - indent - 10)
        shapes.append(Words(x + indent, y + 12, fitted, 13, SOFT))
    return top + rows * 22


def _legend(plan: PackingPlan) -> Iterator[tuple[str, str]]:
    """Name, and what it takes."""
    shares = [share for planned in plan.gpus for share in planned.shares]
    for name in sorted({share.name for share in shares}, key=_with_numbers):
        own = [share for share in shares if share.name == name]
        replicas = "1 replica" if len(own) == 1 else f"{len(own)} replicas"
        held = f" · {', '.join(own[0].versions)}" if len(own[0].versions) > 1 else ""
        yield name, f"{replicas} · {own[0].gib:.1f} GiB · num_gpus {own[0].num_gpus:g}{held}"


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """`eye@2` comes before `eye@10`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _draw_cpu(
    shapes: list[Box | Words], cpu: Sequence[CpuReplicas], top: float, width: float
) -> float:
    if not cpu:
        return top
    y = top + 26
    shapes.append(Words(MARGIN, y, "On CPUs", 13, INK, bold=True))
    words = ",  ".join(f"{c.name} {c.backend} x {c.num_replicas}" for c in cpu)
    left = MARGIN + 74
    fitted = fit_words(words, 13, width - left - MARGIN)
    shapes.append(Words(left, y, fitted, 13, SOFT))
    return y
