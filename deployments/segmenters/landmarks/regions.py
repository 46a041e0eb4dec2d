"""Where eyewear, a face or shoes may be painted, from points alone."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.segmenters.landmarks.eyewear import eyewear_polygon
from deployments.segmenters.landmarks.pose import Pose
from deployments.segmenters.shapes import add_box, grown, shorter_side
from serve.errors import NotSupported, SubjectNotFound
from serve.messages import Box, Expert, Point, UInt8Array

VERSION = 1
"""Changes whenever the same points give another region."""
FloatArray = NDArray[np.float64]

AROUND_EYES = 0.5
"""Of the distance between the eyes: half the height of a large lens, and some forehead."""
TEMPLE = 0.75
"""The same, from an eye out to a temple whose ear is not seen."""
AROUND_FACE = 0.06
"""Of the shorter side of the face's box."""
SHOE = 1.3
"""The box of a foot's points times this holds its shoe. Source: facts of footwear masks."""
# Of the shin's length. Source: averages of Drillis and Contini 1966: a foot is 0.62 of a shin long,
# its ankle 0.16 above the sole.
FOOT_LENGTH, ANKLE_HEIGHT, ABOVE_ANKLE = 0.62, 0.2, 0.15
TOE_REACH = 0.7
"""Of a foot's length, from the ankle to the toes of a foot seen from the side."""
SHIN_IN_EYES = 6.5
"""A shin of 0.41 m over 63 mm between the pupils."""
LIMBS = (
    *(("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")),
    *(("shoulder", "hip"), ("ankle", "toe"), ("heel", "toe")),
)
LIMB_WIDTH = 0.22
"""Of the width of the shoulders."""


def draw_region(pose: Pose, shape: tuple[int, ...], expert: Expert, dilation: float) -> UInt8Array:
    """Draw the region (H, W): 255 where the expert may paint.

    Raises:
        NotSupported: points do not tell where this expert may paint.
        SubjectNotFound: the points that it needs were not seen.
    """
    drawer = _DRAWERS.get(expert)
    if drawer is None or (expert == "shoes" and pose.layout.is_face_only):
        raise NotSupported(
            f"points of {pose.layout_name} do not tell what {expert} may change",
            remedy=f"give the bundle of {expert} masker.kind classical"
            f"{', matting' if expert == 'bg' else ''} or parsing, or bring your own mask",
        )
    region = drawer(pose, shape)
    if not region.any():
        raise SubjectNotFound(
            f"the part of the person that {expert} edits lies outside the picture",
            remedy="Send a photo that shows it, or bring your own mask.",
        )
    return grown(region, dilation * shorter_side(region))


def draw_silhouette(pose: Pose, shape: tuple[int, ...]) -> UInt8Array:
    """About where the person is (H, W): limbs as thick lines, soft at the edge."""
    figure = np.zeros(shape[:2], np.uint8)
    points = pose.named()
    outline = pose.face_outline()
    if outline is not None:
        cv2.fillConvexPoly(figure, cv2.convexHull(outline.astype(np.int32)), 255)
    trunk = [points.get(name) for name in ("left_shoulder", "right_shoulder", "right_hip")]
    trunk.append(points.get("left_hip"))
    corners = [point for point in trunk if point is not None]
    if len(corners) >= 3:
        cv2.fillConvexPoly(figure, cv2.convexHull(np.array(corners).astype(np.int32)), 255)
    thick = max(round(LIMB_WIDTH * _shoulders(points)), 1)
    for side in ("left", "right"):
        for start, end in LIMBS:
            a, b = points.get(f"{side}_{start}"), points.get(f"{side}_{end}")
            if a is not None and b is not None:
                cv2.line(figure, _pixel(a), _pixel(b), 255, thick)
    return np.asarray(cv2.GaussianBlur(figure, (0, 0), max(thick / 8, 1.0)), np.uint8)


