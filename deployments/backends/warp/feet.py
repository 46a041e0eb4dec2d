"""Where the feet are in a crop, which way they point, and what of it is shoe, leg and ground."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import ExpertRequest, UInt8Array

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_TILT = np.radians(24.0)
"""Steeper than this a standing foot points at the camera and is only foreshortened."""


@dataclass(frozen=True, slots=True)
class Foot:
    """One foot on the ground line heel to toe; all in crop pixels."""

    heel: FloatArray
    toe: FloatArray
    ankle: FloatArray
    leg_up: FloatArray
    """Unit vector from the ankle along the leg."""
    is_measured: bool
    """False when it was read off the shape of the region only."""

    @property
    def length_px(self) -> float:
        return max(float(np.linalg.norm(self.toe - self.heel)), 1.0)

    @property
    def along(self) -> FloatArray:
        """Unit vector from heel to toe."""
        return (self.toe - self.heel) / self.length_px

    @property
    def up(self) -> FloatArray:
        """Unit vector from the sole towards the leg."""
        across = np.array([self.along[1], -self.along[0]])
        side = float((self.ankle - (self.heel + self.toe) / 2) @ across)
        return across if side >= 0 else -across

    def knee_side(self, lengths: float) -> FloatArray:
        """The point on the leg this many foot lengths above the ankle."""
        return self.ankle + self.leg_up * lengths * self.length_px

    def transformed(self, scale: float, offset: FloatArray) -> "Foot":
        heel, toe, ankle = (p * scale + offset for p in (self.heel, self.toe, self.ankle))
        return replace(self, heel=heel, toe=toe, ankle=ankle)


def find_feet(request: ExpertRequest) -> list[Foot]:
    """The feet inside the region, the farther first; from landmarks, else from its shape."""
    feet = [foot for side in ("left", "right") if (foot := _from_landmarks(request, side))]
    feet = feet or _from_region(request)
    longest_px = max((foot.length_px for foot in feet), default=1.0)
    feet = [_unforeshortened(foot, longest_px) for foot in feet]
    return sorted(feet, key=lambda foot: float(max(foot.heel[1], foot.toe[1])))


def _from_landmarks(request: ExpertRequest, side: str) -> Foot | None:
    points = request.landmarks.points
    if not {f"{side}_heel", f"{side}_toe"} <= set(points):
        return None
    heel, toe = (np.array(points[f"{side}_{part}"], np.float64) for part in ("heel", "toe"))
    length_px = max(float(np.linalg.norm(toe - heel)), 1.0)
    above = heel + 0.2 * (toe - heel) - (0.0, 0.4 * length_px)
    ankle = np.array(points.get(f"{side}_ankle", above), np.float64)
    knee = np.array(points.get(f"{side}_knee", ankle - (0.0, length_px)), np.float64)
    leg_up = (knee - ankle) / max(float(np.linalg.norm(knee - ankle)), 1e-6)
    if leg_up[1] > -0.2:
        leg_up = np.array([0.0, -1.0])
    x, y = (heel + toe) / 2
    height, width = request.region_hw.shape
    if length_px < 4 or not (0 <= x < width and 0 <= y < height):
        return None
    near = np.zeros_like(request.region_hw)
    cv2.circle(near, (round(x), round(y)), max(round(0.5 * length_px), 2), 255, -1)
    return Foot(heel, toe, ankle, leg_up, True) if (request.region_hw[near > 0] > 0).any() else None


def _from_region(request: ExpertRequest) -> list[Foot]:
    """One foot per part of the region, two where one part is as wide as two feet."""
    region = (request.region_hw > 0).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(region)
    order = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    large = [int(k) for k in order if stats[k, cv2.CC_STAT_AREA] > 0.15 * region.sum()][:2]
    parts = [labels == label for label in large]
    if len(parts) == 1:
        x, _, width, height, _ = (int(value) for value in stats[large[0]])
        if width > 1.9 * height:
            columns = np.arange(region.shape[1])[None] < x + width / 2
            parts = [parts[0] & columns, parts[0] & ~columns]
    return [_from_part(part, request.silhouette_hw) for part in parts]


def _from_part(part: BoolArray, silhouette_hw: UInt8Array | None) -> Foot:
    seen = part
    if silhouette_hw is not None:
        body = part & (silhouette_hw > 127)
        if body.sum() > 0.2 * part.sum():
            seen = body
    x, y, width, height = cv2.boundingRect(seen.astype(np.uint8))
    low = seen[y + height // 2 : y + height]
    xs = np.flatnonzero(low.any(0))
    margin = 0.0 if seen is not part else 0.06 * width
    x0, x1 = float(xs.min()) + margin, float(xs.max()) - margin
    sole_y = y + (0.97 if seen is not part else 0.9) * height
    top_x = float(np.nonzero(seen[y : y + max(height // 4, 1)])[1].mean())
    # The leg stands over the heel; where the shape does not tell, shoes point left as products do.
    toe_right = top_x < x0 + 0.42 * (x1 - x0)
    heel_x, toe_x = (x0, x1) if toe_right else (x1, x0)
    ankle = np.array([heel_x + 0.25 * (toe_x - heel_x), y + 0.2 * height])
    heel, toe = (np.array([end, sole_y]) for end in (heel_x, toe_x))
    return Foot(heel, toe, ankle, np.array([0.0, -1.0]), False)


def _unforeshortened(foot: Foot, longest_px: float) -> Foot:
    """A short steep foot points at the camera: draw it flatter and nearly as long as the other."""
    dx, dy = foot.toe - foot.heel
    tilt = np.arctan2(abs(dy), abs(dx))
    if tilt <= MAX_TILT or foot.length_px > 0.9 * longest_px and tilt > np.radians(50.0):
        return foot
    length_px = max(foot.length_px, 0.8 * longest_px)
    angle = MAX_TILT * np.sign(dy)
    way = np.array([np.cos(angle) * (np.sign(dx) or -1.0), np.sin(angle)]) * length_px / 2
    middle = (foot.heel + foot.toe) / 2
    return replace(foot, heel=middle - way, toe=middle + way)


def fit_to_shoe(foot: Foot, shoe: BoolArray) -> Foot:
    """Heel and toe moved to the ends of the shoe that is worn, where its outline is plausible."""
    ys, xs = np.nonzero(shoe)
    if len(xs) < 0.12 * foot.length_px**2:
        return foot
    points = np.stack([xs, ys], -1) - foot.heel
    along, above = points @ foot.along, points @ foot.up
    start, end = np.percentile(along, (1.0, 99.0))
    if not 0.75 * foot.length_px < end - start < 1.35 * foot.length_px:
        return foot
    span = end - start
    heel_up = np.percentile(above[along < start + 0.2 * span], 4.0)
    toe_up = np.percentile(above[along > end - 0.2 * span], 4.0)
    # The rim of the sole is often taken for ground: the shoe may reach lower, never higher.
    heel_up, toe_up = np.clip((heel_up, toe_up), -0.25 * foot.length_px, 0.0)
    return replace(
        foot,
        heel=foot.heel + foot.along * start + foot.up * heel_up,
        toe=foot.heel + foot.along * end + foot.up * toe_up,
    )
