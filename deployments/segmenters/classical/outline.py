"""Reads a silhouette row by row: where the trunk runs, how wide it is, where the legs part."""

from dataclasses import dataclass

import numpy as np

from deployments.segmenters.classical.figure import Figure
from serve.messages import UInt8Array

Run = tuple[int, int]
"""First and one past the last column of an unbroken stretch."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A silhouette as stretches of columns."""

    rows: list[list[Run]]
    spine_x: list[float]
    """Per row, the middle of the trunk, followed down from the neck."""
    top_row: int
    bottom_row: int
    """One past the last row of the person."""

    def runs(self, row: float) -> list[Run]:
        return self.rows[int(np.clip(row, 0, len(self.rows) - 1))]

    def spine(self, row: float) -> float:
        return self.spine_x[int(np.clip(row, 0, len(self.spine_x) - 1))]

    def trunk(self, row: float, limit_px: float) -> tuple[float, float]:
        """Left and right edge of the person about the spine, at most limit_px from it."""
        spine = self.spine(row)
        near = [run for run in self.runs(row) if run[0] < spine + limit_px]
        near = [run for run in near if run[1] > spine - limit_px]
        left = min((run[0] for run in near), default=int(spine))
        right = max((run[1] for run in near), default=int(spine))
        return max(float(left), spine - limit_px), min(float(right), spine + limit_px)

    def split(self, row: float, reach_px: float, min_gap_px: float) -> float | None:
        """Middle of a gap near the spine with the person on both sides, or None."""
        runs, spine = self.runs(row), self.spine(row)
        gaps = [
            (before[1] + after[0]) / 2
            for before, after in zip(runs, runs[1:], strict=False)
            if after[0] - before[1] >= min_gap_px
        ]
        near = [gap for gap in gaps if abs(gap - spine) < reach_px]
        return min(near, key=lambda gap: abs(gap - spine), default=None)


def read_outline(silhouette_hw: UInt8Array, figure: Figure) -> Outline:
    solid = silhouette_hw > 127
    rows = [_runs(line) for line in solid]
    filled = np.flatnonzero(solid.any(axis=1))
    top, bottom = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
    return Outline(rows, _follow_spine(rows, figure), top, bottom)


def _runs(line: np.ndarray) -> list[Run]:
    steps = np.flatnonzero(np.diff(np.concatenate(([0], line.view(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]


def _follow_spine(rows: list[list[Run]], figure: Figure) -> list[float]:
    """The trunk's middle moves slowly: a hand on a hip must not pull it aside."""
    x, start, unit = figure.neck_x, figure.row(0.9), figure.unit_px
    spine = []
    for row, runs in enumerate(rows):
        if row > start and runs:
            left = min((run for run in runs), key=lambda run: _distance(run, x - 0.3 * unit))
            right = min((run for run in runs), key=lambda run: _distance(run, x + 0.3 * unit))
            low, high = max(left[0], x - 1.2 * unit), min(right[1], x + 1.2 * unit)
            pull = float(np.clip((low + high) / 2 - x, -0.25 * unit, 0.25 * unit))
            x += pull * min(1.0, 4.0 / unit)
        spine.append(float(x))
    return spine


def _distance(run: Run, x: float) -> float:
    return max(run[0] - x, x - run[1], 0.0)
