"""The wearer's skin: its tone, where it shows, and new skin where a garment was."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.light import blur_within
from serve.messages import Box, UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Complexion:
    """Median Lab of the skin, and whether it was seen at all."""

    lab: FloatArray
    is_seen: bool


def to_lab(rgb_hwc: UInt8Array) -> FloatArray:
    lab = cv2.cvtColor(rgb_hwc.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    return np.asarray(lab, np.float32)


def find_complexion(
    lab_hwc: FloatArray, face: Box | None, body: Body, person_hw: BoolArray
) -> Complexion:
    """From the cheeks when a face is known, else from neck, forearms and shins."""
    spots = []
    if face is not None:
        x0, y0, x1, y1 = face
        width, height = x1 - x0, y1 - y0
        cheeks = np.zeros(person_hw.shape, np.uint8)
        centre = (round((x0 + x1) / 2), round(y0 + 0.58 * height))
        axes = (max(1, round(0.3 * width)), max(1, round(0.22 * height)))
        cv2.ellipse(cheeks, centre, axes, 0, 0, 360, 1, -1)
        spots.append(lab_hwc[(cheeks > 0) & person_hw])
    limbs = np.zeros(person_hw.shape, np.uint8)
    thickness = max(1, round(0.06 * body.unit_px))
    for limb in (*body.arms, *body.legs):
        cv2.line(limbs, _pixel(limb[1]), _pixel(limb[2]), 1, thickness)
    cv2.line(limbs, _pixel(body.neck), _pixel(body.chin), 1, thickness)
    spots.append(lab_hwc[(limbs > 0) & person_hw])
    for samples in spots:
        plausible = samples[_looks_like_skin(samples)]
        if len(plausible) > max(30, 0.3 * len(samples)):
            return Complexion(np.median(plausible, axis=0).astype(np.float32), True)
    return Complexion(np.array([62.0, 14.0, 20.0], np.float32), False)


def _pixel(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.clip(np.rint(point), -30000, 30000).astype(int)
    return int(x), int(y)


def _looks_like_skin(lab: FloatArray) -> BoolArray:
    """Any human skin in any usual light: hue from red to yellow, some chroma, not black."""
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    fits = (hue > 15) & (hue < 85) & (chroma > 7) & (chroma < 50)
    return np.asarray(fits & (lab[..., 0] > 12) & (lab[..., 0] < 96))


def skin_distance(lab_hwc: FloatArray, complexion: Complexion) -> FloatArray:
    """Lab distance to the complexion in which shade counts little."""
    difference = lab_hwc - complexion.lab
    # Darker skin in shadow loses chroma along with lightness.
    shade = np.clip(lab_hwc[..., 0] / max(float(complexion.lab[0]), 1.0), 0.45, 1.15)[..., None]
    tint = lab_hwc[..., 1:] - complexion.lab[1:] * shade
    lightness = np.maximum(np.abs(difference[..., 0]) - 12.0, 0.0) * 0.45
    return np.asarray(np.hypot(np.linalg.norm(tint, axis=2), lightness), np.float32)


def limb_mask(
    shape: tuple[int, int], joints: list[NDArray[np.float64]], radii_px: tuple[float, ...]
) -> BoolArray:
    """A tapered tube through the joints."""
    mask = np.zeros(shape, np.uint8)
    for first, last, radius, next_radius in zip(
        joints[:-1], joints[1:], radii_px[:-1], radii_px[1:], strict=True
    ):
        for share in np.linspace(0.0, 1.0, 14):
            centre = _pixel((1 - share) * first + share * last)
            size = max(1, round((1 - share) * radius + share * next_radius))
            cv2.circle(mask, centre, size, 1, -1, cv2.LINE_AA)
    return mask > 0


def paint_skin(
    lab_hwc: FloatArray,
    complexion: Complexion,
    skin_hw: BoolArray,
    body_hw: BoolArray,
    unit_px: float,
) -> UInt8Array:
    """(H, W, 3) RGB: skin over the whole body, in the tone of the skin nearby, rounded by shade."""
    total = cv2.GaussianBlur(skin_hw.astype(np.float32), (0, 0), 0.22 * unit_px)[..., None]
    near = np.dstack([blur_within(lab_hwc[..., k], skin_hw, 0.22 * unit_px) for k in range(3)])
    share = np.clip(total * 8.0, 0.0, 0.85)
    tone = share * near + (1 - share) * complexion.lab
    depth = cv2.distanceTransform(body_hw.astype(np.uint8), cv2.DIST_L2, 3)
    edge = np.clip(1.0 - depth / (0.13 * unit_px), 0.0, 1.0)
    tone[..., 0] += 2.0 - 0.16 * complexion.lab[0] * cv2.GaussianBlur(
        edge**2, (0, 0), 0.02 * unit_px
    )
    rgb = cv2.cvtColor(tone.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.asarray(np.rint(rgb.clip(0, 1) * 255), np.uint8)
