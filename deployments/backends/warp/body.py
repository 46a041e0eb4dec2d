"""The wearer's frame in crop pixels: completed landmarks, the torso's axis, limbs, body widths."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve.messages import Landmarks, Point, UInt8Array

FloatArray = NDArray[np.float64]

_TORSO_PER_SHOULDER = 1.35
"""Shoulder-to-hip length over width of the shoulder joints, of an average adult from the front."""
_LEAST_PX = 6.0
"""Shoulders or torso below this size are no body that a product could be seen on."""
_MODEL = ((-0.2, 0.0, 0.3, 0.62, 1.0, 1.3, 2.0, 3.0), (0.5, 0.55, 0.5, 0.42, 0.5, 0.5, 0.36, 0.3))
"""Half-width of a body in shoulder widths at multiples of the torso's length from the shoulders."""


@dataclass(frozen=True, slots=True)
class Path:
    """A polyline with a frame at each length along it."""

    points: FloatArray
    """(n, 2), evenly spaced."""
    step_px: float
    origin_px: float = 0.0
    """Length along the points at which the path's own measure is 0."""

    @property
    def length_px(self) -> float:
        """From the origin to the end."""
        return self.step_px * (len(self.points) - 1) - self.origin_px

    def at(self, t_px: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions and unit tangents at lengths along the path; straight on beyond its ends."""
        k = np.arange(len(self.points)) * self.step_px - self.origin_px
        inside = np.clip(t_px, -self.origin_px, self.length_px)
        tangents = np.gradient(self.points, self.step_px, axis=0)
        place, tangent = (
            np.stack([np.interp(inside, k, column) for column in values.T], axis=-1)
            for values in (self.points, tangents)
        )
        tangent /= np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-6)
        return place + (t_px - inside)[..., None] * tangent, tangent


def trace(corners: list[FloatArray], smooth_px: float) -> Path:
    """Walk through the corners and round them off."""
    lengths = [float(np.linalg.norm(b - a)) for a, b in zip(corners[:-1], corners[1:], strict=True)]
    k = np.concatenate([[0.0], np.cumsum(lengths)])
    count = max(16, int(k[-1] / 4))
    t = np.linspace(0.0, k[-1], count)
    points = np.stack([np.interp(t, k, column) for column in np.array(corners).T], axis=1)
    radius = min(count // 3, max(1, int(smooth_px / max(k[-1] / count, 1e-6))))
    kernel = np.hanning(2 * radius + 3)[1:-1]
    # Mirrored through the end points, so that the ends stay where they are.
    head = 2 * points[0] - points[1 : radius + 1][::-1]
    tail = 2 * points[-1] - points[-radius - 1 : -1][::-1]
    padded = np.concatenate([head, points, tail])
    rounded = [np.convolve(column, kernel / kernel.sum(), mode="valid") for column in padded.T]
    return Path(np.stack(rounded, axis=1), max(float(k[-1] / (count - 1)), 1e-3))


@dataclass(frozen=True, slots=True)
class Body:
    """A person who faces us more or less; left and right are the image's."""

    shoulders: tuple[FloatArray, FloatArray]
    hips: tuple[FloatArray, FloatArray]
    arms: tuple[list[FloatArray], list[FloatArray]]
    """Shoulder, elbow, wrist."""
    legs: tuple[list[FloatArray], list[FloatArray]]
    """Hip, knee, ankle."""
    neck: FloatArray
    chin: FloatArray

    @property
    def shoulder_px(self) -> float:
        return float(np.linalg.norm(self.shoulders[1] - self.shoulders[0]))

    @property
    def torso_px(self) -> float:
        return float(np.linalg.norm(np.mean(self.hips, axis=0) - np.mean(self.shoulders, axis=0)))

    @property
    def unit_px(self) -> float:
        """Shoulder width as it would be from the front, also of a person who is turned."""
        return max(self.shoulder_px, 0.58 * self.torso_px)

    @property
    def across(self) -> FloatArray:
        """Unit vector from the image's left shoulder to the right one."""
        span = self.shoulders[1] - self.shoulders[0]
        return np.asarray(span / max(float(np.linalg.norm(span)), 1e-6))

    def axis(self, with_legs: bool) -> Path:
        """From between the shoulders to between the hips, and on to between the ankles."""
        top = np.mean(self.shoulders, axis=0)
        # The neck tells the middle of a person who is turned better than the shoulders do.
        aside = float((self.neck - top) @ self.across) / 2
        top = top + np.clip(aside, -0.2 * self.unit_px, 0.2 * self.unit_px) * self.across
        rise = 0.35 * self.torso_px
        upright = np.array([self.across[1], -self.across[0]])
        corners = [top + rise * upright, top, np.mean(self.hips, axis=0)]
        if with_legs:
            corners += [np.mean([leg[joint] for leg in self.legs], axis=0) for joint in (1, 2)]
        return replace(trace(corners, 0.3 * self.torso_px), origin_px=rise)

    def model_half_width(self, t_px: FloatArray) -> FloatArray:
        """Half-width of a body at lengths below the shoulders; arms do not count."""
        shoulder = np.clip(self.shoulder_px, 0.8 * self.unit_px, None)
        return np.asarray(shoulder * np.interp(t_px / max(self.torso_px, 1.0), *_MODEL))


def find_body(landmarks: Landmarks) -> Body | None:
    """Complete what the landmarks say about a body; None when they say too little."""
    points = landmarks.points
    shoulders = _find_shoulders(landmarks)
    hips = _pair(points, "hip")
    if shoulders is None and hips is None:
        return None
    if shoulders is None and hips is not None:
        width = float(np.linalg.norm(hips[1] - hips[0])) / 0.62
        middle = np.mean(hips, axis=0) - (0.0, _TORSO_PER_SHOULDER * width)
        shoulders = middle - (width / 2, 0.0), middle + (width / 2, 0.0)
    assert shoulders is not None
    middle = np.mean(shoulders, axis=0)
    width = float(np.linalg.norm(shoulders[1] - shoulders[0]))
    if hips is None:
        below = middle + (0.0, _TORSO_PER_SHOULDER * width)
        hips = below - (0.31 * width, 0.0), below + (0.31 * width, 0.0)
    if width < _LEAST_PX or np.linalg.norm(np.mean(hips, axis=0) - middle) < _LEAST_PX:
        return None
    torso = max(float(np.linalg.norm(np.mean(hips, axis=0) - middle)), 0.6 * width)
    sides = _sides(points)
    arms = tuple(
        _limb(points, side, shoulder, ("elbow", "wrist"), 0.55 * torso)
        for side, shoulder in zip(sides, shoulders, strict=True)
    )
    legs = tuple(
        _limb(points, side, hip, ("knee", "ankle"), 0.85 * torso)
        for side, hip in zip(sides, hips, strict=True)
    )
    neck = _point(points, "neck", middle - (0.0, 0.15 * width))
    chin = _point(points, "chin", neck - (0.0, 0.2 * width))
    return Body(shoulders, hips, (arms[0], arms[1]), (legs[0], legs[1]), neck, chin)


def _point(points: Mapping[str, Point], name: str, default: FloatArray) -> FloatArray:
    return np.asarray(points.get(name, default), float)


def _sides(points: Mapping[str, Point]) -> tuple[str, str]:
    """Names of the image's left and right side."""
    for joint in ("shoulder", "hip"):
        pair = points.get(f"left_{joint}"), points.get(f"right_{joint}")
        if pair[0] is not None and pair[1] is not None:
            return ("left", "right") if pair[0][0] < pair[1][0] else ("right", "left")
    return "right", "left"


def _pair(points: Mapping[str, Point], joint: str) -> tuple[FloatArray, FloatArray] | None:
    left, right = (f"{side}_{joint}" for side in _sides(points))
    if left not in points or right not in points:
        return None
    return np.asarray(points[left], float), np.asarray(points[right], float)


def _find_shoulders(landmarks: Landmarks) -> tuple[FloatArray, FloatArray] | None:
    found = _pair(landmarks.points, "shoulder")
    if found is not None or landmarks.face is None:
        return found
    x0, y0, x1, y1 = landmarks.face
    middle, half = np.array([(x0 + x1) / 2, y1 + 0.45 * (y1 - y0)]), 1.05 * (x1 - x0)
    return middle - (half, 0.0), middle + (half, 0.0)


def _limb(
    points: Mapping[str, Point],
    side: str,
    root: FloatArray,
    joints: tuple[str, str],
    bone_px: float,
) -> list[FloatArray]:
    middle = _point(points, f"{side}_{joints[0]}", root + (0.0, bone_px))
    direction = (middle - root) / max(float(np.linalg.norm(middle - root)), 1e-6)
    # A forearm or shin that is not seen goes on the way the upper part went.
    end = _point(points, f"{side}_{joints[1]}", middle + direction * bone_px)
    return [root, middle, end]


def ray_half_widths(
    silhouette_hw: UInt8Array, place: FloatArray, direction: FloatArray, limit_px: FloatArray
) -> FloatArray:
    """How far the person reaches from each place along its direction, at most `limit_px`."""
    height, width = silhouette_hw.shape
    reach = np.zeros(len(place))
    for i in range(len(place)):
        steps = np.arange(0.0, limit_px[i] + 1.0)
        xy = np.rint(place[i] + steps[:, None] * direction[i]).astype(int)
        within = (xy >= 0).all(axis=1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        on = np.ones(len(steps), bool)
        on[within] = silhouette_hw[xy[within, 1], xy[within, 0]] > 127
        reach[i] = steps[-1] if on.all() else steps[on.argmin()]
    return reach
