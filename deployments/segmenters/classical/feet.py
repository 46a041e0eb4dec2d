"""Finds the two feet at the lower end of an outline; one may stand higher than the other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.segmenters.classical.figure import Figure
from deployments.segmenters.classical.outline import Outline

REACH = 2.2
"""Feet stand within this many face sizes of the spine."""
FOOT_HEIGHT = 0.5
BOTH_FEET_WIDTH = 1.25
"""One foot from the side is about 1.4 face sizes long, from the front 0.6 wide."""


@dataclass(frozen=True, slots=True)
class Foot:
    """Columns a foot spans, its lowest row and where the leg enters it, in pixels."""

    left: float
    right: float
    bottom: float
    ankle_x: float


def find_feet(outline: Outline, knee_row: float, figure: Figure) -> list[Foot]:
    """One or two feet, from the picture's left to its right."""
    lowest = _lowest_rows(outline, knee_row, figure)
    if not lowest.any():
        return []
    first = _cluster(lowest, figure.unit_px)
    rest = lowest.copy()
    margin = int(0.1 * figure.unit_px)
    rest[max(first[0] - margin, 0) : first[1] + margin] = 0
    second = _cluster(rest, figure.unit_px) if rest.any() else None
    if second is not None and _is_foot(rest, second, outline, knee_row, figure):
        spans = [first, second]
    elif first[1] - first[0] > BOTH_FEET_WIDTH * figure.unit_px:
        middle = (first[0] + first[1]) // 2
        spans = [(first[0], middle), (middle, first[1])]
    else:
        spans = [first]
    return [_foot(lowest, span, outline, figure) for span in sorted(spans)]


def _lowest_rows(outline: Outline, knee_row: float, figure: Figure) -> NDArray[np.int64]:
    """Per column the person's lowest row below the knees, 0 where there is none."""
    width = max((run[1] for runs in outline.rows for run in runs), default=0)
    lowest = np.zeros(width, np.int64)
    spine = outline.spine(knee_row)
    for row in range(max(int(knee_row), 0), outline.bottom_row):
        for left, right in outline.runs(row):
            lowest[left:right] = row
    lowest[: max(int(spine - REACH * figure.unit_px), 0)] = 0
    lowest[max(int(spine + REACH * figure.unit_px), 0) :] = 0
    return lowest


def _cluster(lowest: NDArray[np.int64], unit_px: float) -> tuple[int, int]:
    """The unbroken columns about the lowest one that end within a foot's height of it."""
    peak = int(lowest.argmax())
    near = lowest > lowest[peak] - FOOT_HEIGHT * unit_px
    left = peak - int(np.argmin(np.concatenate((near[peak::-1], [False])))) + 1
    right = peak + int(np.argmin(np.concatenate((near[peak:], [False]))))
    return left, right


def _is_foot(
    lowest: NDArray[np.int64],
    span: tuple[int, int],
    outline: Outline,
    knee_row: float,
    figure: Figure,
) -> bool:
    wide = span[1] - span[0] > 0.25 * figure.unit_px
    low = lowest[span[0] : span[1]].max() > 0.55 * outline.bottom_row + 0.45 * knee_row
    return wide and bool(low)


def _foot(
    lowest: NDArray[np.int64], span: tuple[int, int], outline: Outline, figure: Figure
) -> Foot:
    bottom = int(lowest[span[0] : span[1]].max()) + 1
    middle = (span[0] + span[1]) / 2
    runs = outline.runs(bottom - FOOT_HEIGHT * figure.unit_px)
    centres = [(max(run[0], span[0]) + min(run[1], span[1])) / 2 for run in runs]
    inside = [centre for centre in centres if span[0] <= centre <= span[1]]
    ankle = min(inside, key=lambda centre: abs(centre - middle), default=middle)
    return Foot(float(span[0]), float(span[1]), float(bottom), float(ankle))
