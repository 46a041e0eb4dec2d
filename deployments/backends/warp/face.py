"""Puts the features of another person's face onto the person, lit as the person is.

Hair, ears, neck and the shape of the head stay the person's.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.headpose import HeadPose, face_features, find_head
from deployments.backends.warp.window import cut_window, find_window, paste_window
from serve.errors import SubjectNotFound
from serve.messages import ExpertRequest, Landmarks, UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

GRID_STEP_PX = 16
MIN_PRODUCT_EYES_PX = 8.0
BEND = 0.5
"""How far the features move from a rigid fit to exactly where the person's are."""
LIGHT_KEPT = 0.8
"""How much of the person's own light and shade the new face takes on."""


def swap_face(request: ExpertRequest, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array]:
    """Paint the product's facial features into the person's face.

    Returns:
        The crop with the new face (H, W, 3), and (H, W): 0 where the crop is as it was.

    Raises:
        SubjectNotFound: the product picture shows no face.
    """
    points = request.product_landmarks.points
    left, right = points.get("left_eye"), points.get("right_eye")
    if left is None or right is None or math.dist(left, right) < MIN_PRODUCT_EYES_PX:
        raise SubjectNotFound(
            "no face found in the product picture: two eyes, at least "
            f"{MIN_PRODUCT_EYES_PX:.0f} pixels apart, were looked for",
            remedy="Send a portrait that shows the whole face, upright, sharp and uncovered.",
        )
    head = find_head(request.landmarks, request.region_hw, "face")
    x, y = head.middle
    window = find_window(request.region_hw, (float(x), float(y)), 1.3 * head.width_px + 8)
    if window is None:
        return request.crop_hwc.copy(), np.zeros_like(request.region_hw)
    return paste_window(request, window, *_swap(cut_window(request, window), head.shifted(window)))


def _swap(request: ExpertRequest, head: HeadPose) -> tuple[UInt8Array, UInt8Array]:
    warped, valid = _align(request, head)
    weight = _weight(
        request, _oval(request.region_hw, request.landmarks, head) * valid, warped, head
    )
    lit = _relight(warped, request.crop_hwc.astype(np.float32), weight, head)
    return _blend(request, lit, weight)


def _oval(image: UInt8Array, landmarks: Landmarks, head: HeadPose) -> Float32Array:
    """Weight in [0, 1] of the part of the face that is exchanged: brows to chin, cheek to cheek."""
    frontal_px = head.eye_distance_px / np.cos(head.yaw)
    chin = float((face_features(landmarks, head)["chin"] - head.middle) @ head.down)
    chin = float(np.clip(chin, 1.4 * frontal_px, 2.1 * frontal_px))
    top, bottom = -0.66 * frontal_px, chin - 0.08 * frontal_px
    aside = 0.0
    face = landmarks.face
    if face is not None:
        aside = 0.5 * float((np.array([face[0] + face[2], face[1] + face[3]]) / 2 - head.middle)[0])
    x, y = head.axes(image.shape)
    u = (x - aside) / (0.45 * head.width_px)
    v = (y - (top + bottom) / 2) / ((bottom - top) / 2)
    # A squircle: an ellipse would leave the person's jaw corners and brow ends behind.
    radius = (np.abs(u) ** 2.4 + np.abs(v) ** 2.4) ** (1 / 2.4)
    return np.asarray(np.clip((1.0 - radius) / 0.16, 0.0, 1.0), np.float32)


