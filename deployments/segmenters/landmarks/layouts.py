"""What the points of keypoint networks mean: from their order to our names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from serve.messages import LANDMARK_NAMES

Points = Literal["coco17", "coco133", "sapiens308", "facemesh478"]
Indices = tuple[int, ...]

BODY: dict[str, Indices] = {name: (index,) for index, name in enumerate(LANDMARK_NAMES[:17])}


@dataclass(frozen=True, slots=True)
class Layout:
    """One order of points."""

    num_points: int
    named: Mapping[str, Indices]
    """Our name to the points whose mean it is. Left and right are the person's own."""
    outline: Indices = ()
    """Points whose hull is the face, where the layout has them."""
    brows: Indices = ()
    nose_base: int | None = None
    dataset_index: int = 0
    """Which expert of a VitPose+ answers. Source: transformers 5.23.0, docs of VitPose."""
    is_face_only: bool = False


# COCO-WholeBody: 17 body, 6 feet, 68 face in the order of iBUG, 42 hands.
# Source: pose/configs/_base_/datasets/coco_wholebody.py of facebookresearch/sapiens.
_FACE = 23
_WHOLE_BODY = {
    **BODY,
    "left_toe": (17, 18),
    "left_heel": (19,),
    "right_toe": (20, 21),
    "right_heel": (22,),
    "chin": (_FACE + 8,),
    "mouth": tuple(range(_FACE + 48, _FACE + 68)),
}
# Source: the keypoint list of Goliath 308 (sapiens, pose/configs/_base_/datasets).
_GOLIATH = {
    **{name: (index,) for index, name in enumerate(LANDMARK_NAMES[:9])},
    "left_hip": (9,),
    "right_hip": (10,),
    "left_knee": (11,),
    "right_knee": (12,),
    "left_ankle": (13,),
    "right_ankle": (14,),
    "left_toe": (15, 16),
    "left_heel": (17,),
    "right_toe": (18, 19),
    "right_heel": (20,),
    "right_wrist": (41,),
    "left_wrist": (62,),
    "neck": (69,),
    "chin": (77,),
}
# MediaPipe FaceMesh with refined irises. Source: mediapipe, face_mesh_connections.py.
_FACE_MESH: dict[str, Indices] = {
    "right_eye": (468,),
    "left_eye": (473,),
    "nose": (4,),
    "mouth": (13, 14),
    "chin": (152,),
    "forehead": (10,),
}
LAYOUTS: dict[Points, Layout] = {
    "coco17": Layout(17, BODY),
    "coco133": Layout(
        133,
        _WHOLE_BODY,
        outline=tuple(range(_FACE, _FACE + 68)),
        brows=tuple(range(_FACE + 17, _FACE + 27)),
        nose_base=_FACE + 33,
        dataset_index=5,
    ),
    "sapiens308": Layout(308, _GOLIATH, brows=tuple(range(78, 96))),
    "facemesh478": Layout(478, _FACE_MESH, outline=tuple(range(468)), is_face_only=True),
}
