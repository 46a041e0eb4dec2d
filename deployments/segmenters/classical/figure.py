"""A standing figure in face sizes: where, given a head, the body is likely to be."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import Float32Array
from deployments.segmenters.classical.headmarks import Head
from serve.messages import Point, UInt8Array

# Heights below the eyes in face sizes. Source: averages of Drillis and Contini 1966 over a stature
# of 9.2 face sizes; a face size is the box of frontalface_alt2, about 0.185 m.
NECK, SHOULDER, WAIST, HIP, CROTCH, KNEE, ANKLE, SOLE = 0.9, 1.2, 3.0, 3.75, 4.35, 6.2, 8.25, 8.7

OUTLINE = (
    *((0.35, 0.6), (0.4, 0.8), (1.1, 1.1), (1.35, 2.6), (1.2, 4.3)),
    *((0.95, 6.2), (0.8, 8.8)),
)
"""Right half of the likely body: (right of the spine, below the eyes)."""
GAP = (4.9, 0.1)
"""Where legs part below the eyes, and how fast the gap widens to either side."""
BETWEEN_LEGS = -0.1
FALL = (3.0, 2.2)
"""Log odds lost per face size off the likely outline, above and below the hips."""
RAISED_ARM = 1.0
"""Log odds against a person beside the own head: few arms are raised, much furniture is."""
HAIR = 1.5
"""Log odds for what surrounds a face: hair may be as dark as what is behind it."""
SURE = 9.0
"""Log odds of a face that was seen; no colour argues against it."""
CORE = ((0.15, 0.8), (0.35, 1.4), (0.3, 2.4))
"""Right half of what is body in almost any pose."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Places a figure under a head: vertical whatever the head's tilt, as people mostly stand."""

    eyes: Point
    neck_x: float
    unit_px: float
    """The face size."""

    def at(self, right: float, below: float) -> Point:
        return self.neck_x + right * self.unit_px, self.eyes[1] + below * self.unit_px

    def row(self, below: float) -> float:
        return self.eyes[1] + below * self.unit_px


def build_figure(head: Head) -> Figure:
    middle = head.middle
    neck_x = head.points()["neck"][0]
    return Figure((float(middle[0]), float(middle[1])), neck_x, head.size_px)


def draw_half(mask_hw: UInt8Array, figure: Figure, half: tuple[Point, ...], value: int) -> None:
    """Fill a shape given by its right half, mirrored about the spine."""
    right = [figure.at(x, y) for x, y in half]
    left = [figure.at(-x, y) for x, y in reversed(half)]
    cv2.fillPoly(mask_hw, [np.array(right + left, np.int32)], value)


def prior_odds(shape: tuple[int, ...], head: Head | None, figure: Figure) -> Float32Array:
    """Log odds (H, W) that a pixel is the person, from proportions alone; large where certain."""
    unit = figure.unit_px
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    aside = np.abs(columns - figure.neck_x) / unit
    below = (rows - figure.eyes[1]) / unit
    likely, certain, skull, sure = (np.zeros(shape[:2], np.uint8) for _ in range(4))
    draw_half(likely, figure, OUTLINE, 1)
    draw_half(certain, figure, CORE, 1)
    if head is None:
        _draw_oval(likely, _plain_head(figure), -0.05, (1.05, 1.5))
    else:
        _draw_oval(likely, head, -0.05, (1.05, 1.5))
        _draw_oval(skull, head, -0.06, (0.98, 1.4))
        _draw_oval(certain, head, 0.1, (0.66, 0.95))
        _draw_oval(sure, head, 0.12, (0.85 * head.width, 0.62))
    inside = cv2.distanceTransform(likely, cv2.DIST_L2, 3) / unit
    outside = cv2.distanceTransform(1 - likely, cv2.DIST_L2, 3) / unit
    slope = np.where(below < HIP, *FALL)
    odds = np.where(
        likely > 0, 0.3 + 2.0 * np.minimum(inside, 0.6), -0.3 - slope * np.minimum(outside, 2.0)
    )
    odds[(below > GAP[0]) & (aside < GAP[1] * (below - GAP[0]))] = BETWEEN_LEGS
    odds[skull > 0] += HAIR
    odds[certain > 0] = 5.0
    if head is not None:
        odds[(below < 0.8) & (aside > 1.2) & (likely == 0)] -= RAISED_ARM
    odds[(below < -1.5) | (aside > 3.6) | ((aside > 2.2) & (below < -0.3))] = -5.0
    odds[sure > 0] = SURE
    return np.asarray(odds, np.float32)


def _plain_head(figure: Figure) -> Head:
    x, y = figure.eyes
    reach = 0.2 * figure.unit_px
    return Head((x - reach, y), (x + reach, y), figure.unit_px, 0.0, 0.0)


def _draw_oval(mask_hw: UInt8Array, head: Head, below: float, axes: tuple[float, float]) -> None:
    centre = head.at(head.centre, below)
    size = (axes[0] * head.size_px, axes[1] * head.size_px)
    cv2.ellipse(mask_hw, (centre, size, head.roll), 1, -1)
