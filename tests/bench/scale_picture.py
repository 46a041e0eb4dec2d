"""Throughput by replicas, as one SVG: routers as far as the cores go, experts beside the ideal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve.reporting.canvas import WIDTH, dot, finish, line, words

LEFT, GAP, TOP, HIGH = 66.0, 90.0, 84.0, 260.0
WIDE = (WIDTH - LEFT - GAP - 24.0) / 2


@dataclass(frozen=True)
class Curve:
    """One deployment at several sizes."""

    title: str
    hint: str
    per_s: Mapping[int, float]
    """Requests a second by replicas."""
    ideal_per_s: Mapping[int, float]
    """What so many would do that never wait for anything."""
    kind: str
    """Class of its colour."""


def draw_scale(curves: Sequence[Curve]) -> str:
    title = "Throughput, by number of replicas"
    parts = [words(16, 28, title, "strong")]
    for at, curve in enumerate(each for each in curves if each.per_s):
        parts.extend(_panel(curve, LEFT + at * (WIDE + GAP)))
    return finish(title, TOP + HIGH + 56, parts)


def _panel(curve: Curve, left: float) -> Iterator[str]:
    most = max([*curve.per_s.values(), *curve.ideal_per_s.values()])
    step = _step(most)
    top_value = step * (int(1.05 * most / step) + 1)
    sizes = sorted(curve.per_s)

    def x(replicas: float) -> float:
        return left + 12 + (replicas - 1) / max(1, sizes[-1] - 1) * (WIDE - 24)

    def y(per_s: float) -> float:
        return TOP + HIGH * (1 - per_s / top_value)

    yield words(left, TOP - 30, curve.title, "strong")
    yield words(left, TOP - 13, curve.hint, "soft")
    for number in range(int(top_value / step) + 1):
        yield line(left, y(number * step), left + WIDE, y(number * step), "grid")
        yield words(left - 8, y(number * step) + 4, f"{number * step:g}", "soft num end")
    for size in sizes:
        yield words(x(size), TOP + HIGH + 18, str(size), "soft num middle")
    yield words(left + WIDE / 2, TOP + HIGH + 42, f"{curve.title.lower()}", "soft middle")
    yield f'<g class="{curve.kind}">'
    if curve.ideal_per_s:
        ends = (min(curve.ideal_per_s), max(curve.ideal_per_s))
        (x1, y1), (x2, y2) = ((x(size), y(curve.ideal_per_s[size])) for size in ends)
        yield f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="curve" stroke-dasharray="5 5"'
        yield ' opacity=".5"/>'
    places = " ".join(f"{x(size):.1f},{y(curve.per_s[size]):.1f}" for size in sizes)
    yield f'<polyline points="{places}" class="curve"/>'
    for size in sizes:
        yield dot(x(size), y(curve.per_s[size]), "mark", f"{curve.per_s[size]:.0f} a second")
    yield "</g>"
    for size in sizes:
        # Beside the dashes, not on them.
        beside = y(curve.per_s[size]) + (22 if curve.ideal_per_s else -12)
        yield words(x(size), beside, f"{curve.per_s[size]:.0f}", "num middle strong")


def _step(most: float) -> float:
    for step in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0):
        if most / step <= 6:
            return step
    return 1_000.0
