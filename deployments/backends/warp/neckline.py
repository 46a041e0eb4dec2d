"""Finds the opening of a garment that the wearer's neck comes out of."""

import cv2
import numpy as np

from deployments.backends.warp.outline import GarmentOutline, extents
from serve.messages import UInt8Array


def neck_hole(product_hwc: UInt8Array, outline: GarmentOutline) -> UInt8Array:
    """The product with an alpha that shows only the opening which the inside of its back fills.

    Empty for an open neckline, through which the wearer shows anyway.
    """
    mask = product_hwc[..., 3] > 127
    hole = np.zeros_like(product_hwc)
    top = int(np.flatnonzero(mask.any(axis=1))[0])
    depth = max(3.0, outline.shoulder_y - top)
    row = int(top + 0.3 * depth)
    left, right = extents(mask[: row + 1])
    width = float(np.clip(right[row] - left[row], 0.18 * outline.chest_px, 0.5 * outline.chest_px))
    centre = (left[row] + right[row]) / 2
    reach = int(0.12 * width)
    columns = mask[:, max(0, int(centre) - reach) : int(centre) + reach + 1]
    middle_top = float(columns.argmax(axis=0).mean())
    back = _back_in_neckline(product_hwc, (round(centre), round(middle_top)), outline)
    if back is not None:
        hole[..., 3] = back
        return hole
    if middle_top - top > 0.18 * width:
        return hole
    axes = (max(1, round(0.40 * width)), max(1, round(0.25 * width)))
    cv2.ellipse(hole, (round(centre), round(middle_top)), axes, 0, 0, 360, (0, 0, 0, 255), -1)
    return hole


def _back_in_neckline(
    product_hwc: UInt8Array, middle_top: tuple[int, int], outline: GarmentOutline
) -> UInt8Array | None:
    """(h, w) alpha of the inside of the back that shows in a V-neck; None where there is none.

    It is darker than the front around it, plain, and narrows downward.
    """
    x, y = middle_top
    chest = outline.chest_px
    lab = cv2.cvtColor(product_hwc[..., :3], cv2.COLOR_RGB2LAB).astype(np.float32)
    level = np.asarray(cv2.GaussianBlur(lab, (0, 0), max(0.8, 0.008 * chest)), np.float32)
    seed = level[y + int(0.05 * chest) : y + int(0.12 * chest) + 1, max(0, x - 3) : x + 4]
    if seed.size == 0:
        return None
    tone = np.median(seed.reshape(-1, 3), axis=0)
    same = (np.abs(level - tone).max(axis=2) < 16.0) & (product_hwc[..., 3] > 127)
    _, labels = cv2.connectedComponents(same.astype(np.uint8), connectivity=4)
    label = labels[min(y + int(0.08 * chest), len(labels) - 1), x]
    part = (labels == label) & (label > 0)
    rows, widths = np.flatnonzero(part.any(axis=1)), part.sum(axis=1)
    if rows.size == 0:
        return None
    height, wide = rows[-1] - rows[0] + 1, float(widths.max())
    is_inside = 0.15 * chest < wide < 0.6 * chest and 0.12 * chest < height < 0.7 * chest
    narrows = widths[rows[-1] - height // 5] < 0.5 * wide
    hull = np.zeros(part.shape, np.uint8)
    points = np.argwhere(part)[:, ::-1].astype(np.int32)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 255)
    is_solid = part.sum() > 0.55 * (hull > 0).sum()
    is_central = abs(float(points[:, 0].mean()) - x) < 0.08 * chest
    around = cv2.dilate(hull, np.ones((15, 15), np.uint8)) > 0
    front = level[around & (hull == 0) & (product_hwc[..., 3] > 127)][:, 0]
    is_darker = front.size > 0 and float(tone[0]) < np.median(front) - 8.0
    if not (is_inside and narrows and is_solid and is_central and is_darker):
        return None
    return np.asarray(cv2.dilate(hull, np.ones((5, 5), np.uint8)), np.uint8)
