"""Puts glasses on the person's nose: scaled to the eyes, turned with the head, lit by the scene."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.headpose import HeadPose, find_head, with_measured_turn
from deployments.backends.warp.spectacles import Spectacles, read_spectacles
from deployments.backends.warp.window import cut_window, find_window, paste_window, soften_inside
from serve.messages import ExpertRequest, UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

LENS_TO_EYES = 1.05
"""Distance of the lens centres over that of the pupils: 66 mm over 63 mm."""
FRONT_AHEAD = 0.17
"""How far the front sits before the pupils, in eye distances: about 11 mm."""
EAR_BEHIND = 1.2
"""How far the ear's root lies behind the front, in eye distances: about 76 mm."""
WRAP = 0.10
"""How far the ends of the front bend back, as a share of its half width."""
TEMPLE_SHOWN = 0.68
"""Share of a temple from hinge to ear; the rest bends down behind the ear."""
SEE_THROUGH = 0.17
FAR_SIDE = np.radians(3.0)
"""Turned away by more than this, a side of the head hides its temple."""
EAR_SEEN = 0.2
"""Least share of skin around an ear that is not under hair."""
LENS_SHADE = 0.45
"""Dark glass on a face against the same glass on a white table that shines through it."""
MIN_FRONT, MAX_FRONT = 1.95, 2.45
"""Width of a front in eye distances: child's frame to oversize."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Colour and coverage over the crop."""

    rgb: Float32Array
    cover: Float32Array


@dataclass(frozen=True, slots=True)
class _Fit:
    """Where the front goes: its middle in the crop and pixels per product pixel."""

    middle: FloatArray
    scale_x: float
    scale_y: float


def read_glasses(product_hwc: UInt8Array) -> Spectacles:
    """The part of the work that knows nothing of the person.

    Raises:
        GenerationFailed: the product picture shows nothing but background.
    """
    return read_spectacles(cut_out(product_hwc))


def wear_eyewear(
    request: ExpertRequest,
    rng: np.random.Generator,
    read: Callable[[UInt8Array], Spectacles] = read_glasses,
) -> tuple[UInt8Array, UInt8Array]:
    """Paint the glasses onto the face.

    Returns:
        The crop with glasses (H, W, 3), and (H, W): 0 where the crop is as it was.

    Raises:
        GenerationFailed: the product picture shows nothing but background.
    """
    head = find_head(request.landmarks, request.region_hw, "eyes")
    head = with_measured_turn(head, request.crop_hwc)
    x, y = head.middle
    window = find_window(request.region_hw, (float(x), float(y)), 3.2 * head.eye_distance_px + 8)
    if window is None:
        return request.crop_hwc.copy(), np.zeros_like(request.region_hw)
    glasses = read(request.product_hwc)
    painted = _wear(cut_window(request, window), glasses, head.shifted(window))
    return paste_window(request, window, *painted)


def _wear(
    request: ExpertRequest, glasses: Spectacles, head: HeadPose
) -> tuple[UInt8Array, UInt8Array]:
    fit = _fit(glasses, head)
    front, lens = _front(request, glasses, head, fit)
    layers = (_temple(request, glasses, head, fit, side) for side in (-1, 1))
    return _compose(request, front, lens, [layer for layer in layers if layer is not None], head)


def _fit(glasses: Spectacles, head: HeadPose) -> _Fit:
    eyes_px = head.eye_distance_px
    scale_x = LENS_TO_EYES * eyes_px / max(glasses.lens_distance_px, 1.0)
    _, _, width, _ = cv2.boundingRect((glasses.front_hwc[..., 3] > 127).astype(np.uint8))
    front = width * scale_x / eyes_px
    scale_x *= float(np.clip(front, MIN_FRONT, MAX_FRONT)) / max(front, 1e-6)
    scale_y = scale_x / np.cos(head.yaw)
    ahead = head.across * FRONT_AHEAD * eyes_px * np.tan(head.yaw)
    return _Fit(head.middle + ahead + head.down * 0.03 * eyes_px, scale_x, float(scale_y))


