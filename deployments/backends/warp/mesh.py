"""Bends a product by a grid of quads; knows nothing about what the product is."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]
Grid = NDArray[np.float64]
"""(rows, columns, 2): x, y of the nodes in pixels."""


def warp(
    product_hwc: UInt8Array, source: Grid, target: Grid, size_hw: tuple[int, int]
) -> FloatArray:
    """Draw the part of the product under `source` so that its nodes fall on those of `target`.

    Args:
        product_hwc: (h, w, 4) RGBA, straight alpha.
        source: nodes in product pixels; may reach beyond the product.
        target: nodes in crop pixels, as many as `source`.

    Returns:
        (H, W, 4) premultiplied RGBA in [0, 255]; zero where the mesh does not reach.
    """
    product, scale = _match_scale(product_hwc, source, target)
    map_xy = np.full((*size_hw, 2), -10.0, np.float32)
    for cell in _triangles(source * scale, target):
        _draw_triangle(map_xy, *cell)
    drawn = cv2.remap(
        product, map_xy[..., 0], map_xy[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT
    )
    alpha = drawn[..., 3:].clip(0, 255)
    # Cubic overshoot would make premultiplied colours brighter than their alpha allows.
    return np.asarray(np.dstack([np.clip(drawn[..., :3], 0, alpha), alpha]), np.float32)


def premultiply(product_hwc: UInt8Array) -> FloatArray:
    product = product_hwc.astype(np.float32)
    product[..., :3] *= product[..., 3:] / 255.0
    return np.asarray(product, np.float32)


def over(front: FloatArray, back: FloatArray) -> FloatArray:
    """Lay one premultiplied layer over another."""
    return np.asarray(front + back * (1.0 - front[..., 3:] / 255.0), np.float32)


def _match_scale(product_hwc: UInt8Array, source: Grid, target: Grid) -> tuple[FloatArray, float]:
    """Shrink a product that will be drawn smaller, so that drawing it does not alias."""
    product = premultiply(product_hwc)
    ratio = np.sqrt(max(_area(target), 1.0) / max(_area(source), 1.0))
    if ratio >= 0.9:
        return product, 1.0
    size = [max(2, round(side * ratio)) for side in product_hwc.shape[1::-1]]
    small = cv2.resize(product, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32), float(size[0] / product_hwc.shape[1])


def _area(grid: Grid) -> float:
    down, right = grid[1:, :-1] - grid[:-1, :-1], grid[:-1, 1:] - grid[:-1, :-1]
    return float(np.abs(down[..., 0] * right[..., 1] - down[..., 1] * right[..., 0]).sum())


def _triangles(source: Grid, target: Grid) -> Iterator[tuple[Grid, Grid]]:
    for r, c in np.ndindex(source.shape[0] - 1, source.shape[1] - 1):
        for corners in (((r, c), (r, c + 1), (r + 1, c)), ((r, c + 1), (r + 1, c + 1), (r + 1, c))):
            rows, columns = np.array(corners).T
            yield source[rows, columns], target[rows, columns]


def _draw_triangle(map_xy: FloatArray, source: Grid, target: Grid) -> None:
    height, width = map_xy.shape[:2]
    low = np.maximum(np.floor(target.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(target.max(axis=0)).astype(int) + 1, (width, height))
    edges = np.array([target[1] - target[0], target[2] - target[0]]).T
    determinant = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]
    if (high <= low).any() or abs(determinant) < 1e-6:
        return
    dx = np.arange(low[0], high[0], dtype=np.float32)[None, :] - np.float32(target[0, 0])
    dy = np.arange(low[1], high[1], dtype=np.float32)[:, None] - np.float32(target[0, 1])
    inverse = (
        np.array([[edges[1, 1], -edges[0, 1]], [-edges[1, 0], edges[0, 0]]]) / determinant
    ).astype(np.float32)
    u = dx * inverse[0, 0] + dy * inverse[0, 1]
    v = dx * inverse[1, 0] + dy * inverse[1, 1]
    # Slightly too large, so that neighbours leave no seam between them.
    inside = (u >= -1e-3) & (v >= -1e-3) & (u + v <= 1 + 1e-3)
    span = np.array([source[1] - source[0], source[2] - source[0]], np.float32)
    placed = source[0].astype(np.float32) + u[inside, None] * span[0] + v[inside, None] * span[1]
    map_xy[low[1] : high[1], low[0] : high[0]][inside] = placed
