"""What crosses a Ray handle: arrays and points, as frozen dataclasses.

Never encoded pictures, never the original: only the copy the segmenter needs and the crop the
expert needs. All images are RGB, uint8, row-major, already in sRGB and upright.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels; x1 and y1 exclusive."""

Expert = Literal["eye", "shoes", "face", "top", "bottom", "dress", "bg"]
EXPERTS: tuple[Expert, ...] = ("eye", "shoes", "face", "top", "bottom", "dress", "bg")

LANDMARK_NAMES = (
    # COCO-17: the person's own left and right, so left_eye lies right of right_eye when facing us.
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    # Ours, where the region policies need more than COCO has.
    *("chin", "forehead", "mouth", "neck", "crotch"),
    *("left_heel", "right_heel", "left_toe", "right_toe"),
)

LANDMARKS_BYTES = 4096
"""All of them as Python keeps them, with what names and orders an entry."""


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Named points of one person in pixels of one image; a point not found is absent.

    Points may lie outside the picture when a limb is cut off by its border.
    """

    points: Mapping[str, Point] = field(default_factory=dict)
    face: Box | None = None
    """Tight box from forehead to chin and cheek to cheek."""

    def transformed(self, scale: Point, offset: Point) -> "Landmarks":
        """Map every point by (x, y) -> (x * scale[0] + offset[0], y * scale[1] + offset[1])."""

        def move(x: float, y: float) -> Point:
            return x * scale[0] + offset[0], y * scale[1] + offset[1]

        face = None if self.face is None else (*move(*self.face[:2]), *move(*self.face[2:]))
        return Landmarks({name: move(*point) for name, point in self.points.items()}, face)


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """Find the region that `expert` may change."""

    image_hwc: UInt8Array
    """(H, W, 3) sRGB, longer side at most 1024."""
    expert: Expert
    content_hash: str
    """Of the original bytes and whose they are; the cache key together with the masker."""
    masker: str = "classical"
    """Which masker shall find it: `Masker.id` of the bundle."""
    dilation: float = 0.0
    """Grow the region by this fraction of its box's shorter side."""

    @property
    def num_bytes(self) -> int:
        return self.image_hwc.nbytes


@dataclass(frozen=True, slots=True)
class SegmentReply:
    """Where the expert may paint, and what is known about the person."""

    region_hw: UInt8Array
    """(H, W): 0 where nothing may change, else the weight of the edit; soft edges only for bg."""
    silhouette_hw: UInt8Array
    """(H, W): 255 on the person, 0 on the background, soft edge."""
    landmarks: Landmarks
    masker: str
    """Which masker with which version, for the receipt: `classical/2`."""
    cached: bool = False
    batch_size: int = 1

    @property
    def nbytes(self) -> int:
        """Of one that is kept: of a small picture the points take more than the maps."""
        return self.region_hw.nbytes + self.silhouette_hw.nbytes + LANDMARKS_BYTES


@dataclass(frozen=True, slots=True)
class ExpertRequest:
    """Paint the product into the region of one crop."""

    request_id: str
    version: str
    """`expert@name`: replicas may hold several versions on one base."""
    crop_hwc: UInt8Array
    """(H, W, 3): the part of the person's picture around the region, at the expert's size."""
    region_hw: UInt8Array
    """(H, W): 255 where the expert may paint."""
    silhouette_hw: UInt8Array | None
    """(H, W): 255 on the person; None when the caller brought a mask and nothing was segmented."""
    landmarks: Landmarks
    """In crop pixels; empty when the caller brought a mask."""
    product_hwc: UInt8Array
    """(h, w, 4) sRGB with straight alpha; alpha is 255 everywhere for an opaque picture."""
    product_landmarks: Landmarks
    """In product pixels; only for experts whose product is a person (face)."""
    seed: int
    product_hash: str = ""
    """Of the product's original bytes and whose they are, to remember by; empty for pictures that
    are nobody's."""
    num_images: int = 1
    num_steps: int = 1
    guidance: float = 0.0
    deadline_unix_s: float | None = None
    is_spare: bool = False
    """Nobody waits for it: a replica paints it while it has nothing else to do."""

    @property
    def num_bytes(self) -> int:
        """What crosses the handle, about."""
        silhouette_bytes = 0 if self.silhouette_hw is None else self.silhouette_hw.nbytes
        pictures_bytes = self.crop_hwc.nbytes + self.region_hw.nbytes + self.product_hwc.nbytes
        return pictures_bytes + silhouette_bytes


@dataclass(frozen=True, slots=True)
class UpstreamCost:
    """What a third party charged for one request."""

    provider: str
    usd: float
    credits: float | None = None


@dataclass(frozen=True, slots=True)
class ExpertReply:
    """What an expert painted."""

    images_nhwc: UInt8Array
    """(N, H, W, 3), same H and W as the crop."""
    alpha_nhw: UInt8Array | None
    """(N, H, W): 0 where the expert left the crop as it was; None when it does not know."""
    version: str
    batch_size: int = 1
    """Requests that shared the pass."""
    batch_id: str = ""
    """The same for all of one pass; empty when nothing was batched."""
    batch_index: int = 0
    """Place of this request in its batch."""
    generate_ms: float = 0.0
    cost: UpstreamCost | None = None
    product_cached: bool | None = None
    """Whether what it makes of the product was remembered; None where it remembers nothing."""
    notes: tuple[str, ...] = ()
    """What a person should know about this picture, in words, for receipt and Studio."""


JudgedBy = Literal["embedding", "face"]
"""What models say of a picture; names of `serve.designs.MetricName`."""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One painted picture for models to judge: cutouts of it, at most 448 px long."""

    product_hwc: UInt8Array
    """(h, w, 3): the product on white."""
    painted_hwc: UInt8Array
    """(h, w, 3): what was painted of it, with what lies beside."""
    faces: tuple[UInt8Array, UInt8Array] | None = None
    """(h, w, 3) each: how the face shall look and how it does; None where no face is touched."""

    @property
    def num_bytes(self) -> int:
        faces_bytes = sum(face.nbytes for face in self.faces or ())
        return self.product_hwc.nbytes + self.painted_hwc.nbytes + faces_bytes


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What the configured models say."""

    metrics: Mapping[JudgedBy, float]
    """Those that could be told."""
