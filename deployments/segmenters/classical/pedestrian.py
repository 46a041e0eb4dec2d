"""Standing people by their shape alone, for whom no face is needed."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.figure import SOLE, Figure
from deployments.segmenters.classical.presence import CROWN
from serve.messages import UInt8Array

SIDE_PX = 384
PAD_PX = 48
"""People fill their pictures; the detector wants room about them."""
CROWN_AT, SOLE_AT = 0.125, 0.875
"""Of the detector's window: it was trained on people of 96 pixels in windows of 128."""


@dataclass(frozen=True, slots=True)
class Pedestrian:
    """A standing person's window in picture pixels, and how sure the detector is."""

    x: float
    y: float
    width: float
    height: float
    weight: float

    def figure(self) -> Figure:
        unit = (SOLE_AT - CROWN_AT) * self.height / (SOLE + CROWN)
        centre = self.x + self.width / 2
        eyes = self.y + CROWN_AT * self.height + CROWN * unit
        return Figure((centre, eyes), centre, unit)


class PedestrianFinder:
    """Owns OpenCV's people detector, whose coefficients are part of the library."""

    def __init__(self) -> None:
        self._hog = cv2.HOGDescriptor()
        self._hog.setSVMDetector(
            np.asarray(cv2.HOGDescriptor.getDefaultPeopleDetector(), np.float32)
        )

    def find(self, image_hwc: UInt8Array) -> Pedestrian | None:
        """Return the surest standing person that fills at least half of the picture's height."""
        scale = SIDE_PX / max(image_hwc.shape[:2])
        small = cv2.resize(image_hwc, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        padded = cv2.copyMakeBorder(small, *(PAD_PX,) * 4, cv2.BORDER_REPLICATE)
        boxes, weights = self._hog.detectMultiScale(padded, 0.0, (8, 8), scale=1.08)
        found = [
            Pedestrian(
                (x - PAD_PX) / scale, (y - PAD_PX) / scale, width / scale, height / scale, weight
            )
            for (x, y, width, height), weight in zip(
                np.array(boxes, float).reshape(-1, 4).tolist(),
                np.ravel(np.array(weights, float)).tolist(),
                strict=True,
            )
        ]
        tall = [one for one in found if one.height > 0.5 * image_hwc.shape[0]]
        return max(tall, key=lambda one: (one.weight, one.x, one.y), default=None)
