"""Power curves as one SVG: looking all the time beside one planned look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 64
COLOURS = ("#3564b4", "#c1592c")


@dataclass(frozen=True)
class Curve:
    """Chance of having found it, by units in multiples of what one look needs."""

    name: str
    units: Floats
    sequential: Floats
    fixed: Floats


def draw_power(curves: Sequence[Curve]) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="13">',
        "<title>Chance of finding a difference, by units</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="17" font-weight="600" fill="#23262b">'
        "Chance of having found a difference that is there</text>",
        f'<text x="{LEFT}" y="44" fill="#6d7178">solid: looked at all the time; '
        "dashed: one look, had it been planned there</text>",
    ]
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = _y(share)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e2dc"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#6d7178">'
            f"{share:.0%}</text>"
        )
    for multiple in (0, 0.5, 1, 1.5, 2, 2.5, 3):
        x = _x(multiple)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#6d7178">'
            f"{multiple:g}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - BOTTOM + 40}" text-anchor="middle" '
        'fill="#23262b">units, in multiples of what one look needs for 80 %</text>'
    )
    for at, curve in enumerate(curves):
        colour = COLOURS[at % len(COLOURS)]
        parts.append(_line(curve.units, curve.sequential, colour, ""))
        parts.append(_line(curve.units, curve.fixed, colour, ' stroke-dasharray="5 4"'))
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM - 34 + 18 * at}" text-anchor="end" '
            f'fill="{colour}">{curve.name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(multiple: float) -> float:
    return LEFT + multiple / 3 * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def _line(units: Floats, shares: Floats, colour: str, dash: str) -> str:
    points = " ".join(
        f"{_x(float(u)):.1f},{_y(float(s)):.1f}" for u, s in zip(units, shares, strict=True)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
