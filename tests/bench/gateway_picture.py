"""The gateway's measurements as one SVG of small multiples: a column a body, a row a measure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serve.reporting.canvas import WIDTH, finish, line, words
from tests.bench.gateway_cells import Cell
from tests.bench.gateway_table import ECHO_RATIO, NAMES, Findings

LEFT, RIGHT, TOP, GAP, ROW, NEXT = 70.0, 18.0, 124.0, 54.0, 210.0, 256.0
INSET = 16.0
STEPS = (1, 2, 5)
LEGEND_COLUMNS, LEGEND_WIDE = 4, 236.0
STYLES: dict[tuple[str, str], str] = {
    ("uvicorn", "echo"): "floor",
    ("litserve", "echo"): "lit",
    ("bentoml", "echo"): "bento",
    ("ray-default", "echo"): "plain",
    ("ray-flagged", "echo"): "flagged",
    ("sm4ll", "gateway"): "ours",
    ("sm4ll", "full"): "ours full",
}
STYLE = """<style>
.plot .floor { --mark: #9a9da3; } .plot .lit { --mark: #7d5bb5; }
.plot .bento { --mark: #2b8a86; } .plot .plain { --mark: #b3382c; }
.plot .flagged { --mark: #d07a28; } .plot .ours { --mark: #2456b8; }
@media (prefers-color-scheme: dark) { .plot .lit { --mark: #b79df0; } .plot .bento
{ --mark: #6fcfca; } .plot .plain { --mark: #ff8a80; } .plot .flagged { --mark: #f0a470; }
.plot .ours { --mark: #7ea6f0; } }
.plot .ours .curve { stroke-width: 3.5; } .plot .full .curve { stroke-dasharray: 7 4; }
.plot .floor .curve { stroke-width: 1.5; }
.plot .knot { fill: var(--mark); stroke: var(--ground); stroke-width: 1.5; }
.plot .small { font-size: 11px; }
</style>"""


@dataclass(frozen=True)
class Measure:
    """One row of the picture."""

    title: str
    hint: str
    read: Callable[[Cell], float]
    has_target: bool = False


SUBTITLE = (
    "gateway: key, quota, experiment and ledger on, imaging passed through; full: and all imaging."
    " Logarithmic, each on its own scale."
)
MEASURES = (
    Measure("p50, ms", "lower is better", lambda cell: cell.p50_ms, has_target=True),
    Measure("p99, ms", "lower is better", lambda cell: cell.p99_ms),
    Measure("requests a second", "higher is better", lambda cell: cell.per_s),
)


@dataclass(frozen=True)
class Panel:
    """Where one small picture lies, and how values become places; both axes are logarithmic."""

    left: float
    top: float
    wide: float
    high: float
    scale: tuple[float, float]
    """The values at its bottom and its top."""
    connections: Sequence[int]

    def x(self, connections: int) -> float:
        if len(self.connections) == 1:
            return self.left + self.wide / 2
        low, high = (math.log(self.connections[at]) for at in (0, -1))
        share = (math.log(connections) - low) / (high - low)
        return self.left + INSET + share * (self.wide - 2 * INSET)

    def y(self, value: float) -> float:
        low, high = self.scale
        share = math.log(max(value, low) / low) / math.log(high / low)
        return self.top + self.high * (1 - min(1.0, share))

    def ticks(self) -> Iterator[float]:
        low, high = self.scale
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            for step in STEPS:
                if low <= step * 10.0**exponent <= high * 1.001:
                    yield step * 10.0**exponent


def draw_gateway(findings: Findings) -> str:
    """One file; it follows the reader's light or dark."""
    title = "One try-on through the gateway, beside echoes of other servers"
    bodies = list(dict.fromkeys(cell.body for cell in findings.cells))
    connections = sorted({cell.connections for cell in findings.cells})
    wide = (WIDTH - LEFT - RIGHT - GAP * (len(bodies) - 1)) / max(1, len(bodies))
    parts = [STYLE, words(16, 28, title, "strong"), words(16, 46, SUBTITLE, "soft")]
    parts.extend(_legend(findings))
    for row, measure in enumerate(MEASURES):
        for column, body in enumerate(bodies):
            left, top = LEFT + column * (wide + GAP), TOP + row * NEXT
            values = [measure.read(cell) for cell in findings.cells if cell.body == body]
            panel = Panel(left, top, wide, ROW, _scale(values), connections)
            parts.extend(_panel(findings, measure, body, panel, is_first=column == 0))
    height = TOP + len(MEASURES) * NEXT + 10
    parts.append(words(WIDTH / 2, height - 12, "connections, each in a closed loop", "soft middle"))
    return finish(title, height, parts)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Around the values, from one round number to another."""
    real = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    rounds = [step * 10.0**exponent for exponent in range(-4, 7) for step in STEPS]
    low = max(each for each in rounds if each <= max(min(real), rounds[0]))
    return low, min(each for each in rounds if each >= max(real) and each > low)


def _legend(findings: Findings) -> Iterator[str]:
    for at, column in enumerate(findings.columns()):
        x = 16 + at % LEGEND_COLUMNS * LEGEND_WIDE
        y = 70 + at // LEGEND_COLUMNS * 20
        yield f'<g class="{STYLES[column]}">'
        yield f'<path d="M{x} {y - 4}h26" class="curve"/>'
        yield f'<circle cx="{x + 13}" cy="{y - 4}" r="4" class="knot"/></g>'
        yield words(x + 34, y, NAMES[column])


def _panel(
    findings: Findings, measure: Measure, body: str, panel: Panel, is_first: bool
) -> Iterator[str]:
    yield words(panel.left, panel.top - 8, body, "strong")
    if is_first:
        yield words(panel.left + panel.wide, panel.top - 8, measure.hint, "soft small end")
    for tick in panel.ticks():
        y = panel.y(tick)
        yield line(panel.left, y, panel.left + panel.wide, y, "grid")
        yield words(panel.left - 6, y + 4, f"{tick:g}", "soft small num end")
    for each in panel.connections:
        yield words(panel.x(each), panel.top + panel.high + 16, str(each), "soft middle num")
    if is_first:
        middle = panel.top + panel.high / 2
        yield (
            f'<text transform="translate(16 {middle:.1f}) rotate(-90)" class="middle">'
            f"{measure.title}</text>"
        )
    if measure.has_target:
        yield from _target(findings, body, panel)
    for column in findings.columns():
        cells = [cell for cell in findings.cells if (cell.server, cell.mode) == column]
        cells = [cell for cell in cells if cell.body == body and measure.read(cell) > 0]
        yield from _curve(cells, measure, panel, STYLES[column], NAMES[column])


def _target(findings: Findings, body: str, panel: Panel) -> Iterator[str]:
    """The band that the gateway's p50 has to end in."""
    cells = [cell for cell in findings.cells if cell.server == "ray-flagged" and cell.body == body]
    if len(cells) < 2:
        return
    upper = [(panel.x(cell.connections), panel.y(ECHO_RATIO * cell.p50_ms)) for cell in cells]
    ground = panel.top + panel.high
    corners = [*upper, (upper[-1][0], ground), (upper[0][0], ground)]
    yield f'<polygon points="{_points(corners)}" class="band"/>'
    yield words(upper[0][0] + 6, ground - 8, f"{ECHO_RATIO} x both flags", "soft small")


def _curve(
    cells: Sequence[Cell], measure: Measure, panel: Panel, style: str, name: str
) -> Iterator[str]:
    places = [(panel.x(cell.connections), panel.y(measure.read(cell))) for cell in cells]
    yield f'<g class="{style}"><polyline points="{_points(places)}" class="curve"/>'
    for cell, (x, y) in zip(cells, places, strict=True):
        hint = f"{name}, {cell.connections}: {measure.read(cell):.4g} {measure.title}"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="knot"><title>{hint}</title></circle>'
    yield "</g>"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
