"""The wearer's skin: its tone, where it shows, and new skin where a garment was."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.light import blur, blur_within
from serve.messages import Box, UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Complexion:
    """What the wearer's skin looks like, and whether it was seen at all."""

    lab: FloatArray
    """Median Lab."""
    tones: tuple[FloatArray, ...]
    """Medians of parts that are lit differently: face, neck."""
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
    thickness = max(1, round(0.08 * body.unit_px))
    neck, limbs = np.zeros(person_hw.shape, np.uint8), np.zeros(person_hw.shape, np.uint8)
    cv2.line(neck, _pixel(0.6 * body.chin + 0.4 * body.neck), _pixel(body.neck), 1, thickness)
    for limb in (*body.arms, *body.legs):
        cv2.line(limbs, _pixel(limb[1]), _pixel(limb[2]), 1, thickness)
    spots += [lab_hwc[(neck > 0) & person_hw], lab_hwc[(limbs > 0) & person_hw]]
    tones: list[FloatArray] = []
    for samples in spots:
        plausible = samples[looks_like_skin(samples)]
        if len(plausible) > max(30, 0.3 * len(samples)):
            tone = np.median(plausible, axis=0).astype(np.float32)
            if not tones or abs(float(tone[0] - tones[0][0])) < 30.0:
                tones.append(tone)
    if not tones:
        head = person_hw.copy()
        head[max(0, int(min(joint[1] for joint in body.shoulders) - 0.15 * body.unit_px)) :] = False
        samples = lab_hwc[head]
        return guess_complexion(samples, body)
    # Limbs may be clothed: they count only for who shows neither face nor neck.
    return Complexion(tones[0], tuple(tones[:2]), True)


def guess_complexion(samples: FloatArray, body: Body) -> Complexion:
    """From (n, 3) Lab pixels of which some may be skin; an average one when too few are."""
    plausible = samples[looks_like_skin(samples) & (samples[:, 0] > 30.0)]
    is_seen = len(plausible) > max(40, 0.02 * body.unit_px**2)
    usual = np.array([62.0, 14.0, 20.0], np.float32)
    tone = np.median(plausible, axis=0).astype(np.float32) if is_seen else usual
    return Complexion(tone, (tone,), is_seen)


def _pixel(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.clip(np.rint(point), -30000, 30000).astype(int)
    return int(x), int(y)


def looks_like_skin(lab: FloatArray) -> BoolArray:
    """Any human skin in any usual light: hue from red to yellow, some chroma, not black."""
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    fits = (hue > 15) & (hue < 100) & (chroma > 6) & (chroma < 50)
    return np.asarray(fits & (lab[..., 0] > 12) & (lab[..., 0] < 96))


def skin_distance(lab_hwc: FloatArray, complexion: Complexion) -> FloatArray:
    """Lab distance to the nearest tone of the skin, in which shade counts little."""
    distances = [_tone_distance(lab_hwc, tone) for tone in complexion.tones]
    return np.asarray(np.min(distances, axis=0), np.float32)


def _tone_distance(lab_hwc: FloatArray, tone: FloatArray) -> FloatArray:
    # Skin loses chroma along with lightness in shadow.
    shade = np.clip(lab_hwc[..., 0] / max(float(tone[0]), 1.0), 0.45, 1.1)[..., None]
    offset = lab_hwc[..., 1:] - tone[1:] * shade
    tint = np.hypot(offset[..., 0], offset[..., 1])
    change = lab_hwc[..., 0] - tone[0]
    far = np.where(change < 0, 0.7 * (-change - 14.0), 0.4 * (change - 14.0))
    return np.asarray(np.hypot(tint, np.maximum(far, 0.0)), np.float32)


def is_other_light(colours: FloatArray, complexion: Complexion) -> BoolArray:
    """Which of (n, 3) Lab colours are this skin under more or less light."""
    found = np.zeros(len(colours), bool)
    for tone in complexion.tones:
        hue, chroma = np.arctan2(tone[2], tone[1]), float(np.hypot(tone[1], tone[2]))
        hues = np.arctan2(colours[:, 2], colours[:, 1])
        ratio = np.hypot(colours[:, 1], colours[:, 2]) / max(chroma, 1.0)
        same_hue = np.abs(np.degrees(hues - hue)) < 20.0
        found |= same_hue & (ratio > 0.5) & (ratio < 1.4) & (abs(colours[:, 0] - tone[0]) < 20.0)
    return np.asarray(found | (skin_distance(colours[None], complexion)[0] < 14.0))


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
    tone = np.broadcast_to(complexion.lab, lab_hwc.shape).astype(np.float32)
    # From far to near: what lies beside the new skin decides, the complexion only where nothing is.
    for sigma, gain in ((0.24 * unit_px, 14.0), (0.05 * unit_px, 6.0)):
        weight = blur(skin_hw.astype(np.float32), sigma)
        share = np.clip(weight * gain, 0.0, 0.97)[..., None]
        near = np.dstack([blur_within(lab_hwc[..., k], skin_hw, sigma) for k in range(3)])
        tone = share * near + (1 - share) * tone
    tone = np.asarray(tone, np.float32)
    depth = cv2.distanceTransform(body_hw.astype(np.uint8), cv2.DIST_L2, 3)
    edge = np.clip(1.0 - depth / (0.13 * unit_px), 0.0, 1.0)
    tone[..., 0] += 2.0 - 0.16 * complexion.lab[0] * blur(edge**2, 0.02 * unit_px)
    rgb = cv2.cvtColor(tone.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.asarray(np.rint(rgb.clip(0, 1) * 255), np.uint8)
