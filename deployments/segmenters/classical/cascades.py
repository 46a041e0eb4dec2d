"""Haar cascades that ship with OpenCV: where they respond, at any angle and mirrored."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

FACE_CASCADES = ("frontalface_alt2", "frontalface_alt", "frontalface_default", "profileface")
EYE_CASCADES = ("eye", "eye_tree_eyeglasses")
BODY_CASCADES = ("upperbody", "fullbody")


@dataclass(frozen=True, slots=True)
class Hit:
    """One square a cascade responded to, in pixels of the picture it was asked about."""

    cascade: str
    x: float
    y: float
    """Centre."""
    size_px: float
    roll: float
    """Degrees, clockwise in the picture, by which the searched copy was turned."""
    facing: int
    """-1 looks to the picture's left, 1 to its right, 0 towards the camera."""


@dataclass(frozen=True, slots=True)
class Search:
    """How finely a cascade looks: everything that trades recall for time."""

    min_px: float
    max_px: float
    step: float = 1.15
    neighbors: int = 2


class Cascades:
    """Owns the loaded classifiers. Not thread-safe: OpenCV keeps buffers inside them."""

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        names = FACE_CASCADES + EYE_CASCADES + BODY_CASCADES
        self._by_name = {
            name: cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml")) for name in names
        }

    def find(self, gray_hw: UInt8Array, name: str, search: Search, roll: float = 0.0) -> list[Hit]:
        """Respond to a grey picture turned upright by `roll`; profiles are tried both ways."""
        turned, back = turn(gray_hw, roll)
        facings = (-1, 1) if name == "profileface" else (0,)
        return [
            hit
            for facing in facings
            for hit in self._find_turned(turned, back, name, search, roll, facing)
        ]

    def _find_turned(
        self,
        turned_hw: UInt8Array,
        back: FloatArray,
        name: str,
        search: Search,
        roll: float,
        facing: int,
    ) -> list[Hit]:
        mirrored = facing == 1
        copy = cv2.flip(turned_hw, 1) if mirrored else turned_hw
        low, high = (max(int(round(px)), 1) for px in (search.min_px, search.max_px))
        boxes = self._by_name[name].detectMultiScale(
            copy, search.step, search.neighbors, minSize=(low, low), maxSize=(high, high)
        )
        hits = []
        # OpenCV's threads finish in any order; sorted, the same picture gives the same answer.
        for x, y, width, height in sorted(map(tuple, np.array(boxes, float).reshape(-1, 4))):
            centre_x = turned_hw.shape[1] - x - width / 2 if mirrored else x + width / 2
            spot = back @ np.array([centre_x, y + height / 2, 1.0])
            hits.append(Hit(name, float(spot[0]), float(spot[1]), float(width), roll, facing))
        return hits


def turn(image: UInt8Array, roll: float) -> tuple[UInt8Array, FloatArray]:
    """Turn a picture about its centre so that a head tilted by `roll` degrees stands upright.

    Returns:
        The picture, same size, and the (2, 3) matrix from its pixels back to the original's.
    """
    height, width = image.shape[:2]
    forth = cv2.getRotationMatrix2D((width / 2, height / 2), roll, 1.0)
    back = np.asarray(cv2.invertAffineTransform(forth), np.float64)
    if roll == 0.0:
        return image, back
    turned = cv2.warpAffine(image, forth, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8), back
