"""The points of one head: eyes found in the picture, everything else implied by them."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.cascades import EYE_CASCADES, Cascades, FloatArray, Search
from deployments.segmenters.classical.faces import FaceFound
from serve.messages import Box, Point, UInt8Array

UPRIGHT_PX = 144
"""The face box is turned upright and brought to this size; the crop is 1.5 times as wide."""
MARGIN = 0.25
EYE_X = (0.31, 0.69)
EYE_Y = 0.385
"""Eyes in a frontal box of frontalface_alt2, as fractions of its side. Measured on portraits."""
FRONTAL_EYE_DISTANCE = 0.40
"""Of the box side; a turned head shows less."""


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

    @property
    def middle(self) -> FloatArray:
        return (np.array(self.eye_a) + np.array(self.eye_b)) / 2

    @property
    def across(self) -> FloatArray:
        angle = np.radians(self.roll)
        return np.array([np.cos(angle), np.sin(angle)])

    @property
    def down(self) -> FloatArray:
        across = self.across
        return np.array([-across[1], across[0]])

    def at(self, right: float, below: float) -> Point:
        """The point that many face sizes right of and below the middle of the head at eye level."""
        spot = self.centre_line + self.size_px * (right * self.across + below * self.down)
        return float(spot[0]), float(spot[1])

    @property
    def centre_line(self) -> FloatArray:
        """Middle of the head at eye level: the eyes lie towards where a turned head looks."""
        return np.asarray(self.middle - 0.16 * self.turn * self.size_px * self.across)

    def points(self) -> dict[str, Point]:
        """Named points. The person's left is the picture's right, unless seen from behind."""
        nose_x, mouth_x = 0.27 * self.turn, 0.22 * self.turn
        left_ear, right_ear = 0.52 - 0.5 * max(self.turn, 0), -0.52 - 0.5 * min(self.turn, 0)
        points = {
            "right_eye": self.eye_a,
            "left_eye": self.eye_b,
            "nose": self.at(nose_x, 0.24),
            "mouth": self.at(mouth_x, 0.43),
            "chin": self.at(0.16 * self.turn, 0.68),
            "forehead": self.at(0.12 * self.turn, -0.36),
            "neck": self.at(-0.1 * self.turn, 0.9),
        }
        # A turned head hides the ear on the side it looks to.
        if self.turn < 0.6:
            points["left_ear"] = self.at(left_ear, 0.08)
        if self.turn > -0.6:
            points["right_ear"] = self.at(right_ear, 0.08)
        return points

    def box(self) -> Box:
        """Forehead to chin, cheek to cheek."""
        sides = [self.at(x, y) for x in (-0.48, 0.48) for y in (-0.36, 0.68)]
        corners = np.array([self.at(0.06 * self.turn + x, y) for x in (-0.47, 0.47) for y in (0,)])
        ends = np.array([self.at(0.0, -0.36), self.at(0.0, 0.68)])
        every = np.vstack([corners, ends])
        assert len(sides) == 4
        (x0, y0), (x1, y1) = every.min(axis=0), every.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)


class HeadReader:
    """Places eyes in a found face. Not thread-safe."""

    def __init__(self, cascades: Cascades) -> None:
        self._cascades = cascades

    def read(self, image_hwc: UInt8Array, face: FaceFound) -> Head:
        """Find both eyes, or put them where faces of this size and pose have them."""
        upright, back = _upright(image_hwc, face)
        eyes = self._eyes(upright, face)
        (ax, ay), (bx, by) = (back @ np.array([x, y, 1.0]) for x, y in eyes)
        roll = float(np.degrees(np.arctan2(by - ay, bx - ax)))
        middle = (eyes[0][0] + eyes[1][0]) / 2 / UPRIGHT_PX - MARGIN - 0.5
        turn = float(np.clip(middle / 0.16, -1.0, 1.0))
        if abs(face.facing) > 0.4:
            turn = float(np.sign(face.facing)) * max(abs(turn), 0.85)
        return Head((float(ax), float(ay)), (float(bx), float(by)), face.size_px, roll, turn)

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
        return [_nearest(hits, spot) for spot in guess]


def _upright(image_hwc: UInt8Array, face: FaceFound) -> tuple[UInt8Array, FloatArray]:
    """The face turned upright in grey, and the (2, 3) matrix back into the picture."""
    side = int(UPRIGHT_PX * (1 + 2 * MARGIN))
    scale = UPRIGHT_PX / face.size_px
    forth = cv2.getRotationMatrix2D((face.x, face.y), face.roll, scale)
    forth[:, 2] += side / 2 - np.array([face.x, face.y])
    gray = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    upright = cv2.warpAffine(gray, forth, (side, side), flags=mode, borderMode=cv2.BORDER_REPLICATE)
    back = np.asarray(cv2.invertAffineTransform(forth), np.float64)
    return np.asarray(upright, np.uint8), back


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
