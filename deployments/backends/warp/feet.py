"""Where the feet are in a crop, which way they point, and what of it is shoe, leg and ground."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import ExpertRequest, Landmarks

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CLEAR_LEAN = 0.08
MAX_TILT = np.radians(24.0)
"""Steeper than this a standing foot points at the camera and is only foreshortened."""

LOW_SHARE = 0.6
"""Of a foot's box, what is foot and not leg."""
MIN_PROFILE = 0.4
"""Nose before the neck, in widths of the face, from where on a person is seen from the side."""
CLEAR_SLOPE, MAX_SLOPE = 0.16, 0.12
"""Of the outline below a foot: from where on it tells toe from heel; what is drawn of it."""


@dataclass(frozen=True, slots=True)
class Foot:
    """One foot on the ground line heel to toe; all in crop pixels."""

    heel: FloatArray
    toe: FloatArray
    ankle: FloatArray
    leg_up: FloatArray
    """Unit vector from the ankle along the leg."""
    is_measured: bool
    """False when it was read off the shape of the region, or of something doubtful."""

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


def find_feet(request: ExpertRequest, standing: BoolArray) -> list[Foot]:
    """The feet inside the region, the farther first.

    Args:
        standing: (H, W) what is seen to stand there. Landmarks that do not lie on it give way to
            its shape; where it shows nothing either, the shape of the region is taken.
    """
    region = request.region_hw > 0
    standing = standing & region
    feet = [foot for side in ("left", "right") if (foot := _from_landmarks(request, side))]
    if request.silhouette_hw is not None and feet:
        feet = _fitted(_as_the_face(feet, request.landmarks), standing)
    elif 0.12 * region.sum() < standing.sum() < 0.85 * region.sum():
        if not feet or not all(_lies_on(foot, standing) for foot in feet):
            feet = _from_shape(standing, True, feet)
    elif not feet:
        feet = _from_shape(region, False, feet)
    longest_px = max((foot.length_px for foot in feet), default=1.0)
    feet = [_unforeshortened(foot, longest_px) for foot in feet]
    return sorted(feet, key=lambda foot: float(max(foot.heel[1], foot.toe[1])))


def _lies_on(foot: Foot, standing: BoolArray) -> bool:
    """Whether something stands between heel and toe, and does not go on beyond them."""
    beyond = max(_share_on(foot, standing, -0.4, -0.2), _share_on(foot, standing, 1.2, 1.4))
    return _share_on(foot, standing, 0.08, 0.92) > 0.4 and beyond < 0.5


def _share_on(foot: Foot, standing: BoolArray, start: float, end: float) -> float:
    """Of a stretch of the sole, in lengths from heel to toe, what something stands on."""
    height, width = standing.shape
    at = foot.heel + np.linspace(start, end, 24)[:, None] * (foot.toe - foot.heel)
    x, y = np.rint(at + 0.1 * foot.length_px * foot.up).astype(int).T
    seen = (0 <= x) & (x < width) & (0 <= y) & (y < height)
    return float(standing[y[seen], x[seen]].mean()) if seen.any() else 0.0


def _as_the_face(feet: list[Foot], landmarks: Landmarks) -> list[Foot]:
    """Feet of a person seen from the side: both point where the face looks."""
    points, face = landmarks.points, landmarks.face
    if face is None or not {"nose", "neck"} <= set(points):
        return feet
    if {"left_ear", "right_ear"} <= set(points):
        return feet
    look = (points["nose"][0] - points["neck"][0]) / max(face[2] - face[0], 1.0)
    if abs(look) < MIN_PROFILE:
        return feet
    return [foot if (foot.toe[0] - foot.heel[0]) * look > 0 else _reversed(foot) for foot in feet]


def _reversed(foot: Foot) -> Foot:
    return replace(foot, heel=foot.toe, toe=foot.heel)


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
    near = np.zeros(request.region_hw.shape, np.uint8)
    cv2.circle(near, (round(x), round(y)), max(round(0.5 * length_px), 2), 255, -1)
    return Foot(heel, toe, ankle, leg_up, True) if (request.region_hw[near > 0] > 0).any() else None


def _fitted(feet: list[Foot], standing: BoolArray) -> list[Foot]:
    """Feet as long and as low as what stands there; as the landmarks say where that is absurd."""
    found = []
    for k, foot in enumerate(feet):
        part = standing
        if len(feet) == 2:
            part = standing & _nearer(standing.shape, [foot, feet[1 - k]])
        found.append(_fitted_one(foot, part))
    if not _are_mixed_up(found):
        return found
    # A foot where nothing stands is somewhere else: a shoe there would be a third one.
    seen = [foot for foot in feet if _share_on(foot, standing, 0.08, 0.92) > 0.4]
    return [_widened(foot, standing) for foot in seen] if len(seen) == 1 else feet


def _widened(foot: Foot, standing: BoolArray) -> Foot:
    """The only foot seen takes in all that stands on the ground, even beyond its landmarks."""
    ys, _ = np.nonzero(standing)
    bottom = float(np.percentile(ys, 99.5))
    columns = np.flatnonzero(standing[round(bottom - 0.3 * foot.length_px) :].sum(0) > 2)
    if not len(columns):
        return foot
    x0, x1 = min(foot.heel[0], foot.toe[0]), max(foot.heel[0], foot.toe[0])
    slack = 0.4 * foot.length_px
    x0, x1 = (
        float(np.clip(columns[0], x0 - slack, x0)),
        float(np.clip(columns[-1], x1, x1 + slack)),
    )
    left, right = np.array([x0, bottom]), np.array([x1, bottom])
    heel, toe = (right, left) if foot.toe[0] < foot.heel[0] else (left, right)
    return replace(foot, heel=heel, toe=toe, is_measured=False)


