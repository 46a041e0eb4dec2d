"""The points of one head: eyes found in the picture, everything else implied by them."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.segmenters.classical.cascades import EYE_CASCADES, Cascades, FloatArray, Search
from deployments.segmenters.classical.faces import FaceFound
from deployments.segmenters.classical.skin import tight_skin
from serve.messages import Box, Point, UInt8Array

UPRIGHT_PX = 144
"""The face box is turned upright and brought to this size; the crop is 1.5 times as wide."""
MARGIN = 0.25
EYE_X = (0.31, 0.69)
EYE_Y = 0.385
"""Eyes in a frontal box of frontalface_alt2, as fractions of its side. Measured on portraits."""
PROFILE = 0.4
CROWD = 8
HIDDEN_EYE = 0.16
"""From the visible eye of a profile to the bridge of the nose, in sizes."""
CHEEK = (0.28, 0.52)
"""Least and most that a face reaches to either side of the eyes' middle."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head in picture pixels, with its own axes: `across` along the eyes, `down` to the chin."""

    eye_a: Point
    """The eye on the picture's left."""
    eye_b: Point
    size_px: float
    """Side of the face box: forehead to chin is about 1.05 of it."""
    roll: float
    """Degrees clockwise in the picture."""
    turn: float
    """-1 profile to the picture's left, 0 frontal, 1 profile to the right."""
    cheek_a: float = 0.45
    cheek_b: float = 0.45
    """From the eyes' middle to either edge of the face, in sizes."""

    @property
    def middle(self) -> FloatArray:
        return np.asarray((np.array(self.eye_a) + np.array(self.eye_b)) / 2, np.float64)

    @property
    def across(self) -> FloatArray:
        angle = np.radians(self.roll)
        return np.array([np.cos(angle), np.sin(angle)], np.float64)

    @property
    def down(self) -> FloatArray:
        across = self.across
        return np.array([-across[1], across[0]])

    @property
    def centre(self) -> float:
        """Middle of the visible face, right of the eyes' middle, in sizes."""
        return (self.cheek_b - self.cheek_a) / 2

    @property
    def width(self) -> float:
        """Edge to edge of the visible face, in sizes."""
        return self.cheek_a + self.cheek_b

    def at(self, right: float, below: float) -> Point:
        """The point that many face sizes right of and below the middle between the eyes."""
        spot = self.middle + self.size_px * (right * self.across + below * self.down)
        return float(spot[0]), float(spot[1])

    def points(self) -> dict[str, Point]:
        """Named points. The person's left is the picture's right."""
        points = {
            "right_eye": self.eye_a,
            "left_eye": self.eye_b,
            "nose": self.at(0.1 * self.turn, 0.24),
            "mouth": self.at(0.07 * self.turn, 0.43),
            "chin": self.at(0.5 * self.centre + 0.03 * self.turn, 0.68),
            "forehead": self.at(0.5 * self.centre, -0.36),
            "neck": self.at(self.centre - 0.1 * self.turn, 0.9),
        }
        # A turned head hides the ear on the side it looks to.
        if self.turn < 0.6:
            points["left_ear"] = self.at(self.cheek_b + 0.03, 0.08)
        if self.turn > -0.6:
            points["right_ear"] = self.at(-self.cheek_a - 0.03, 0.08)
        return points

    def box(self) -> Box:
        """Forehead to chin, cheek to cheek."""
        ends = [self.at(self.centre, -0.36), self.at(self.centre, 0.68)]
        sides = [self.at(-self.cheek_a, 0.1), self.at(self.cheek_b, 0.1)]
        every = np.array(ends + sides)
        (x0, y0), (x1, y1) = every.min(axis=0), every.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)


