"""One person's labels: who is meant, how large, and where the body divides."""

from functools import cached_property

import cv2
import numpy as np

from deployments.segmenters.parsing.hands import find_hands
from deployments.segmenters.parsing.heads import HeadBox, find_head
from deployments.segmenters.parsing.labels import Part, mark
from deployments.segmenters.shapes import area, box_of
from serve.messages import Point, UInt8Array

APART_SIDE_PX = 256
"""People are told apart at this size."""
APART = 0.02
"""Of the picture's longer side: people further from each other than this are two."""
# Below the chin, in face heights. Source: averages of Drillis and Contini 1966, as the classical
# masker has them, with the chin 0.68 of a face size below the eyes.
WAIST, HIP = 2.2, 3.0
SPECK = 0.0005
"""Of the person's area: a patch of a label smaller than this is a misreading."""
FACES_TALL = 8.9
"""A standing figure from hairline to sole, in face heights."""


class Figure:
    """The largest person of a label map; everybody else counts as background."""

    def __init__(self, parts_hw: UInt8Array):
        self.parts_hw = keep_largest_person(parts_hw)
        self.head: HeadBox | None = find_head(self.parts_hw)

    def mask(self, *parts: Part) -> UInt8Array:
        """255 on any of these parts (H, W)."""
        return mark(self.parts_hw, *parts)

    def share(self, mask_hw: UInt8Array) -> float:
        """Of the picture that it covers."""
        return area(mask_hw) / mask_hw.size

    @cached_property
    def person(self) -> UInt8Array:
        return np.asarray((self.parts_hw != Part.BACKGROUND) * 255, np.uint8)

    @cached_property
    def unit_px(self) -> float:
        """The height of the face, or what it would be in a body of this size."""
        if self.head is not None:
            return self.head.height
        left, top, right, bottom = box_of(self.person)
        return max((bottom - top) / FACES_TALL, (right - left) / 6.0, 1.0)

    @cached_property
    def neck(self) -> Point:
        """Below the chin, or where the person begins."""
        if self.head is not None:
            return self.head.at(self.head.off_centre, self.head.below + 0.2 * self.head.height)
        left, top, right, _ = box_of(self.mask(Part.TOP, Part.DRESS, Part.TORSO, Part.ARM))
        return (left + right) / 2, top

    def row_below_chin(self, face_heights: float) -> int:
        """The picture's row so far below the chin, of a person who stands or sits upright."""
        chin = self.neck[1] if self.head is None else self.head.box[3]
        return max(round(chin + face_heights * self.unit_px), 0)

    @cached_property
    def hands(self) -> UInt8Array:
        height = None if self.head is None else self.head.height
        return find_hands(self.parts_hw, self.neck, height)

    @cached_property
    def face(self) -> UInt8Array:
        """Face, features and ears, without the neck that some parsers call face."""
        face = self.mask(*(Part.FACE, Part.EYES, Part.BROWS, Part.MOUTH, Part.EARS), Part.GLASSES)
        if self.head is not None:
            face[self._below_chin()] = 0
        return face

    @cached_property
    def throat(self) -> UInt8Array:
        """The neck, and what hangs below the chin of what the parser calls face."""
        neck = self.mask(Part.NECK)
        if self.head is not None:
            neck[(self.mask(Part.FACE) > 0) & self._below_chin()] = 255
        return neck

    def _below_chin(self) -> np.ndarray:
        assert self.head is not None
        height, width = self.parts_hw.shape
        angle = np.radians(self.head.tilt)
        x, y = self.head.eyes
        rows = (np.arange(height, dtype=np.float32) + 0.5 - y) * np.cos(angle)
        columns = (np.arange(width, dtype=np.float32) + 0.5 - x) * np.sin(angle)
        below: np.ndarray = rows[:, None] - columns[None] > self.head.below + 1.0
        return below


def keep_largest_person(parts_hw: UInt8Array) -> UInt8Array:
    """The same labels with everybody but the largest person made background."""
    step = max(max(parts_hw.shape) // APART_SIDE_PX, 1)
    small = np.asarray((parts_hw[::step, ::step] != Part.BACKGROUND) * 255, np.uint8)
    reach = max(int(APART * max(small.shape)), 1) | 1
    joined = cv2.dilate(small, np.ones((reach, reach), np.uint8))
    count, pieces = cv2.connectedComponents(joined)
    if count <= 2:
        return parts_hw
    areas = np.bincount(pieces[small > 0], minlength=count)
    main = np.asarray((pieces == int(areas.argmax())) * 255, np.uint8)
    kept = cv2.resize(main, parts_hw.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where(kept > 0, parts_hw, Part.BACKGROUND).astype(np.uint8)


def tidy_parts(parts_hw: UInt8Array) -> UInt8Array:
    """Give every speck to what surrounds it: one by the feet would stretch a hull to them."""
    person = np.asarray((parts_hw != Part.BACKGROUND) * 255, np.uint8)
    least = SPECK * area(person)
    left, top, right, bottom = (int(edge) for edge in box_of(person))
    window = parts_hw[top:bottom, left:right]
    specks = np.zeros(window.shape, np.uint8)
    for part in np.unique(window):
        mask = np.asarray((window == part) * 255, np.uint8)
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] < least
        small[0] = False
        specks |= np.asarray(small[pieces] * 255, np.uint8)
    if not specks.any() or specks.all():
        return parts_hw
    _, nearest = cv2.distanceTransformWithLabels(
        specks, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # Its labels count the pixels that are no specks, row by row.
    solid = np.zeros(int(nearest.max()) + 1, np.uint8)
    solid[nearest[specks == 0]] = window[specks == 0]
    tidied = parts_hw.copy()
    tidied[top:bottom, left:right] = solid[nearest]
    return tidied
