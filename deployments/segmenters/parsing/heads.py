"""The head's geometry, read from face labels: its box along its own axes, its tilt, its eyes."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.parsing.labels import Part, mark
from deployments.segmenters.shapes import area, box_of, centre_of, grown, largest, split
from serve.messages import Box, Point, UInt8Array

FACE_PARTS = (Part.FACE, Part.EYES, Part.BROWS, Part.MOUTH, Part.GLASSES)
MIN_FACE = 0.0003
"""Of the picture: about 15 px across in 1024, below which eyes cannot be placed."""
MIN_SIDE_PX = 8
MAX_ASPECT = 1.45
"""Height of a face over its width; what hangs below is neck, which some parsers call face."""
NARROW = 0.7
"""Of the largest circle inside the face: narrower than this is no face."""
EYE_LEVEL = 0.40
"""From hairline to chin, where nothing shows the eyes. Source: the canon of thirds puts the brows
at 0.33."""
MAX_TILT = 40.0
LONG = 1.15
"""A shape this much longer than wide shows its direction."""


@dataclass(frozen=True, slots=True)
class HeadBox:
    """A face as an upright box turned by `tilt` about its eyes' middle."""

    eyes: Point
    """Middle between the eyes."""
    width: float
    above: float
    """From the eyes up to the end of the face."""
    below: float
    """From the eyes down to the chin."""
    tilt: float
    """Degrees clockwise in the picture."""
    off_centre: float
    """From the eyes' middle to the face's middle, along the eyes."""

    @property
    def height(self) -> float:
        return self.above + self.below

    def at(self, right_px: float, down_px: float) -> Point:
        """The point so far right of and below the eyes' middle, along the head's own axes."""
        angle = np.radians(self.tilt)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        x, y = self.eyes
        return x + right_px * cos - down_px * sin, y + right_px * sin + down_px * cos

    def corners(self, left: float, top: float, right: float, bottom: float) -> list[Point]:
        """A rectangle by distances from the eyes' middle, in pixels, as four points."""
        return [
            self.at(*spot) for spot in ((left, top), (right, top), (right, bottom), (left, bottom))
        ]

    @property
    def box(self) -> Box:
        half = self.width / 2
        spots = np.array(
            self.corners(self.off_centre - half, -self.above, self.off_centre + half, self.below)
        )
        (x0, y0), (x1, y1) = spots.min(axis=0), spots.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)


def find_head(parts_hw: UInt8Array) -> HeadBox | None:
    """Measure the largest face; None where none is large enough."""
    face = mark(parts_hw, *FACE_PARTS)
    found = largest(face)
    if found is None or area(found) < MIN_FACE * face.size:
        return None
    piece = _without_neck(found)
    if not (piece[parts_hw != Part.GLASSES] > 0).any():
        return None
    tilt = _tilt(parts_hw, piece)
    across, down = _axes(tilt)
    rows, columns = np.nonzero(piece)
    spots = np.stack([columns, rows], axis=1).astype(np.float64) + 0.5
    left, right = np.quantile(spots @ across, (0.005, 0.995))
    top, bottom = np.quantile(spots @ down, (0.002, 0.998))
    width = float(right - left)
    height = min(float(bottom - top), MAX_ASPECT * width)
    if min(width, height) < MIN_SIDE_PX:
        return None
    eyes_across, eyes_down = (left + right) / 2, float(top) + EYE_LEVEL * height
    seen = _eyes_middle(parts_hw, piece)
    if seen is not None:
        eyes_across, eyes_down = float(np.array(seen) @ across), float(np.array(seen) @ down)
    above = float(np.clip(eyes_down - top, 0.15 * height, 0.75 * height))
    middle = eyes_across * across + eyes_down * down
    return HeadBox(
        eyes=(float(middle[0]), float(middle[1])),
        width=width,
        above=above,
        below=height - above,
        tilt=tilt,
        off_centre=float((left + right) / 2 - eyes_across),
    )


def find_eyes(parts_hw: UInt8Array) -> tuple[Point, Point] | None:
    """The centres of both eyes, the picture's left one first, where the parser labels eyes."""
    pieces = split(np.asarray((parts_hw == Part.EYES) * 255, np.uint8), min_share=0.2)
    if len(pieces) < 2:
        return None
    first, second = sorted(centre_of(piece) for piece in pieces[:2])
    return first, second


def _without_neck(face_hw: UInt8Array) -> UInt8Array:
    """Drop what is much narrower than the face: the neck below it."""
    inside = cv2.distanceTransform(np.pad(face_hw, 1), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    radius_px = NARROW * float(inside.max())
    core = np.asarray((inside > radius_px) * 255, np.uint8)
    head = largest(core)
    return face_hw if head is None else np.minimum(grown(head, radius_px + 1.0), face_hw)


def _eyes_middle(parts_hw: UInt8Array, face_hw: UInt8Array) -> Point | None:
    eyes = find_eyes(parts_hw)
    if eyes is not None:
        return (eyes[0][0] + eyes[1][0]) / 2, (eyes[0][1] + eyes[1][1]) / 2
    worn = _worn_glasses(parts_hw, face_hw)
    return None if worn is None else centre_of(worn)


def _worn_glasses(parts_hw: UInt8Array, face_hw: UInt8Array) -> UInt8Array | None:
    """Glasses on this face; those pushed into the hair say nothing about the eyes."""
    glasses = np.where(parts_hw == Part.GLASSES, face_hw, 0).astype(np.uint8)
    if area(glasses) < 0.03 * area(face_hw):
        return None
    _, top, _, bottom = box_of(face_hw)
    _, y = centre_of(glasses)
    return glasses if (y - top) < 0.65 * (bottom - top) else None


def _tilt(parts_hw: UInt8Array, face_hw: UInt8Array) -> float:
    """From the eyes, else from glasses, else from the shape of the face."""
    eyes = find_eyes(parts_hw)
    if eyes is not None:
        (ax, ay), (bx, by) = eyes
        return _limited(float(np.degrees(np.arctan2(by - ay, bx - ax))))
    worn = _worn_glasses(parts_hw, face_hw)
    if worn is not None:
        angle, stretch = _direction(worn)
        if stretch > LONG:
            return _limited(angle)
    angle, stretch = _direction(face_hw)
    left, top, right, bottom = box_of(face_hw)
    if stretch < LONG or bottom - top > MAX_ASPECT * (right - left):
        return 0.0
    return _limited(angle - 90.0 if angle > 0 else angle + 90.0)


def _direction(region_hw: UInt8Array) -> tuple[float, float]:
    """Degrees of the longer axis from the picture's rows, in (-90, 90], and length over width."""
    moments = cv2.moments(region_hw, binaryImage=True)
    mass = max(moments["m00"], 1.0)
    spread = np.array(
        [[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]], np.float64
    )
    values, vectors = np.linalg.eigh(spread / mass)
    x, y = vectors[:, 1]
    angle = float(np.degrees(np.arctan2(y, x)))
    angle = angle - 180.0 if angle > 90.0 else angle + 180.0 if angle <= -90.0 else angle
    return angle, float(np.sqrt(values[1] / max(values[0], 1e-6)))


def _limited(tilt: float) -> float:
    """Tilts beyond what people do are misreadings."""
    return tilt if abs(tilt) <= MAX_TILT else 0.0


def _axes(tilt: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.radians(tilt)
    across = np.array([np.cos(angle), np.sin(angle)], np.float64)
    return across, np.array([-across[1], across[0]])
