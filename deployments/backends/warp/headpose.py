"""Where the head is in a crop: eyes, axes and turn, from landmarks or from the region's shape."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import Box, Landmarks, Point, UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

NOSE_REACH = 0.52
"""Nose tip before the plane of the eyes, in eye distances: about 33 of 63 mm."""
MIN_EYES_PX = 3.0
MAX_YAW = np.radians(50.0)
UNTURNED = np.radians(8.0)
"""A yaw below this may be no more than a guessed nose."""
TURN_PER_ASYMMETRY = 1.3
"""Radians of yaw per (near - far) / (near + far) of the cheeks: fitted by eye on six portraits."""


@dataclass(frozen=True, slots=True)
class HeadPose:
    """One head in the picture. Sides are the picture's: `eye_a` lies left of `eye_b`."""

    eye_a: FloatArray
    eye_b: FloatArray
    yaw: float
    """Radians, positive when the nose points to the picture's right."""
    width_px: float
    """Cheek to cheek at the eyes, along the eye line."""
    is_measured: bool
    """False when the eyes were guessed from a box or from the region."""

    @property
    def middle(self) -> FloatArray:
        return (self.eye_a + self.eye_b) / 2

    @property
    def eye_distance_px(self) -> float:
        return float(np.linalg.norm(self.eye_b - self.eye_a))

    @property
    def across(self) -> FloatArray:
        """Unit vector from eye_a to eye_b."""
        return (self.eye_b - self.eye_a) / max(self.eye_distance_px, 1e-6)

    @property
    def down(self) -> FloatArray:
        """Unit vector from the eyes towards the chin."""
        return np.array([-self.across[1], self.across[0]])

    def axes(
        self, shape: tuple[int, ...], origin: FloatArray | None = None
    ) -> tuple[Float32Array, Float32Array]:
        """Each pixel's way right of and below the origin, along the head's own axes, in pixels."""
        x0, y0 = self.middle if origin is None else origin
        y, x = np.ogrid[: shape[0], : shape[1]]
        right, down = x - x0, y - y0
        return (
            (right * self.across[0] + down * self.across[1]).astype(np.float32),
            (right * self.down[0] + down * self.down[1]).astype(np.float32),
        )

    def shifted(self, window: tuple[slice, slice]) -> "HeadPose":
        """The same head in the coordinates of a part of the picture."""
        start = np.array([window[1].start, window[0].start], np.float64)
        return replace(self, eye_a=self.eye_a - start, eye_b=self.eye_b - start)


def find_head(
    landmarks: Landmarks, region_hw: UInt8Array, region: Literal["eyes", "face"]
) -> HeadPose:
    """Locate the head from eyes, else the face box, else the region taken as eye band or face."""
    points, most_px = landmarks.points, float(max(region_hw.shape))
    if "left_eye" in points and "right_eye" in points:
        if MIN_EYES_PX <= math.dist(points["left_eye"], points["right_eye"]) <= most_px:
            return _from_eyes(landmarks)
    if landmarks.face is not None:
        x0, y0, x1, y1 = landmarks.face
        if 2 * MIN_EYES_PX <= min(x1 - x0, y1 - y0) <= most_px:
            return _from_box(landmarks.face)
    return _from_region(region_hw, region)


def with_measured_turn(head: HeadPose, crop_hwc: UInt8Array) -> HeadPose:
    """Correct the yaw by how far the skin reaches to either side: the nose alone is a weak sign."""
    reach_a, reach_b = (_skin_reach(crop_hwc, head, side) for side in (-1.0, 1.0))
    if reach_a + reach_b <= 0.0:
        return head
    seen = TURN_PER_ASYMMETRY * (reach_a - reach_b) / (reach_a + reach_b)
    seen = float(np.sign(seen) * max(abs(seen) - 0.05, 0.0))
    yaw = seen if abs(head.yaw) < UNTURNED else (seen + head.yaw) / 2
    return replace(head, yaw=float(np.clip(yaw, -MAX_YAW, MAX_YAW)))


