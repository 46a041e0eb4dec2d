"""The part of a crop that an accessory can change, so that nothing else costs time."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import ExpertRequest, Point, UInt8Array

Window = tuple[slice, slice]


def find_window(
    region_hw: UInt8Array, centre: Point, reach_px: float, margin: float = 0.0
) -> Window | None:
    """Rows and columns of the region within reach of a point; None where there is no region.

    Args:
        margin: how much more to take on every side, in longer sides of what was found.
    """
    height, width = region_hw.shape
    x0, y0 = (int(max(at - reach_px, 0)) for at in centre)
    x1, y1 = (int(max(at + reach_px, 0)) for at in centre)
    x, y, w, h = cv2.boundingRect((region_hw[y0:y1, x0:x1] > 0).astype(np.uint8))
    if w < 8 or h < 8:
        return None
    more = round(margin * max(w, h))
    rows = slice(max(y0 + y - more, 0), min(y0 + y + h + more, height))
    return rows, slice(max(x0 + x - more, 0), min(x0 + x + w + more, width))


def cut_window(request: ExpertRequest, window: Window) -> ExpertRequest:
    """The same request about this part of its crop only."""
    silhouette = request.silhouette_hw
    return replace(
        request,
        crop_hwc=request.crop_hwc[window],
        region_hw=request.region_hw[window],
        silhouette_hw=None if silhouette is None else silhouette[window],
        landmarks=request.landmarks.transformed((1.0, 1.0), (-window[1].start, -window[0].start)),
    )


def paste_window(
    request: ExpertRequest, window: Window, image: UInt8Array, alpha_hw: UInt8Array
) -> tuple[UInt8Array, UInt8Array]:
    """The whole crop with the painted part in it, unchanged where the region is 0."""
    whole, alpha = request.crop_hwc.copy(), np.zeros_like(request.region_hw)
    alpha[window] = np.where(request.region_hw[window] > 0, alpha_hw, 0)
    whole[window] = np.where(alpha[window][..., None] > 0, image, request.crop_hwc[window])
    return whole, alpha


def soften_inside(region_hw: UInt8Array) -> NDArray[np.float32]:
    """1 inside the region, falling to 0 over its last pixels, so that a cut is not jagged."""
    inside = cv2.distanceTransform((region_hw > 0).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(np.clip((inside - 0.5) / 2.0, 0.0, 1.0), np.float32)