def _align(request: ExpertRequest, head: HeadPose) -> tuple[Float32Array, Float32Array]:
    """The product's face at the person's place (H, W, 3), and where it exists, in [0, 1]."""
    height, width = request.region_hw.shape
    # Three quarters of a second of a core, for the six experts too that never ask.
    from scipy.interpolate import RBFInterpolator

    product, owner = _portrait(request)
    owner_head = find_head(owner, product[..., 3], "face")
    source = _control_points(owner, owner_head)
    target = _control_points(request.landmarks, head)
    rigid, scale = _similarity(target, source)
    # The rest of the way only in part: the face keeps its own proportions, and a misplaced
    # landmark does not fold it.
    bent = rigid + BEND * (source - rigid)
    spline = RBFInterpolator(
        target / head.eye_distance_px, bent * scale / head.eye_distance_px, smoothing=0.02
    )
    xs = np.arange(0, width + GRID_STEP_PX, GRID_STEP_PX)
    ys = np.arange(0, height + GRID_STEP_PX, GRID_STEP_PX)
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2) / head.eye_distance_px
    coarse = (spline(grid) * head.eye_distance_px).reshape(len(ys), len(xs), 2)
    size = (len(xs) * GRID_STEP_PX, len(ys) * GRID_STEP_PX)
    dense = cv2.warpAffine(
        coarse.astype(np.float32),
        np.array([[GRID_STEP_PX, 0, 0], [0, GRID_STEP_PX, 0]], np.float64),
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[:height, :width]
    worn = (_oval(product, owner, owner_head) * product[..., 3]).astype(np.uint8)
    product = _scaled(np.dstack([product[..., :3], worn]), scale)
    shown = cv2.remap(
        product, dense, np.empty(0), cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT
    ).astype(np.float32)
    return shown[..., :3], shown[..., 3] / 255.0


def _portrait(request: ExpertRequest) -> tuple[UInt8Array, Landmarks]:
    """The product around its face, transparent where its backdrop is, and landmarks in it."""
    product, owner = request.product_hwc.copy(), request.product_landmarks
    head = find_head(owner, product[..., 3], "face")
    product[..., 3] = np.rint(product[..., 3] * _before_backdrop(product, head))
    reach_px = 2.8 * head.eye_distance_px
    y0, x0 = (max(int(at - reach_px), 0) for at in head.middle[::-1])
    y1, x1 = (max(int(at + reach_px), 2) for at in head.middle[::-1])
    part = np.ascontiguousarray(product[y0:y1, x0:x1])
    if min(part.shape[:2]) < 2:
        raise SubjectNotFound(
            "no face found in the product picture: its eyes lie outside of it",
            remedy="Send a portrait that shows the whole face, upright, sharp and uncovered.",
        )
    return part, owner.transformed((1.0, 1.0), (-float(x0), -float(y0)))


def _before_backdrop(product_hwc: UInt8Array, head: HeadPose) -> Float32Array:
    """0 on the plain backdrop of a portrait, which must not come along beside the cheek."""
    height, width = product_hwc.shape[:2]
    small = cv2.resize(product_hwc[..., :3], (160, 160), interpolation=cv2.INTER_AREA)
    small = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), 1.0), cv2.COLOR_RGB2LAB)
    filled = np.zeros((162, 162), np.uint8)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (255 << 8)
    for seed in ((1, 1), (158, 1), (1, 60), (158, 60), (80, 1)):
        cv2.floodFill(small, filled, seed, (0,), (26, 7, 7), (26, 7, 7), flags)
    x, y = (head.middle + 0.6 * head.eye_distance_px * head.down) / (width, height) * 160
    if filled[1:-1, 1:-1][int(np.clip(y, 0, 159)), int(np.clip(x, 0, 159))]:
        return np.ones((height, width), np.float32)
    backdrop = cv2.GaussianBlur(cv2.dilate(filled[1:-1, 1:-1], np.ones((3, 3))), (0, 0), 1.0)
    away = 1.0 - cv2.resize(backdrop, (width, height)).astype(np.float32) / 255.0
    return np.asarray(np.clip(2.0 * away - 1.0, 0.0, 1.0), np.float32)


def _control_points(landmarks: Landmarks, head: HeadPose) -> FloatArray:
    features = face_features(landmarks, head)
    names = ("right_eye", "left_eye", "nose", "mouth", "chin")
    return np.stack([features[name] for name in names])


def _similarity(target: FloatArray, source: FloatArray) -> tuple[FloatArray, float]:
    """Target points moved rigidly onto the source, and the scale from source to target."""
    weight = np.array([2.0, 2.0, 1.0, 1.5, 0.5])[:, None]
    t_mid, s_mid = (np.sum(points * weight, 0) / weight.sum() for points in (target, source))
    t, s = ((points - mid) @ (1.0, 1j) for points, mid in ((target, t_mid), (source, s_mid)))
    turn = np.sum(np.conj(t) * s * weight[:, 0]) / np.sum(np.abs(t) ** 2 * weight[:, 0])
    moved = t * turn
    return np.stack([moved.real, moved.imag], -1) + s_mid, float(1.0 / max(abs(turn), 1e-3))


def _scaled(product_hwc: UInt8Array, scale: float) -> UInt8Array:
    """The product at the person's scale, so that remap neither aliases nor blurs."""
    height, width = product_hwc.shape[:2]
    size = (max(round(width * scale), 2), max(round(height * scale), 2))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(product_hwc, size, interpolation=method).astype(np.uint8)


