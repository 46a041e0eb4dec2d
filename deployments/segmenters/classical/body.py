"""Estimates the body's points from proportions, corrected by the silhouette's outline."""

from dataclasses import dataclass

import numpy as np

from deployments.segmenters.classical import figure as proportions
from deployments.segmenters.classical.feet import find_feet
from deployments.segmenters.classical.figure import Figure
from deployments.segmenters.classical.outline import Outline
from serve.messages import Point, UInt8Array

MIN_STATURE = 3.9
"""Shoulder to sole in face sizes: 7.5 in adults, about 4 in small children."""
MIN_BODY = 0.35
"""Face sizes of body below the neck that must be visible before anything is said about it."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Rows in pixels; those below the picture's end are where they would be."""

    neck: float
    shoulder: float
    waist: float
    hip: float
    crotch: float
    knee: float
    ankle: float
    sole: float
    has_feet: bool
    """True when the person ends inside the picture."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body in picture pixels."""

    levels: Levels
    points: dict[str, Point]
    figure: Figure


def read_body(silhouette_hw: UInt8Array, outline: Outline, figure: Figure) -> Body:
    """Estimate what can be known; points off the picture are named where limbs are cut off."""
    levels = _levels(outline, figure, silhouette_hw.shape[0])
    points = _trunk_points(outline, levels, figure)
    points |= _leg_points(outline, levels, figure)
    points |= _arm_points(silhouette_hw, points, levels, figure)
    return Body(levels, points, figure)


def _levels(outline: Outline, figure: Figure, height: int) -> Levels:
    unit = figure.unit_px
    shoulder, sole = figure.row(proportions.SHOULDER), figure.row(proportions.SOLE)
    ends_inside = outline.bottom_row < height - max(3, 0.1 * unit)
    has_feet = ends_inside and outline.bottom_row - shoulder > MIN_STATURE * unit
    if has_feet:
        sole = float(outline.bottom_row)
    stretch = (sole - shoulder) / (proportions.SOLE - proportions.SHOULDER)

    def row(below: float) -> float:
        return shoulder + (below - proportions.SHOULDER) * stretch

    crotch = _find_crotch(outline, row(proportions.CROTCH), figure)
    return Levels(
        neck=figure.row(proportions.NECK),
        shoulder=shoulder,
        waist=row(proportions.WAIST),
        hip=row(proportions.HIP),
        crotch=crotch,
        knee=row(proportions.KNEE),
        ankle=row(proportions.ANKLE),
        sole=sole,
        has_feet=has_feet,
    )


def _find_crotch(outline: Outline, expected: float, figure: Figure) -> float:
    """The row where the legs part, if they do so about where legs do."""
    unit = figure.unit_px
    gap = max(2.0, 0.06 * unit)
    for row in range(int(expected - 0.5 * unit), int(expected + 0.9 * unit)):
        below = [row + int(step * unit) for step in (0.0, 0.15, 0.3)]
        if below[-1] >= outline.bottom_row:
            break
        if all(outline.split(line, 0.45 * unit, gap) is not None for line in below):
            return float(np.clip(row, expected - 0.4 * unit, expected + 0.5 * unit))
    return expected


def _trunk_points(outline: Outline, levels: Levels, figure: Figure) -> dict[str, Point]:
    unit = figure.unit_px
    if outline.bottom_row < levels.shoulder + MIN_BODY * unit:
        return {}
    lines = [outline.trunk(levels.shoulder + step * unit, 1.5 * unit) for step in (0.1, 0.25, 0.4)]
    left, right = np.median(np.array(lines), axis=0)
    centre = outline.spine(levels.shoulder)
    left = min(left + 0.22 * unit, centre - 0.55 * unit)
    right = max(right - 0.22 * unit, centre + 0.55 * unit)
    shoulder = levels.shoulder + 0.15 * unit
    points = {"right_shoulder": (float(left), shoulder), "left_shoulder": (float(right), shoulder)}
    if outline.bottom_row > levels.waist:
        low, high = outline.trunk(levels.hip, 0.95 * unit)
        spine = outline.spine(levels.hip)
        low, high = min(low, spine - 0.4 * unit), max(high, spine + 0.4 * unit)
        inset = 0.22 * (high - low)
        points["right_hip"] = float(low) + inset, levels.hip
        points["left_hip"] = float(high) - inset, levels.hip
        points["crotch"] = float(spine), levels.crotch
    return points


