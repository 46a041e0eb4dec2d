"""Reads one shoe out of a cut-out product that shows one shoe or a pair."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.shoepair import find_step, split_front
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shoe:
    """One shoe, toe pointing left, with what shows of the other cut off."""

    image_hwc: UInt8Array
    """(h, w, 4), straight alpha."""
    heel: FloatArray
    toe: FloatArray
    """Ends of the sole (x, y)."""

    @property
    def nbytes(self) -> int:
        return self.image_hwc.nbytes + self.heel.nbytes + self.toe.nbytes

    @property
    def length_px(self) -> float:
        return float(np.linalg.norm(self.toe - self.heel))

    @property
    def up(self) -> FloatArray:
        """Unit vector from the sole; the toe is left, so up is right of the way to it."""
        along = (self.toe - self.heel) / max(self.length_px, 1.0)
        return np.array([-along[1], along[0]])

    @property
    def reach_px(self) -> tuple[float, float]:
        """Lowest and highest from the line of the sole; in a slanted view the sole bulges down."""
        ys, xs = np.nonzero(self.image_hwc[..., 3] > 127)
        if len(xs) < 2:
            return 0.0, 1.0
        above = (np.stack([xs, ys], -1) - self.heel) @ self.up
        return min(float(np.percentile(above, 0.5)), 0.0), float(np.percentile(above, 97.0))


def read_shoe(rgba_hwc: UInt8Array) -> Shoe:
    """The whole shoe in the product picture: the only one, the larger, or the one in front."""
    rgba_hwc = _cropped(_largest(rgba_hwc))
    step = find_step(rgba_hwc)
    if step is not None:
        rgba_hwc = _cropped(split_front(rgba_hwc, step))
    if _points_right(rgba_hwc[..., 3] > 127):
        rgba_hwc = np.ascontiguousarray(rgba_hwc[:, ::-1])
    heel, toe = _sole_ends(rgba_hwc[..., 3] > 127)
    return Shoe(rgba_hwc, heel, toe)


def _largest(rgba_hwc: UInt8Array) -> UInt8Array:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (rgba_hwc[..., 3] > 40).astype(np.uint8)
    )
    if count <= 2:
        return rgba_hwc
    keep = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    out = rgba_hwc.copy()
    out[..., 3] = np.where(keep, out[..., 3], 0)
    return out


def _cropped(rgba_hwc: UInt8Array) -> UInt8Array:
    x, y, width, height = cv2.boundingRect((rgba_hwc[..., 3] > 40).astype(np.uint8))
    if width < 2 or height < 2:
        return rgba_hwc
    return np.ascontiguousarray(rgba_hwc[y : y + height, x : x + width])


def _points_right(mask: BoolArray) -> bool:
    """The toe is the low end of a shoe."""
    tall = mask.sum(0)
    third = max(mask.shape[1] // 3, 1)
    return bool(tall[-third:].mean() < tall[:third].mean())


def _sole_ends(mask: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Heel (right) and toe (left): the outermost columns, at the height of the sole there."""
    height, width = mask.shape
    bottom = height - 1 - np.argmax(mask[::-1], axis=0)
    columns = np.flatnonzero(mask.any(0))
    if len(columns) < 3:
        return np.array([width - 1.0, height - 1.0]), np.array([0.0, height - 1.0])
    edge = max(len(columns) // 12, 1)
    toe_y = float(np.median(bottom[columns[edge : 2 * edge]]))
    heel_y = float(np.median(bottom[columns[-2 * edge : -edge]]))
    return np.array([width - 1.0, heel_y]), np.array([0.0, toe_y])
