"""Masks of a body's torso, and of what lies near a mask."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def _polygon(shape: tuple[int, ...], corners: list[NDArray[np.float64]]) -> BoolArray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(np.array(corners)).astype(np.int32)], 1)
    return mask > 0


def torso_mask(body: Body, size: tuple[int, ...], grow_px: float) -> BoolArray:
    """Shoulders to hips, without arms."""
    middle = np.mean(body.shoulders, axis=0)
    down = np.mean(body.hips, axis=0) - middle
    half = 0.5 * body.shoulder_px + grow_px
    corners = []
    for sign, shares in ((-1.0, (0.0, 0.3, 0.62, 1.0, 1.2)), (1.0, (1.2, 1.0, 0.62, 0.3, 0.0))):
        widths = dict(zip((0.0, 0.3, 0.62, 1.0, 1.2), (1.0, 0.92, 0.8, 0.95, 0.97), strict=True))
        corners += [
            middle + share * down + sign * widths[share] * half * body.across for share in shares
        ]
    neck = body.neck - 0.05 * body.unit_px * np.array([0.0, 1.0])
    side = 0.2 * body.unit_px * body.across
    return _polygon(size, [*corners, neck + side, neck - side])


def torso_depth(body: Body, size: tuple[int, int]) -> FloatArray:
    """How far down each pixel lies: 0 at the shoulders, 1 at the hips."""
    top, bottom = np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)
    down = (bottom - top) / max(body.torso_px**2, 1.0)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return np.asarray((x - top[0]) * down[0] + (y - top[1]) * down[1], np.float32)


def near(mask_hw: BoolArray, radius_px: int) -> BoolArray:
    kernel = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    return np.asarray(cv2.dilate(mask_hw.astype(np.uint8), kernel) > 0)
