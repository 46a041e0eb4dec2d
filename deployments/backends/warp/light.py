"""Light of the scene on a new layer: shading from underneath, brightness, tint, blending."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_SHADE = (0.62, 1.28)
"""Darkest and brightest factor that folds underneath may put on a product."""


def blur(image: FloatArray, sigma_px: float) -> FloatArray:
    """Gaussian blur; a wide one is done on a smaller copy, where it costs next to nothing."""
    factor = int(sigma_px / 3.0)
    if factor < 2:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.float32)
    height, width = image.shape[:2]
    size = max(2, width // factor), max(2, height // factor)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma_px / factor)
    return np.asarray(
        cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32
    )


def blur_within(image_hw: FloatArray, mask_hw: BoolArray, sigma_px: float) -> FloatArray:
    """Blur without letting pixels outside the mask count; far outside, the mask's mean."""
    weight = mask_hw.astype(np.float32)
    mean = float(image_hw[mask_hw].mean()) if mask_hw.any() else 0.0
    total = blur(weight, sigma_px)
    near = blur((image_hw - mean) * weight, sigma_px)
    return np.asarray(mean + near / np.maximum(total, 1e-3), np.float32)


def luminance(rgb_hwc: UInt8Array) -> FloatArray:
    """(H, W) CIE L in [0, 100]."""
    lab = cv2.cvtColor(rgb_hwc.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    return np.asarray(lab[..., 0], np.float32)


def fold_shading(
    crop_hwc: UInt8Array, cloth_hw: BoolArray, layer_hw: BoolArray, scale_px: float
) -> FloatArray:
    """How much brighter or darker than usual each place of the old cloth is.

    Prints and logos do not come through: what leaves the cloth's main colour is bridged over.

    Args:
        cloth_hw: the old garment, one material.
        layer_hw: where the product will be; what little cloth lies under it shades it little.
        scale_px: size of a body part, about the width of the shoulders.

    Returns:
        (H, W) factors around 1; exactly 1 far from the cloth.
    """
    level = luminance(crop_hwc)
    covered = float((cloth_hw & layer_hw).sum()) / max(float(layer_hw.sum()), 1.0)
    strength = float(np.clip((covered - 0.25) / 0.4, 0.0, 1.0))
    if cloth_hw.sum() < 50 or strength == 0.0:
        return np.ones_like(level)
    centre = float(np.median(level[cloth_hw]))
    # Dark cloth has little signal and much noise: an offset keeps the ratio calm.
    offset = 14.0 + max(0.0, 30.0 - centre)
    broad = blur_within(level, cloth_hw, max(2.0, 0.10 * scale_px))
    plain = cloth_hw & (np.abs(level - broad) < 9.0)
    if plain.sum() < 0.3 * cloth_hw.sum():
        plain = cloth_hw
    fine = blur_within(level, plain, max(1.2, 0.012 * scale_px))
    coarse = blur_within(level, plain, max(2.0, 0.06 * scale_px))
    reach = blur(plain.astype(np.float32), max(1.2, 0.012 * scale_px))
    detail = np.where(reach > 0.5, fine - coarse, 0.0)
    ratio = ((coarse + offset) / (centre + offset)) ** 0.75 + 0.8 * detail / (centre + offset)
    # Fades slowly: a bright band at the new hem would show where the old one was.
    near = blur(cloth_hw.astype(np.float32), max(2.0, 0.12 * scale_px))
    weight = strength * np.minimum(1.0, 2.0 * near)
    return np.asarray(1.0 + (ratio.clip(*_SHADE) - 1.0) * weight, np.float32)


def scene_gain(crop_hwc: UInt8Array, person_hw: BoolArray) -> float:
    """How bright a studio product looks in this scene: 1 in daylight, about 0.5 in a dark alley."""
    level = luminance(crop_hwc)
    subject = level[person_hw] if person_hw.sum() > 200 else level.ravel()
    brightest = max(float(np.percentile(subject, 98)), float(np.percentile(level, 90)))
    return float(np.clip(0.30 + 0.78 * brightest / 100.0, 0.5, 1.03))


def scene_tint(crop_hwc: UInt8Array) -> FloatArray:
    """(3,) factors on R, G, B that move white a third of the way to the scene's own near-white."""
    lab = cv2.cvtColor(crop_hwc.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    neutral = (np.hypot(lab[..., 1], lab[..., 2]) < 14.0) & (lab[..., 0] > 45.0)
    if neutral.sum() < 0.01 * neutral.size:
        return np.ones(3, np.float32)
    mean = crop_hwc[neutral].astype(np.float32).mean(axis=0)
    cast = mean / mean.mean()
    return np.asarray((1.0 + 0.35 * (cast - 1.0)).clip(0.94, 1.06), np.float32)


def shade(layer_hwc: FloatArray, factor_hw: FloatArray) -> FloatArray:
    """Multiply colours of a premultiplied layer; bright results roll off instead of clipping."""
    alpha = layer_hwc[..., 3:]
    straight = layer_hwc[..., :3] / np.maximum(alpha, 1e-3)  # in [0, 1]
    lit = straight * factor_hw[..., None]
    rolled = np.where(lit > 0.9, 0.9 + 0.1 * np.tanh((lit - 0.9) / 0.1), lit)
    return np.asarray(np.dstack([rolled * alpha, alpha]), np.float32)


def composite(crop_hwc: UInt8Array, layer_rgb: FloatArray, alpha_hw: FloatArray) -> UInt8Array:
    """Blend a straight-alpha layer over the crop.

    Args:
        layer_rgb: (H, W, 3) in [0, 255].
        alpha_hw: (H, W) in [0, 1].
    """
    alpha = np.clip(alpha_hw, 0.0, 1.0)[..., None]
    mixed = layer_rgb * alpha + crop_hwc.astype(np.float32) * (1.0 - alpha)
    return np.asarray(np.rint(mixed).clip(0, 255), np.uint8)