def _skin_reach(crop_hwc: UInt8Array, head: HeadPose, side: float) -> float:
    """Pixels from the middle of the face to where the skin of the cheek ends, on one side."""
    eyes_px = head.eye_distance_px
    out = np.linspace(0.0, 1.7, 86)
    down = np.linspace(0.15, 0.6, 10)[:, None, None]
    at = head.middle + eyes_px * (down * head.down + side * out[None, :, None] * head.across)
    map_x, map_y = (np.ascontiguousarray(at[..., k], np.float32) for k in (0, 1))
    rgb = cv2.remap(crop_hwc, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    off = np.abs(lab - np.median(lab[:, 15:35].reshape(-1, 3), axis=0)) / (30.0, 10.0, 12.0)
    bare = (off.max(-1) > 1.0).astype(np.float32)
    # A run of five samples, a tenth of the eye distance, ends the cheek; a freckle does not.
    ended = cv2.blur(bare, (5, 1), anchor=(0, 0)) > 0.9
    ended[:, :23] = False
    ends = np.where(ended.any(1), ended.argmax(1), len(out) - 1)
    return float(np.median(out[ends])) * eyes_px


def face_features(landmarks: Landmarks, head: HeadPose) -> dict[str, FloatArray]:
    """Eyes, nose, mouth and chin; what was not found stands where the average face has it."""
    frontal_px = head.eye_distance_px / np.cos(head.yaw)
    turn = head.across * frontal_px * np.sin(head.yaw)
    at = {
        "left_eye": head.eye_b,
        "right_eye": head.eye_a,
        "nose": head.middle + head.down * 0.66 * frontal_px + turn * NOSE_REACH,
        "mouth": head.middle + head.down * 1.08 * frontal_px + turn * 0.3,
        "chin": head.middle + head.down * 1.78 * frontal_px + turn * 0.25,
    }
    for name in ("nose", "mouth", "chin"):
        if name in landmarks.points:
            at[name] = np.array(landmarks.points[name], np.float64)
    return at


def _from_eyes(landmarks: Landmarks) -> HeadPose:
    ends = sorted((landmarks.points["left_eye"], landmarks.points["right_eye"]))
    eye_a, eye_b = (np.array(end, np.float64) for end in ends)
    eye_distance_px = max(float(np.linalg.norm(eye_b - eye_a)), 1.0)
    across = (eye_b - eye_a) / eye_distance_px
    yaw = _yaw(landmarks.points.get("nose"), (eye_a + eye_b) / 2, across, eye_distance_px)
    width_px = 2.15 * eye_distance_px
    if landmarks.face is not None:
        box_px = landmarks.face[2] - landmarks.face[0]
        width_px = float(np.clip(box_px, 1.9 * eye_distance_px, 2.5 * eye_distance_px))
    return HeadPose(eye_a, eye_b, yaw, width_px, True)


def _yaw(
    nose: Point | None, middle: FloatArray, across: FloatArray, eye_distance_px: float
) -> float:
    if nose is None:
        return 0.0
    offset = float((np.array(nose) - middle) @ across) / eye_distance_px
    return float(np.clip(np.arctan(offset / NOSE_REACH), -MAX_YAW, MAX_YAW))


def _from_box(box: Box) -> HeadPose:
    x0, y0, x1, y1 = box
    y = y0 + 0.42 * (y1 - y0)
    eye_a, eye_b = (np.array([x0 + share * (x1 - x0), y]) for share in (0.285, 0.715))
    return HeadPose(eye_a, eye_b, 0.0, x1 - x0, False)


def _from_region(region_hw: UInt8Array, region: Literal["eyes", "face"]) -> HeadPose:
    painted = (region_hw > 0).astype(np.uint8)
    points = cv2.findNonZero(painted if painted.any() else np.ones_like(painted))
    (x, y), size, angle = cv2.minAreaRect(points)
    long_px, short_px = max(*size, 4 * MIN_EYES_PX), max(min(size), 3 * MIN_EYES_PX)
    if size[0] < size[1]:
        angle += 90.0
    # The band of the eyes lies along its long side; a face stands along it.
    roll = angle if region == "eyes" else angle - 90.0
    roll = (roll + 90.0) % 180.0 - 90.0
    if abs(roll) > 50.0 or long_px < 1.12 * short_px:
        roll = 0.0
    across = np.array([np.cos(np.radians(roll)), np.sin(np.radians(roll))])
    down = np.array([-across[1], across[0]])
    middle, width_px = np.array([x, y]), 0.84 * long_px
    if region == "face":
        middle, width_px = middle - down * 0.08 * long_px, short_px
    half = across * width_px / 2.15 / 2
    return HeadPose(middle - half, middle + half, 0.0, width_px, False)