class HeadReader:
    """Places eyes in a found face. Not thread-safe."""

    def __init__(self, cascades: Cascades) -> None:
        self._cascades = cascades

    def read(self, image_hwc: UInt8Array, face: FaceFound) -> Head:
        """Find both eyes, or put them where faces of this size and pose have them."""
        upright_hwc, back = _upright(image_hwc, face)
        gray = np.asarray(cv2.cvtColor(upright_hwc, cv2.COLOR_RGB2GRAY), np.uint8)
        eyes = self._eyes(gray, face)
        (ax, ay), (bx, by) = (back @ np.array([x, y, 1.0]) for x, y in eyes)
        roll = float(np.degrees(np.arctan2(by - ay, bx - ax)))
        cheek_a, cheek_b = _cheeks(upright_hwc, eyes)
        turn = float(np.clip(1.6 * (cheek_a - cheek_b) / (cheek_a + cheek_b), -0.8, 0.8))
        if abs(face.facing) > PROFILE:
            turn = float(np.sign(face.facing)) * max(abs(turn), 0.85)
        eye_a, eye_b = (float(ax), float(ay)), (float(bx), float(by))
        return Head(eye_a, eye_b, face.size_px, roll, turn, cheek_a, cheek_b)

    def _eyes(self, upright_hw: UInt8Array, face: FaceFound) -> list[Point]:
        band = np.ascontiguousarray(upright_hw[: int(UPRIGHT_PX * (MARGIN + 0.62))])
        search = Search(UPRIGHT_PX * 0.16, UPRIGHT_PX * 0.42, 1.1, 1)
        hits = [
            (hit.x, hit.y)
            for name in EYE_CASCADES
            for hit in self._cascades.find(band, name, search)
        ]
        shift = 0.14 * face.facing
        guess = [((x + MARGIN + shift) * UPRIGHT_PX, (EYE_Y + MARGIN) * UPRIGHT_PX) for x in EYE_X]
        eyes = [_nearest(hits, spot) for spot in guess]
        near = 0 if face.facing > 0 else 1
        if abs(face.facing) > PROFILE and eyes[near] == guess[near]:
            return self._profile_eyes(band, face, eyes)
        return eyes

    def _profile_eyes(self, band_hw: UInt8Array, face: FaceFound, eyes: list[Point]) -> list[Point]:
        """The one visible eye where the cascades crowd, the hidden one just behind the nose."""
        near = 0 if face.facing > 0 else 1
        search = Search(UPRIGHT_PX * 0.16, UPRIGHT_PX * 0.36, 1.07, 0)
        every = [
            (hit.x, hit.y)
            for roll in (-20.0, 0.0, 20.0)
            for hit in self._cascades.find(band_hw, "eye_tree_eyeglasses", search, roll)
        ]
        reach = np.array([0.3, 0.2]) * UPRIGHT_PX
        spots = np.array(every, np.float64).reshape(-1, 2)
        spots = spots[(np.abs(spots - np.array(eyes[near])) < reach).all(axis=1)]
        if len(spots) < CROWD:
            return eyes
        apart = np.linalg.norm(spots[:, None] - spots[None], axis=2) < 0.06 * UPRIGHT_PX
        if int(apart.sum(axis=1).max()) < CROWD:
            return eyes
        x, y = np.median(spots[apart[int(apart.sum(axis=1).argmax())]], axis=0)
        seen = float(x), float(y)
        hidden = seen[0] + float(np.sign(face.facing)) * HIDDEN_EYE * UPRIGHT_PX, seen[1]
        return [seen, hidden] if near == 0 else [hidden, seen]


def _upright(image_hwc: UInt8Array, face: FaceFound) -> tuple[UInt8Array, FloatArray]:
    """The face turned upright (H, W, 3), and the (2, 3) matrix back into the picture."""
    side = int(UPRIGHT_PX * (1 + 2 * MARGIN))
    scale = UPRIGHT_PX / face.size_px
    forth = cv2.getRotationMatrix2D((face.x, face.y), face.roll, scale)
    forth[:, 2] = forth[:, 2] + side / 2 - np.array([face.x, face.y])
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    upright = cv2.warpAffine(
        image_hwc, forth, (side, side), flags=mode, borderMode=cv2.BORDER_REPLICATE
    )
    back = np.asarray(cv2.invertAffineTransform(forth), np.float64)
    return np.asarray(upright, np.uint8), back


def _cheeks(upright_hwc: UInt8Array, eyes: list[Point]) -> tuple[float, float]:
    """How far the face's skin reaches left and right of the eyes' middle, in sizes."""
    (ax, ay), (bx, by) = eyes
    middle, level = (ax + bx) / 2, (ay + by) / 2
    sample = np.zeros(upright_hwc.shape[:2], np.uint8)
    low, high = int(level + 0.1 * UPRIGHT_PX), int(level + 0.34 * UPRIGHT_PX)
    sample[low:high, int(ax) : int(bx)] = 1
    skin = tight_skin(upright_hwc, sample)[low:high]
    share = cv2.blur(skin.astype(np.float32).mean(axis=0, keepdims=True), (5, 1))[0]
    is_face = share > 0.35
    centre = int(np.clip(middle, 0, len(is_face) - 1))
    left, right = _reach(is_face[centre::-1]), _reach(is_face[centre:])
    a, b = (float(np.clip(reach / UPRIGHT_PX, *CHEEK)) for reach in (left, right))
    return a, b


def _reach(line: NDArray[np.bool_]) -> int:
    """Length of the unbroken stretch from the start, forgiving narrow gaps such as a nostril's."""
    gap = int(0.06 * UPRIGHT_PX)
    last = 0
    for index in np.flatnonzero(line):
        if index - last > gap:
            break
        last = int(index)
    return last


def _nearest(hits: list[Point], spot: Point) -> Point:
    """The middle of the responses about a spot, or the spot where there are none."""
    near = [
        hit
        for hit in hits
        if abs(hit[0] - spot[0]) < 0.14 * UPRIGHT_PX and abs(hit[1] - spot[1]) < 0.12 * UPRIGHT_PX
    ]
    if not near:
        return spot
    x, y = np.median(np.array(near), axis=0)
    return float(x), float(y)
