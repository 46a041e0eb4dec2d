"""Puts another scene behind the person, without a halo of the old one.

The person is not relit: where the region is 0 nothing changes.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import ExpertRequest, Landmarks, UInt8Array

Float32Array = NDArray[np.float32]

ANCHOR_Y = 0.65
"""Which part of a too tall scene is kept: more ground than sky, as the person stands on it."""
LIGHT_WRAP = 0.12
SHADOW = 0.45


def replace_background(
    request: ExpertRequest, rng: np.random.Generator
) -> tuple[UInt8Array, UInt8Array]:
    """Paint the product picture behind the person.

    Returns:
        (H, W, 3) and (H, W). The colours are straight: mixed into the crop by `region_hw` / 255
        they give the composite, with the old background taken out of the soft edge.
    """
    weight = request.region_hw.astype(np.float32)[..., None] / 255.0
    crop = request.crop_hwc.astype(np.float32)
    scene = _cover(request.product_hwc, request.region_hw.shape)
    scene = scene * (1.0 - _ground_shadow(request.landmarks, request.region_hw)[..., None])
    person = _person_colour(crop, weight)
    person += LIGHT_WRAP * weight * (_broad(scene) - person)
    # Solved so that (1 - w) * crop + w * image == (1 - w) * person + w * scene.
    image = scene + (person - crop) * (1.0 - weight) / np.maximum(weight, 1 / 255)
    changed = request.region_hw > 0
    image = np.where(changed[..., None], np.rint(np.clip(image, 0, 255)), crop).astype(np.uint8)
    return image, np.where(changed, 255, 0).astype(np.uint8)


def _broad(scene: Float32Array) -> Float32Array:
    height, width = scene.shape[:2]
    size = (max(width // 8, 1), max(height // 8, 1))
    small = cv2.GaussianBlur(cv2.resize(scene, size, interpolation=cv2.INTER_AREA), (0, 0), 1.2)
    return np.asarray(cv2.resize(small, (width, height)), np.float32)


def _cover(product_hwc: UInt8Array, shape: tuple[int, ...]) -> Float32Array:
    """The scene scaled to fill the crop, its aspect kept, what is too much cut off."""
    height, width = shape
    h, w = product_hwc.shape[:2]
    scale = max(height / h, width / w)
    size = (max(round(w * scale), width), max(round(h * scale), height))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    alpha = product_hwc[..., 3:].astype(np.float32) / 255.0
    flat = product_hwc[..., :3].astype(np.float32) * alpha + 255.0 * (1.0 - alpha)
    filled = cv2.resize(flat, size, interpolation=method)
    x, y = (size[0] - width) // 2, round((size[1] - height) * ANCHOR_Y)
    return np.asarray(np.clip(filled[y : y + height, x : x + width], 0.0, 255.0), np.float32)


def _person_colour(crop: Float32Array, weight: Float32Array) -> Float32Array:
    """The person's own colour, carried outward from where the person is for certain."""
    sure = (weight[..., 0] < 0.02).astype(np.uint8)
    inner = cv2.erode(sure, np.ones((5, 5), np.uint8)).astype(np.float32)
    colour, known = np.zeros_like(crop), np.zeros(inner.shape, np.float32)
    for sigma in (1.5, 4.0, 12.0):
        parts = cv2.GaussianBlur(np.dstack([crop * inner[..., None], inner]), (0, 0), sigma)
        share = np.clip(parts[..., 3] * 8.0, 0.0, 1.0) * (1.0 - known)
        colour += share[..., None] * parts[..., :3] / np.maximum(parts[..., 3:], 1e-6)
        known += share
    edge = np.clip(weight * 8.0, 0.0, 1.0) * known[..., None]
    colour /= np.maximum(known[..., None], 1e-6)
    return np.asarray((crop + edge * (colour - crop)), np.float32)


def _ground_shadow(landmarks: Landmarks, region_hw: UInt8Array) -> Float32Array:
    """How much darker the ground is under the feet, in [0, 1]; nothing where no foot is seen."""
    height, width = region_hw.shape
    shadow = np.zeros((height, width), np.float32)
    feet = [
        tuple(np.array(landmarks.points[f"{side}_{part}"]) for part in ("heel", "toe"))
        for side in ("left", "right")
        if {f"{side}_heel", f"{side}_toe"} <= set(landmarks.points)
    ]
    ground_y = max((max(heel[1], toe[1]) for heel, toe in feet), default=0.0)
    for heel, toe in feet:
        length_px = max(float(np.linalg.norm(toe - heel)), 0.02 * height)
        sole_y = float(max(heel[1], toe[1]))
        if sole_y >= height or sole_y < ground_y - 1.5 * length_px:
            continue
        one = np.zeros_like(shadow)
        axes = (round(0.75 * length_px), max(round(0.16 * length_px), 1))
        centre = (round(float(heel[0] + toe[0]) / 2), round(sole_y))
        cv2.ellipse(one, centre, axes, 0.0, 0.0, 360.0, 1.0, -1)
        soft = cv2.GaussianBlur(one, (0, 0), max(0.12 * length_px, 0.5))
        shadow = np.maximum(shadow, np.asarray(soft, np.float32))
    return (SHADOW * shadow).astype(np.float32)