def _are_mixed_up(feet: list[Foot]) -> bool:
    """Whether two feet touch: then they were read off one shape, which may be anything."""
    if len(feet) < 2:
        return False
    (a0, a1), (b0, b1) = (sorted((foot.heel[0], foot.toe[0])) for foot in feet)
    return bool(min(a1, b1) - max(a0, b0) > -0.06 * min(a1 - a0, b1 - b0))


def _fitted_one(foot: Foot, part: BoolArray) -> Foot:
    """The foot is the lower part of what stands there; landmarks say where its toe is."""
    ys, _ = np.nonzero(part)
    if len(ys) < 32:
        return foot
    top, bottom = int(ys.min()), float(np.percentile(ys, 99.5))
    low = part.copy()
    low[: round(bottom - LOW_SHARE * (bottom - top))] = False
    columns = np.flatnonzero(low.sum(0) > 2)
    if len(columns) < 8:
        return foot
    x0, x1 = float(columns[0]), float(columns[-1])
    if not 0.4 * foot.length_px < x1 - x0 < 1.7 * foot.length_px:
        return foot
    low_px = part.shape[0] - 1 - np.argmax(part[::-1], axis=0)
    near, far = len(columns) // 8, max(len(columns) // 3, 1)
    left, right = (
        float(np.percentile(low_px[c], 80)) for c in (columns[near:far], columns[-far:-near])
    )
    is_left = foot.toe[0] < foot.heel[0]
    slope = (left - right) / (0.6 * (x1 - x0))
    # Who faces the camera has the toes nearer to it, and so lower.
    if abs(slope) > CLEAR_SLOPE:
        is_left = slope > 0
    most = MAX_SLOPE * (x1 - x0)
    ends = [np.array([x1, max(right, left - most)]), np.array([x0, max(left, right - most)])]
    heel, toe = ends if is_left else ends[::-1]
    ankle_y = min(heel[1], toe[1]) - 0.5 * (x1 - x0)
    ankle = np.array([heel[0] + 0.35 * (toe[0] - heel[0]), ankle_y])
    return replace(foot, heel=heel, toe=toe, ankle=ankle)


def _from_shape(shape: BoolArray, is_exact: bool, guesses: list[Foot]) -> list[Foot]:
    """One foot per part of a shape; two where one part is as wide as two feet, or is shared by
    two guessed ones."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(shape.astype(np.uint8))
    order = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    large = [int(k) for k in order if stats[k, cv2.CC_STAT_AREA] > 0.15 * shape.sum()][:2]
    parts = [labels == label for label in large]
    if len(parts) == 1:
        x, _, width, height, _ = (int(value) for value in stats[large[0]])
        if width > 1.9 * height:
            columns = np.arange(shape.shape[1])[None] < x + width / 2
            parts = [parts[0] & columns, parts[0] & ~columns]
        elif len(guesses) == 2:
            nearer = _nearer(shape.shape, guesses)
            parts = [parts[0] & nearer, parts[0] & ~nearer]
    parts = [part for part in parts if part.sum() >= 16]
    leans = [_lean(part) for part in parts]
    # Feet mostly point the same way, and products to the left.
    common = max(leans, key=abs, default=0.0)
    return [
        _from_part(part, lean if abs(lean) > CLEAR_LEAN else common, is_exact)
        for part, lean in zip(parts, leans, strict=True)
    ]


def _nearer(shape: tuple[int, ...], feet: list[Foot]) -> BoolArray:
    """Where the first of two feet is nearer than the second."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    middles = [(foot.heel + foot.toe + foot.ankle) / 3 for foot in feet]
    one, other = (np.hypot(x - middle[0], y - middle[1]) for middle in middles)
    return np.asarray(one < other, np.bool_)


def _lean(part: BoolArray) -> float:
    """Where the leg stands over the foot: -0.5 at its left end, 0.5 at its right."""
    x, y, width, height = cv2.boundingRect(part.astype(np.uint8))
    top = np.nonzero(part[y : y + max(height // 4, 1)])[1].mean()
    low = np.flatnonzero(part[y + height // 2 : y + height].any(0))
    return float((top - low.mean()) / max(np.ptp(low), 1))


def _from_part(part: BoolArray, lean: float, is_exact: bool) -> Foot:
    """A foot as long as the lower half of its part; the leg stands over the heel."""
    _, y, _, height = cv2.boundingRect(part.astype(np.uint8))
    columns = np.flatnonzero(part[y + height // 2 : y + height].any(0))
    x0, x1 = float(columns.min()), float(columns.max())
    margin = 0.0 if is_exact else 0.06 * (x1 - x0)
    bottom = part.shape[0] - 1 - np.argmax(part[::-1], axis=0)
    edge = max(len(columns) // 8, 1)
    ends = [
        np.array([x0 + margin, np.percentile(bottom[columns[:edge]], 80) - margin]),
        np.array([x1 - margin, np.percentile(bottom[columns[-edge:]], 80) - margin]),
    ]
    heel, toe = ends if lean < -CLEAR_LEAN else ends[::-1]
    # The part may hold more leg than shoe: ankles are half a foot's length above the sole.
    ankle_y = max(y + 0.15 * height, min(heel[1], toe[1]) - 0.5 * abs(toe[0] - heel[0]))
    ankle = np.array([heel[0] + 0.25 * (toe[0] - heel[0]), ankle_y])
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