def _weight(
    request: ExpertRequest, oval: Float32Array, warped: Float32Array, head: HeadPose
) -> Float32Array:
    """The oval without either person's hair, inside region and silhouette, with a soft edge."""
    inside = cv2.erode((request.region_hw > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
    if request.silhouette_hw is not None:
        inside = inside * (request.silhouette_hw > 127).astype(np.uint8)
    features = _features(request.region_hw.shape, head)
    for image in (request.crop_hwc.astype(np.float32), warped):
        oval = oval * np.maximum(_skin(image, oval > 0.5, head), features)
    feather_px = 0.05 * head.width_px
    edge = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    soft = cv2.GaussianBlur(oval, (0, 0), 0.012 * head.width_px)
    return np.asarray((soft * np.clip((edge - 1) / feather_px, 0.0, 1.0)), np.float32)


def _features(shape: tuple[int, ...], head: HeadPose) -> Float32Array:
    """1 over eyes, brows and everything below the eyes: dark there is no hair to keep."""
    x, y = head.axes(shape)
    frontal_px = head.eye_distance_px / np.float32(np.cos(head.yaw))
    u, v = x / (0.88 * head.eye_distance_px), (y - 0.2 * frontal_px) / (0.62 * frontal_px)
    keep = np.clip(3.0 - 2.0 * (u**4 + v**4), 0.0, 1.0)
    below = np.clip((y - 0.35 * frontal_px) / (0.3 * frontal_px), 0.0, 1.0)
    return np.asarray(np.maximum(keep, below), np.float32)


def _skin(image: Float32Array, core: NDArray[np.bool_], head: HeadPose) -> Float32Array:
    """How much each pixel looks like this face's skin, in [0, 1]."""
    lab = cv2.cvtColor(image / 255.0, cv2.COLOR_RGB2LAB)
    x, y = head.axes(image.shape)
    cheeks = (
        core
        & (np.abs(x) < 0.75 * head.eye_distance_px)
        & (y > 0.3 * head.eye_distance_px)
        & (y < 0.9 * head.eye_distance_px)
    )
    if cheeks.sum() < 16:
        return np.ones(image.shape[:2], np.float32)
    sample = lab[cheeks]
    centre = np.median(sample, axis=0)
    spread = np.maximum(np.median(np.abs(sample - centre), axis=0) * 1.48, (9.0, 4.0, 5.0))
    off = (lab - centre) / spread
    off[..., 0] = np.minimum(off[..., 0], 0.0)  # Lighter is a highlight, darker may be hair.
    distance = np.sqrt((off**2).sum(-1))
    return np.asarray(np.clip((4.2 - distance) / 1.6, 0.0, 1.0), np.float32)


def _relight(
    warped: Float32Array, crop: Float32Array, weight: Float32Array, head: HeadPose
) -> Float32Array:
    """Move the person's broad light and skin tone onto the new face; detail stays its own."""
    new, old = (
        np.asarray(cv2.cvtColor(image / 255.0, cv2.COLOR_RGB2LAB), np.float32)
        for image in (warped, crop)
    )
    area = weight > 0.2
    masks = [area * _skin(image, area, head) + 1e-4 * area for image in (warped, crop)]
    for sigma, share, limits in ((0.6, 1.0, (0.2, 4.0)), (0.24, LIGHT_KEPT, (0.5, 1.6))):
        broad_new, broad_old = (
            _masked_blur(lab, mask.astype(np.float32), sigma * head.width_px)
            for lab, mask in zip((new, old), masks, strict=True)
        )
        gain = np.clip(broad_old[..., :1] / np.maximum(broad_new[..., :1], 4.0), *limits)
        # What is grey, like hair and the white of the eye, keeps out of most of the tint.
        chroma, skin_chroma = (np.hypot(lab[..., 1:2], lab[..., 2:3]) for lab in (new, broad_new))
        tint = (broad_old - broad_new)[..., 1:] * np.clip(chroma / (skin_chroma + 1.0), 0.25, 1.0)
        new = np.concatenate([new[..., :1] * gain**share, new[..., 1:] + share * tint], -1)
    return np.asarray(np.clip(cv2.cvtColor(new, cv2.COLOR_LAB2RGB) * 255.0, 0.0, 255.0), np.float32)


def _masked_blur(image: Float32Array, mask: Float32Array, sigma_px: float) -> Float32Array:
    """Blur of `image` that only looks where `mask` is, at a quarter of the size for speed."""
    height, width = mask.shape
    small = (max(width // 4, 1), max(height // 4, 1))
    parts = cv2.resize(
        np.dstack([image * mask[..., None], mask]), small, interpolation=cv2.INTER_AREA
    )
    blurred = cv2.GaussianBlur(parts, (0, 0), max(sigma_px / 4, 0.5), borderType=cv2.BORDER_REFLECT)
    filled = blurred[..., :3] / np.maximum(blurred[..., 3:], 1e-6)
    return cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _blend(
    request: ExpertRequest, lit: Float32Array, weight: Float32Array
) -> tuple[UInt8Array, UInt8Array]:
    crop = request.crop_hwc.astype(np.float32)
    image = np.rint(crop + (lit - crop) * weight[..., None]).astype(np.uint8)
    return image, np.where(weight > 0, 255, 0).astype(np.uint8)
