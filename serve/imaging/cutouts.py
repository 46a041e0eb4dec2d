"""What a model is shown to judge a painted picture by: small cutouts, never the picture."""

from typing import Any

import cv2
import numpy as np

from serve.messages import (
    Box,
    ExpertReply,
    ExpertRequest,
    JudgeRequest,
    Landmarks,
    UInt8Array,
)

MAX_SIDE_PX = 448
"""Twice what most vision networks look at."""
_FACE_MARGIN = 0.2
_LEAST_SIDE_PX = 8


def cut_for_judge(request: ExpertRequest, reply: ExpertReply) -> JudgeRequest | None:
    """Of the first picture of a reply.

    Returns:
        None where nothing was painted, or no product is seen.
    """
    painted_hwc = reply.images_nhwc[0]
    painted_hw = request.region_hw
    if reply.alpha_nhw is not None:
        painted_hw = np.minimum(painted_hw, reply.alpha_nhw[0])
    product_hwc = _flatten(request.product_hwc)
    product = _cut(product_hwc, _bound(request.product_hwc[..., 3]))
    painted = _cut(painted_hwc, _bound(painted_hw))
    if product is None or painted is None:
        return None
    return JudgeRequest(product, painted, _cut_faces(request, painted_hwc, product_hwc))


def _cut_faces(
    request: ExpertRequest, painted_hwc: UInt8Array, product_hwc: UInt8Array
) -> tuple[UInt8Array, UInt8Array] | None:
    """The face as it shall look and as it was painted, where the region touches one at all."""
    face = _widen(request.landmarks)
    after = _cut(painted_hwc, face)
    touched = _cut(request.region_hw, face)
    if after is None or touched is None or not touched.any():
        return None
    if request.version.partition("@")[0] == "face":
        # The face is the product here: it shall become the product's, not stay the person's.
        wanted = _cut(product_hwc, _widen(request.product_landmarks))
    else:
        wanted = _cut(request.crop_hwc, face)
    return None if wanted is None else (wanted, after)


def _widen(landmarks: Landmarks) -> Box | None:
    if landmarks.face is None:
        return None
    x0, y0, x1, y1 = landmarks.face
    across, down = (x1 - x0) * _FACE_MARGIN, (y1 - y0) * _FACE_MARGIN
    return x0 - across, y0 - down, x1 + across, y1 + down


def _bound(map_hw: UInt8Array) -> Box:
    x, y, width, height = cv2.boundingRect((map_hw > 127).astype(np.uint8))
    return x, y, x + width, y + height


def _cut(image: UInt8Array, box: Box | None) -> UInt8Array | None:
    """None where less than a few pixels of the box lie in the picture."""
    if box is None:
        return None
    height, width = image.shape[:2]
    x0, x1 = (round(min(max(x, 0), width)) for x in (box[0], box[2]))
    y0, y1 = (round(min(max(y, 0), height)) for y in (box[1], box[3]))
    if min(x1 - x0, y1 - y0) < _LEAST_SIDE_PX:
        return None
    part = image[y0:y1, x0:x1]
    factor = MAX_SIDE_PX / max(part.shape[:2])
    if factor >= 1:
        return np.ascontiguousarray(part)
    size = [max(1, round(side * factor)) for side in part.shape[1::-1]]
    small: Any = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    return small  # type: ignore[no-any-return]


def _flatten(rgba_hwc: UInt8Array) -> UInt8Array:
    """On white, as catalogues show it."""
    alpha = rgba_hwc[..., 3:].astype(np.float32) / 255
    return np.asarray(np.rint(255 + (rgba_hwc[..., :3] - 255.0) * alpha), np.uint8)
