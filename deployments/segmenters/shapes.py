"""Operations on binary regions, (H, W) of 0 and 255, that the weighted maskers share."""

import cv2
import numpy as np

from serve.messages import Box, Point, UInt8Array


def grown(region_hw: UInt8Array, radius_px: float) -> UInt8Array:
    """Dilate by a disc; by distance, because large structuring elements take seconds."""
    if radius_px < 0.5 or not region_hw.any():
        return region_hw.copy()
    left, top, right, bottom = _window(region_hw, int(radius_px) + 2)
    inside = np.ascontiguousarray(region_hw[top:bottom, left:right])
    distance = cv2.distanceTransform(255 - inside, cv2.DIST_L2, cv2.DIST_MASK_5)
    larger = region_hw.copy()
    larger[top:bottom, left:right] = (distance <= radius_px) * 255
    return larger


def shrunk(region_hw: UInt8Array, radius_px: float) -> UInt8Array:
    """Erode by a disc; the picture's border does not eat into the region."""
    if radius_px < 0.5:
        return region_hw.copy()
    distance = cv2.distanceTransform(
        np.pad(region_hw, 1, mode="edge"), cv2.DIST_L2, cv2.DIST_MASK_5
    )
    return np.asarray((distance[1:-1, 1:-1] > radius_px) * 255, np.uint8)


def closed(region_hw: UInt8Array, size_px: float) -> UInt8Array:
    """Close gaps narrower than size_px; what lies off the picture counts as more of the same."""
    pad = int(size_px) + 2
    padded = np.pad(region_hw, pad, mode="edge")
    larger = grown(padded, size_px / 2)
    filled = 255 - grown(255 - larger, size_px / 2)
    return np.maximum(filled[pad:-pad, pad:-pad], region_hw)


def hull(region_hw: UInt8Array) -> UInt8Array:
    """The convex hull of everything in it."""
    shape = np.zeros_like(region_hw)
    spots = cv2.findNonZero(region_hw)
    if spots is not None:
        cv2.fillConvexPoly(shape, cv2.convexHull(spots), 255)
    return shape


def filled_rows(region_hw: UInt8Array) -> UInt8Array:
    """Fill every row from its first to its last pixel: cloth spans the gap between the legs."""
    solid = region_hw > 0
    from_left = np.maximum.accumulate(solid, axis=1)
    from_right = np.maximum.accumulate(solid[:, ::-1], axis=1)[:, ::-1]
    return ((from_left & from_right) * 255).astype(np.uint8)


def split(region_hw: UInt8Array, min_share: float = 0.0) -> list[UInt8Array]:
    """Its connected parts, largest first, without those below min_share of the largest."""
    if not region_hw.any():
        return []
    _, parts, stats, _ = cv2.connectedComponentsWithStats(region_hw, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")
    least = min_share * int(areas.max())
    return [
        np.asarray((parts == index + 1) * 255, np.uint8) for index in order if areas[index] >= least
    ]


def largest(region_hw: UInt8Array) -> UInt8Array | None:
    """Its largest connected part; None where it is empty."""
    pieces = split(region_hw, min_share=1.0)
    return pieces[0] if pieces else None


def without_specks(region_hw: UInt8Array, min_share: float) -> UInt8Array:
    """What is left without connected parts below min_share of the largest."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(region_hw, connectivity=8)
    if count <= 2:
        return region_hw.copy()
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = areas >= min_share * int(areas[1:].max())
    kept[0] = False
    return np.asarray(kept[parts] * 255, np.uint8)


def box_of(region_hw: UInt8Array) -> Box:
    """Its bounding box; of no size where the region is empty."""
    x, y, width, height = cv2.boundingRect(region_hw)
    return float(x), float(y), float(x + width), float(y + height)


def shorter_side(region_hw: UInt8Array) -> float:
    x0, y0, x1, y1 = box_of(region_hw)
    return min(x1 - x0, y1 - y0)


def area(region_hw: UInt8Array) -> int:
    return int(np.count_nonzero(region_hw))


def centre_of(region_hw: UInt8Array) -> Point:
    """Its centroid."""
    rows, columns = np.nonzero(region_hw)
    return float(columns.mean()), float(rows.mean())


def add_box(region_hw: UInt8Array, box: Box) -> None:
    """Fill a box, as far as it lies in the picture."""
    x0, y0, x1, y1 = (max(round(edge), 0) for edge in box)
    region_hw[y0:y1, x0:x1] = 255


def add_polygon(region_hw: UInt8Array, corners: list[Point]) -> None:
    cv2.fillPoly(region_hw, [np.rint(np.array(corners)).astype(np.int32)], 255)


def _window(region_hw: UInt8Array, margin_px: int) -> tuple[int, int, int, int]:
    height, width = region_hw.shape
    x0, y0, x1, y1 = (int(edge) for edge in box_of(region_hw))
    return (
        *(max(x0 - margin_px, 0), max(y0 - margin_px, 0)),
        *(min(x1 + margin_px, width), min(y1 + margin_px, height)),
    )