def _leg_points(outline: Outline, levels: Levels, figure: Figure) -> dict[str, Point]:
    points: dict[str, Point] = {}
    if outline.bottom_row <= levels.crotch + 0.3 * figure.unit_px:
        return points
    for name, row in (("knee", levels.knee), ("ankle", levels.ankle)):
        right, left = _leg_columns(outline, min(row, outline.bottom_row - 2), figure)
        points[f"right_{name}"] = right, row
        points[f"left_{name}"] = left, row
    if levels.has_feet:
        points |= _foot_points(outline, levels, figure)
    return points


def _leg_columns(outline: Outline, row: float, figure: Figure) -> tuple[float, float]:
    """Middle of the leg on the picture's left and of the one on its right."""
    unit = figure.unit_px
    left, right = outline.trunk(row, 1.6 * unit)
    gap = outline.split(row, 1.0 * unit, max(2.0, 0.05 * unit))
    if gap is None:
        return float(left + 0.27 * (right - left)), float(right - 0.27 * (right - left))
    runs = outline.runs(row)
    near = [run for run in runs if run[1] > left and run[0] < right]
    before = [run for run in near if run[1] <= gap] or near[:1]
    after = [run for run in near if run[0] >= gap] or near[-1:]
    return sum(before[-1]) / 2, sum(after[0]) / 2


def _foot_points(outline: Outline, levels: Levels, figure: Figure) -> dict[str, Point]:
    """Ankle, heel and toe of each foot, wherever it stands."""
    points: dict[str, Point] = {}
    feet = find_feet(outline, levels.knee, figure)
    for side, foot in zip(("right", "left"), feet, strict=False):
        middle = (foot.left + foot.right) / 2
        outward = middle < outline.spine(levels.knee) if len(feet) > 1 else side == "right"
        toe, heel = (foot.left, foot.right) if outward else (foot.right, foot.left)
        points[f"{side}_toe"], points[f"{side}_heel"] = (toe, foot.bottom), (heel, foot.bottom)
        ankle = foot.bottom - 0.45 * figure.unit_px
        points[f"{side}_ankle"] = foot.ankle_x, ankle
    return points


def _arm_points(
    silhouette_hw: UInt8Array, points: dict[str, Point], levels: Levels, figure: Figure
) -> dict[str, Point]:
    arms: dict[str, Point] = {}
    for side, sign in (("right", -1.0), ("left", 1.0)):
        shoulder = points.get(f"{side}_shoulder")
        if shoulder is None:
            continue
        wrist = _farthest(silhouette_hw, shoulder, sign, levels, figure)
        if wrist is None:
            wrist = shoulder[0] + 0.2 * sign * figure.unit_px, shoulder[1] + 2.7 * figure.unit_px
        elbow = (shoulder[0] + wrist[0]) / 2, (shoulder[1] + wrist[1]) / 2
        arms[f"{side}_elbow"], arms[f"{side}_wrist"] = elbow, wrist
    return arms


def _farthest(
    silhouette_hw: UInt8Array, shoulder: Point, sign: float, levels: Levels, figure: Figure
) -> Point | None:
    """The person's part beside the trunk that lies farthest from the shoulder, an arm's end."""
    unit = figure.unit_px
    top, bottom = (int(np.clip(r, 0, silhouette_hw.shape[0])) for r in (levels.neck, levels.crotch))
    rows, columns = np.nonzero(silhouette_hw[top:bottom] > 127)
    beside = (columns - figure.neck_x) * sign > 1.25 * unit
    if int(beside.sum()) < 0.1 * unit * unit:
        return None
    spots = np.stack([columns[beside], rows[beside] + top], axis=1).astype(np.float32)
    reach = np.hypot(*(spots - np.array(shoulder, np.float32)).T)
    if float(reach.max()) < 1.2 * unit:
        return None
    tip = spots[reach > reach.max() - 0.25 * unit].mean(axis=0)
    return float(tip[0]), float(tip[1])