def _front(
    request: ExpertRequest, glasses: Spectacles, head: HeadPose, fit: _Fit
) -> tuple[_Layer, Float32Array]:
    """The front over the crop, and how much of each pixel is lens."""
    scale = max(fit.scale_x, fit.scale_y)
    image = _scaled(glasses.front_hwc, scale)
    glass = cv2.resize(glasses.lens_hw, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    centre = (glasses.lens_a + glasses.lens_b) / 2 * scale
    x, y = head.axes(request.region_hw.shape, fit.middle)
    half_px = 0.5 * image.shape[1]
    u = x * (scale / fit.scale_x)
    # Ends bend back: seen from the side the near half widens and the far half narrows.
    bend = WRAP * np.tan(head.yaw)
    for _ in range(3):
        u = x * (scale / fit.scale_x) + bend * (np.clip(u / half_px, -1.2, 1.2) ** 2) * half_px
    map_x = (u + centre[0]).astype(np.float32)
    map_y = (y * (scale / fit.scale_y) + centre[1]).astype(np.float32)
    shown, lens = (
        np.asarray(cv2.remap(part, map_x, map_y, cv2.INTER_LINEAR), np.float32)
        for part in (image, glass)
    )
    cover = shown[..., 3] / 255.0
    rgb = shown[..., :3] / np.maximum(cover[..., None], 1e-3)
    return _Layer(rgb, cover), lens / np.float32(255.0)


def _scaled(image: UInt8Array, scale: float) -> Float32Array:
    """Premultiplied and at the crop's scale, so that the remap neither aliases nor bleeds."""
    flat = image.astype(np.float32)
    flat[..., :3] *= flat[..., 3:4] / 255.0
    size = tuple(max(round(side * scale), 2) for side in image.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(flat, size, interpolation=method).astype(np.float32)


def _temple(
    request: ExpertRequest, glasses: Spectacles, head: HeadPose, fit: _Fit, side: int
) -> _Layer | None:
    """The temple on one side of the picture (-1 left), where the turn of the head shows it."""
    if side * head.yaw > FAR_SIDE:
        return None
    hinge, ear = _hinge(glasses, head, fit, side), _ear(request, head, side)
    along = (ear - hinge) @ head.across * side
    if along < 0.1 * head.eye_distance_px:
        return None
    temple = _temple_image(glasses)
    length_px, thick_px = temple.shape[1], temple.shape[0]
    # One product pixel along the temple and across it, in crop pixels.
    u = (hinge - ear) / (TEMPLE_SHOWN * length_px)
    v = head.down * fit.scale_y
    origin = hinge - u * length_px - v * thick_px / 2
    matrix = np.array([[u[0], v[0], origin[0]], [u[1], v[1], origin[1]]])
    flat: Float32Array = temple.astype(np.float32)
    flat[..., :3] *= flat[..., 3:] / 255.0
    x = np.arange(length_px)
    flat *= np.clip((x - (1.0 - TEMPLE_SHOWN) * length_px) / 8.0, 0.0, 1.0)[None, :, None]
    blur_px = max(0.4 / float(np.linalg.norm(u)), 0.3)
    soft = cv2.GaussianBlur(flat, (0, 0), blur_px, sigmaY=0.3)
    size = request.region_hw.shape[::-1]
    shown = np.asarray(cv2.warpAffine(soft, matrix, size, flags=cv2.INTER_LINEAR), np.float32)
    cover = shown[..., 3] / 255.0
    rgb = shown[..., :3] / np.maximum(cover[..., None], 1e-3)
    return _Layer(rgb, cover * _not_under_hair(request, head, ear))


def _not_under_hair(request: ExpertRequest, head: HeadPose, ear: FloatArray) -> Float32Array:
    """1 everywhere where the ear is seen; else only where there is skin."""
    lab = cv2.cvtColor(request.crop_hwc.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    x, y = head.axes(lab.shape)
    reach = head.eye_distance_px
    cheeks = (np.abs(x) < 0.7 * reach) & (y > 0.2 * reach) & (y < 0.6 * reach)
    if cheeks.sum() < 16:
        return np.ones(lab.shape[:2], np.float32)
    off = np.abs(lab - np.median(lab[cheeks], axis=0)) / (45.0, 16.0, 18.0)
    skin = np.clip(2.0 - 1.5 * off.max(-1), 0.0, 1.0)
    height, width = skin.shape
    rows, columns = np.ogrid[:height, :width]
    beside = np.hypot(columns - ear[0], rows - ear[1] - 0.15 * reach) < 0.3 * reach
    if not beside.any() or float((skin[beside] > 0.5).mean()) > EAR_SEEN:
        return np.ones((height, width), np.float32)
    return np.asarray(cv2.GaussianBlur(skin.astype(np.float32), (0, 0), 0.03 * reach), np.float32)


def _hinge(glasses: Spectacles, head: HeadPose, fit: _Fit, side: int) -> FloatArray:
    """Where the temple meets the front, in the crop."""
    x0, _, width, _ = cv2.boundingRect((glasses.front_hwc[..., 3] > 127).astype(np.uint8))
    centre = (glasses.lens_a + glasses.lens_b) / 2
    end = (x0 if side < 0 else x0 + width) - centre[0]
    bent = end * fit.scale_x - WRAP * np.tan(head.yaw) * abs(end) * fit.scale_x
    bent -= side * 0.02 * head.eye_distance_px
    down = (glasses.hinge_y - centre[1]) * fit.scale_y
    return np.asarray(fit.middle + head.across * bent + head.down * down, np.float64)


def _ear(request: ExpertRequest, head: HeadPose, side: int) -> FloatArray:
    """The ear's root on one side, from the turn of the head and, if seen, the ear itself."""
    frontal_px = head.eye_distance_px / np.cos(head.yaw)
    aside = side * 1.12 * np.cos(head.yaw) - EAR_BEHIND * np.sin(head.yaw)
    guess = head.middle + head.across * aside * frontal_px + head.down * 0.05 * frontal_px
    name = "right_ear" if side < 0 else "left_ear"
    if name not in request.landmarks.points:
        return np.asarray(guess, np.float64)
    seen = (
        np.array(request.landmarks.points[name])
        - (head.across * side * 0.12 + head.down * 0.18) * frontal_px
    )
    off = seen - guess
    distance = max(float(np.linalg.norm(off)), 1e-6)
    return np.asarray(guess + off * min(1.0, 0.25 * frontal_px / distance), np.float64)


def _temple_image(glasses: Spectacles) -> UInt8Array:
    """The product's own temple, or a plain bar in the colour of the front's end."""
    if glasses.temple is not None:
        return glasses.temple.image_hwc
    alpha = glasses.front_hwc[..., 3]
    x, y, width, height = cv2.boundingRect((alpha > 127).astype(np.uint8))
    end = glasses.front_hwc[y : y + height, x : x + max(width // 25, 2)]
    solid = end[end[..., 3] > 200]
    colour = np.median(solid[:, :3], axis=0) if solid.size else np.array([40.0, 40.0, 40.0])
    bar = np.zeros((max(height, 8), width, 4), np.uint8)
    bar[..., :3] = np.rint(colour)
    thick = max(round(0.09 * height), 1)
    middle = bar.shape[0] // 2
    bar[middle - thick : middle + thick, :, 3] = 255
    return bar


def _compose(
    request: ExpertRequest,
    front: _Layer,
    lens: Float32Array,
    temples: list[_Layer],
    head: HeadPose,
) -> tuple[UInt8Array, UInt8Array]:
    crop = request.crop_hwc.astype(np.float32)
    gain = _scene_gain(request, head)
    allowed = soften_inside(request.region_hw)
    glass = _lens_opacity(front, lens)
    opaque = front.cover * (1.0 - lens + lens * glass)
    cover = np.maximum.reduce([opaque, *(layer.cover for layer in temples)])
    out = crop * (1.0 - allowed * _shadow(request, cover, head))[..., None]
    for layer in temples:
        out += (allowed * layer.cover)[..., None] * (np.clip(layer.rgb * gain, 0, 255) - out)
    opacity = allowed * opaque
    shade = 1.0 - lens * (1.0 - LENS_SHADE) * np.clip((glass - 0.5) * 3.2, 0.0, 1.0)
    out += opacity[..., None] * (np.clip(front.rgb * gain * shade[..., None], 0, 255) - out)
    image = np.rint(np.clip(out, 0, 255)).astype(np.uint8)
    return image, np.where((image != request.crop_hwc).any(-1), 255, 0).astype(np.uint8)


def _lens_opacity(front: _Layer, lens: Float32Array) -> float:
    """Dark glass hides the eyes nearly, light glass hardly."""
    inside = (lens > 0.9) & (front.cover > 0.9)
    if not inside.any():
        return 1.0 - SEE_THROUGH
    light = float(np.median(front.rgb[inside].mean(-1))) / 255.0
    return float(np.clip(1.0 - SEE_THROUGH - 1.6 * max(light - 0.5, 0.0), 0.15, 1.0))


def _shadow(request: ExpertRequest, cover: Float32Array, head: HeadPose) -> Float32Array:
    """Soft shade below the frame, on the person only."""
    size = 0.07 * head.eye_distance_px
    dx, dy = head.down * size
    moved = cv2.warpAffine(cover, np.array([[1, 0, dx], [0, 1, dy]], np.float64), cover.shape[::-1])
    shade = 0.3 * cv2.GaussianBlur(moved, (0, 0), max(size, 0.6))
    if request.silhouette_hw is not None:
        shade *= request.silhouette_hw / np.float32(255.0)
    return shade.astype(np.float32)


def _scene_gain(request: ExpertRequest, head: HeadPose) -> Float32Array:
    """What studio light must be multiplied by, per channel, to sit in this scene."""
    eyes_px = head.eye_distance_px
    x, y = head.axes(request.region_hw.shape)
    face = (np.abs(x) < 0.6 * eyes_px) & (y > -0.2 * eyes_px) & (y < 1.0 * eyes_px)
    if face.sum() < 16:
        return np.ones(3, np.float32)
    light = request.crop_hwc[face].astype(np.float32)
    bright = np.percentile(light.mean(-1), 96)
    return np.full(3, np.clip((bright / 200.0) ** 0.8, 0.4, 1.02), np.float32)
