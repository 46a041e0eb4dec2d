"""Panels as SVG: lines, areas on each other, numbers and bars."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from k8s.dashboards.model import GRID, Panel
from k8s.queries import PanelUnit
from serve.commands.panels import Line, Span
from serve.reporting.canvas import box, finish, line, words

COLUMN = 50.0
"""Width of one of the grid's columns."""
NUMBER_HEIGHT, HEIGHT = 132.0, 272.0
LEFT, RIGHT, TOP = 62.0, 14.0, 40.0
AXIS, LEGEND_LINE = 20.0, 17.0
MAX_LEGENDS = 8
NUM_COLOURS = 8
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def tell(value: float, unit: PanelUnit) -> str:
    """As a person says it: 0.0123 s is 12.3 ms."""
    return _TELLERS[unit](value)


def _short(value: float) -> str:
    """Three digits that say something, never 1e+03."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    for limit, factor, suffix in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if abs(value) < limit:
            return f"{_short(value * factor)} {suffix}" if value else "0 s"
    return f"{_short(value / 60)} min" if abs(value) < 7200 else f"{_short(value / 3600)} h"


def _bytes(value: float) -> str:
    for factor, suffix in _BYTES:
        if abs(value) >= factor:
            return f"{_short(value / factor)} {suffix}"
    return f"{_short(value)} B"


def _share(value: float) -> str:
    return f"{_short(100 * value)} %"


def _count(value: float) -> str:
    for factor, suffix in _COUNTS:
        if abs(value) >= factor:
            return f"{_short(value / factor)}{suffix}"
    return f"{_short(value)}"


def _usd(value: float) -> str:
    return f"${value:,.2f}" if abs(value) >= 1 or not value else f"${value:.2g}"


_TELLERS: Mapping[PanelUnit, Callable[[float], str]] = {
    "1": _count,
    "seconds": _seconds,
    "bytes": _bytes,
    "usd": _usd,
    "ratio": _share,
    "1/s": lambda value: f"{_count(value)}/s",
    "bytes/s": lambda value: f"{_bytes(value)}/s",
    "usd/h": lambda value: f"{_usd(value)}/h",
}


def draw_panel(panel: Panel, lines: Sequence[Line], span: Span) -> str:
    """One SVG, as wide as its part of the grid; says so where there is no data."""
    width = COLUMN * panel.width
    height = NUMBER_HEIGHT if panel.kind == "number" else HEIGHT
    parts = [words(14, 24, panel.title, "strong")]
    if not lines:
        parts.append(words(width / 2, height / 2 + 6, "no data", "soft middle"))
    elif panel.kind == "number":
        parts = [*_number(panel, lines[0], width, height), *parts]
    elif panel.kind == "bars":
        parts += _bars(panel, lines, width, height)
    else:
        parts += _plot(panel, lines, span, width, height)
    return finish(f"{panel.title}: {panel.description}", height, parts, width)


def _number(panel: Panel, shown: Line, width: float, height: float) -> list[str]:
    kind, parts = "", []
    if panel.limits is not None:
        is_bad, is_odd = shown.last >= panel.limits.bad, shown.last >= panel.limits.warn
        kind = "bad" if is_bad else "odd" if is_odd else "good"
        parts.append(box(0, 0, width, height, f"state {kind}"))
    else:
        values = [value for _, value in shown.points]
        most = max(*values, 1e-12)
        step = width / max(1, len(values) - 1)
        tops = [(at * step, height - 34 * value / most) for at, value in enumerate(values)]
        corners = [(0.0, height), *tops, (tops[-1][0], height)]
        parts.append(f'<polygon points="{_points(corners)}" class="spark"/>')
    told = tell(shown.last, panel.unit)
    # A number that is cut says something else: long ones are smaller.
    size = min(40.0, 1.55 * (width - 24) / max(4, len(told)))
    style = f'style="font-size:{size:.0f}px" class="middle big {kind}"'
    return [*parts, f'<text x="{width / 2:.1f}" y="84" {style}>{escape(told)}</text>']


def _bars(panel: Panel, lines: Sequence[Line], width: float, height: float) -> list[str]:
    ranked = sorted(lines, key=lambda one: -one.last)[:10]
    row = min(26.0, (height - TOP - 12) / len(ranked))
    most = max(*(one.last for one in ranked), 1e-12)
    left = min(0.4 * width, 22 + 7.0 * max(len(one.legend) for one in ranked))
    right = width - 84
    parts = []
    for at, one in enumerate(ranked):
        y = TOP + row * at
        kind = "c6" if one.last < 0 else "c0"
        wide = (right - left) * min(1.0, max(0.0, one.last / most))
        parts.append(words(left - 8, y + row / 2 + 5, one.legend, "end"))
        parts.append(box(left, y + 3, wide, row - 6, f"fill {kind}", 3))
        parts.append(words(left + wide + 8, y + row / 2 + 5, tell(one.last, panel.unit), "num"))
    return parts


def _plot(
    panel: Panel, lines: Sequence[Line], span: Span, width: float, height: float
) -> list[str]:
    legends = sorted(lines, key=lambda one: -one.last)
    num_rows = math.ceil(min(len(legends), MAX_LEGENDS) / _per_row(width))
    bottom = height - AXIS - num_rows * LEGEND_LINE - 8
    stacks = _stack(lines, span) if panel.kind == "stacked" else None
    most = max(value for one in (stacks or lines) for _, value in one.points)
    scale = _scale(most, panel.unit)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        part = (point[0] - span.start_s) / (span.end_s - span.start_s)
        y = bottom - max(0.0, point[1]) / scale * (bottom - TOP)
        return LEFT + part * (width - LEFT - RIGHT), y

    parts = list(_axes(panel, scale, span, width, bottom))
    colours = {id(one): f"c{at % NUM_COLOURS}" for at, one in enumerate(lines)}
    if stacks is not None:
        floor = [place((at, 0.0)) for at, _ in stacks[0].points]
        for own, one in zip(stacks, lines, strict=True):
            top = [place(point) for point in own.points]
            parts.append(
                f'<polygon points="{_points([*top, *reversed(floor)])}" '
                f'class="stack {colours[id(one)]}"/>'
            )
            floor = top
    else:
        for one in lines:
            placed = [place(point) for point in one.points]
            parts.append(
                f'<polyline points="{_points(placed)}" class="trace {colours[id(one)]}"/>'
                if len(placed) > 1
                else box(placed[0][0] - 2, placed[0][1] - 2, 4, 4, f"fill {colours[id(one)]}", 2)
            )
    if panel.limits is not None and panel.limits.bad <= scale:
        y = place((span.start_s, panel.limits.bad))[1]
        parts.append(line(LEFT, y, width - RIGHT, y, "limit"))
    return [*parts, *_legend(panel, legends, colours, width, bottom + AXIS + 8)]


def _axes(panel: Panel, scale: float, span: Span, width: float, bottom: float) -> Sequence[str]:
    parts = []
    for at in range(5):
        y = bottom - at / 4 * (bottom - TOP)
        parts.append(line(LEFT, y, width - RIGHT, y, "grid"))
        if at % 2 == 0:
            parts.append(words(LEFT - 6, y + 4, tell(scale * at / 4, panel.unit), "soft num end"))
    for share, kind in ((0.0, "soft"), (0.5, "soft middle"), (1.0, "soft end")):
        moment = span.start_s + share * (span.end_s - span.start_s)
        text = f"{datetime.fromtimestamp(moment, UTC):%H:%M:%S}"
        parts.append(words(LEFT + share * (width - LEFT - RIGHT), bottom + 16, text, kind))
    return parts


def _legend(
    panel: Panel, lines: Sequence[Line], colours: Mapping[int, str], width: float, top: float
) -> list[str]:
    parts, per_row = [], _per_row(width)
    column = (width - 28) / per_row
    room = int(column / 6.6) - 4
    shown = lines if len(lines) <= MAX_LEGENDS else lines[: MAX_LEGENDS - 1]
    for at, one in enumerate(shown):
        x, y = 14 + column * (at % per_row), top + LEGEND_LINE * (at // per_row) + 11
        told = tell(one.last, panel.unit)
        name = one.legend or panel.title
        if len(name) + len(told) + 1 > room:
            name = f"{name[: max(1, room - len(told) - 2)]}…"
        parts.append(box(x, y - 8, 10, 8, f"fill {colours[id(one)]}", 2))
        hint = f"<title>{escape(one.legend)}</title>"
        label = f'{escape(name)} <tspan class="soft num">{escape(told)}</tspan>'
        parts.append(f'<text x="{x + 15:.1f}" y="{y:.1f}" class="small">{hint}{label}</text>')
    if len(shown) < len(lines):
        at = len(shown)
        x, y = 14 + column * (at % per_row), top + LEGEND_LINE * (at // per_row) + 11
        parts.append(words(x, y, f"and {len(lines) - len(shown)} more", "soft small"))
    return parts


def _per_row(width: float) -> int:
    return 2 if width < COLUMN * GRID / 2 else 3


def _stack(lines: Sequence[Line], span: Span) -> list[Line]:
    """Each on those before it; one that has no value at a moment adds nothing there."""
    num_steps = int((span.end_s - span.start_s) / span.step_s) + 1
    moments = [span.start_s + at * span.step_s for at in range(num_steps)]
    heights = [0.0] * num_steps
    stacked = []
    for one in lines:
        for at_s, value in one.points:
            at = round((at_s - span.start_s) / span.step_s)
            if 0 <= at < num_steps:
                heights[at] += value
        stacked.append(Line(one.legend, list(zip(moments, heights, strict=True))))
    return stacked


def _scale(most: float, unit: PanelUnit) -> float:
    """What the axis ends at, so that its quarters are round numbers of the unit."""
    if unit == "ratio" and most <= 1.0001:
        return min(1.0, _round_up(most))
    if unit.startswith("bytes"):
        factor = next((factor for factor, _ in _BYTES if most >= factor), 1)
        rounded = _round_up(most / factor)
        # "1,000 KiB" has no room beside the axis.
        return factor * (1024.0 if rounded == 1000.0 else rounded)
    return _round_up(most * 1.05)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= value * 0.999)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