def _eye(pose: Pose, shape: tuple[int, ...]) -> UInt8Array:
    if pose.layout_name == "facemesh478":
        if pose.seen(pose.layout.outline) is None:
            raise _nothing("face", "shows the face")
        return eyewear_polygon(pose.points_k2, shape)
    axes = pose.eye_axes()
    if axes is None:
        raise _nothing("eyes", "shows both eyes")
    middle, across, down = axes
    points = pose.named()
    ears = [points.get("right_ear"), points.get("left_ear")]
    sides = [middle - (0.5 + TEMPLE) * across, middle + (0.5 + TEMPLE) * across]
    spots = [
        *(
            np.array(ear) if ear is not None else side
            for ear, side in zip(ears, sides, strict=True)
        ),
        *(middle - across / 2, middle + across / 2),
        np.array(points.get("nose", tuple(middle + 0.6 * down))),
    ]
    return grown(_hull_of(np.array(spots), shape), AROUND_EYES * float(np.linalg.norm(across)))


def _face(pose: Pose, shape: tuple[int, ...]) -> UInt8Array:
    outline = pose.face_outline()
    if outline is None:
        raise _nothing("face", "shows the face")
    region = _hull_of(outline, shape)
    return grown(region, AROUND_FACE * shorter_side(region))


def _shoes(pose: Pose, shape: tuple[int, ...]) -> UInt8Array:
    region = np.zeros(shape[:2], np.uint8)
    points = pose.named()
    shin = _shin(points)
    for side in ("left", "right"):
        foot = [points.get(f"{side}_{part}") for part in ("ankle", "heel", "toe")]
        seen = [point for point in foot if point is not None]
        if shin is not None and foot[0] is not None:
            add_box(region, _foot_box(np.array(seen), shin))
    if not region.any():
        raise _nothing("feet", "shows both feet and the legs above them")
    return region


def _shin(points: dict[str, Point]) -> float | None:
    """From knee to ankle in pixels, the longer of both; by the eyes where no knee is seen."""
    shins = [
        _distance(points[f"{side}_knee"], points[f"{side}_ankle"])
        for side in ("left", "right")
        if {f"{side}_knee", f"{side}_ankle"} <= set(points)
    ]
    if shins:
        return max(shins)
    if {"left_eye", "right_eye"} <= set(points):
        return SHIN_IN_EYES * _distance(points["left_eye"], points["right_eye"])
    return None


def _foot_box(foot_n2: FloatArray, shin: float) -> Box:
    """Around a foot, its ankle first; where nothing tells the toe, with room on both sides."""
    length, ankle_y = FOOT_LENGTH * shin, float(foot_n2[0, 1])
    (x0, y0), (x1, y1) = foot_n2.min(axis=0), foot_n2.max(axis=0)
    wider = max((SHOE - 1) / 2 * (x1 - x0), 0.3 * length)
    if len(foot_n2) == 1:
        wider, y1 = TOE_REACH * length, y1 + ANKLE_HEIGHT * shin
    below = max((SHOE - 1) / 2 * (y1 - y0), 0.1 * shin)
    return (
        *(float(x0 - wider), min(float(y0), ankle_y - ABOVE_ANKLE * shin)),
        *(float(x1 + wider), float(y1 + below)),
    )


def _hull_of(spots: FloatArray, shape: tuple[int, ...]) -> UInt8Array:
    region = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(region, cv2.convexHull(np.rint(spots).astype(np.int32)), 255)
    return region


def _shoulders(points: dict[str, Point]) -> float:
    left, right = points.get("left_shoulder"), points.get("right_shoulder")
    return 0.0 if left is None or right is None else _distance(left, right)


def _distance(a: Point, b: Point) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))


def _nothing(part: str, shows: str) -> SubjectNotFound:
    return SubjectNotFound(
        f"no {part} found: the keypoint network is not sure of them",
        remedy=f"Send a photo that {shows}, or bring your own mask.",
    )


def _pixel(spot: Point) -> tuple[int, int]:
    return round(spot[0]), round(spot[1])


_DRAWERS: dict[Expert, Callable[[Pose, tuple[int, ...]], UInt8Array]] = {
    "eye": _eye,
    "face": _face,
    "shoes": _shoes,
}
