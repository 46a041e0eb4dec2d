"""Drawn people whose every pixel has a label: what a human parser would say about them."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.parsing.labels import Part
from serve.messages import Point, UInt8Array

WIDTH, HEIGHT = 480, 720
UNIT = 60.0
"""Height of the face."""
COLOURS: dict[Part, tuple[int, int, int]] = {
    Part.BACKGROUND: (128, 128, 128),
    Part.HAIR: (60, 30, 10),
    Part.FACE: (230, 180, 150),
    Part.GLASSES: (10, 10, 60),
    Part.TOP: (200, 30, 30),
    Part.DRESS: (160, 20, 160),
    Part.SKIRT: (240, 120, 20),
    Part.PANTS: (30, 60, 200),
    Part.SHOE: (20, 160, 60),
    Part.ARM: (250, 210, 110),
    Part.LEG: (190, 230, 170),
    Part.BAG: (90, 200, 220),
}
"""Far enough from each other that the nearest colour tells the part."""
# As fashn-human-parser spells them, in an order of our own.
NAMES = {
    Part.BACKGROUND: "background",
    Part.HAIR: "hair",
    Part.FACE: "face",
    Part.GLASSES: "glasses",
    Part.TOP: "top",
    Part.DRESS: "dress",
    Part.SKIRT: "skirt",
    Part.PANTS: "pants",
    Part.SHOE: "feet",
    Part.ARM: "arms",
    Part.LEG: "legs",
    Part.BAG: "bag",
}
LABELS = {NAMES[part]: COLOURS[part] for part in NAMES}


@dataclass(frozen=True, slots=True)
class Pose:
    """How the person stands and what they wear."""

    arms: str = "down"
    """down, akimbo, raised or spread."""
    wears: str = "trousers"
    """trousers, skirt or dress."""
    glasses: bool = False
    tilt: float = 0.0
    legs_apart: float = 0.5
    """From the middle to either foot, in face heights."""
    sleeve: float = 0.45
    """Of the arm that the top covers."""


ARMS = {
    "down": ((1.1, 1.7), (1.35, 3.2), (1.4, 4.6)),
    "akimbo": ((1.1, 1.7), (2.1, 3.0), (1.15, 3.9)),
    "raised": ((1.1, 1.7), (1.9, 0.6), (1.5, -0.9)),
    "spread": ((1.1, 1.7), (2.3, 1.75), (3.6, 1.8)),
}
"""Shoulder, elbow and fingertips right of the spine and below the eyes, in face heights."""


STANDING = Pose()


def draw_labels(pose: Pose = STANDING, eyes: Point = (240.0, 90.0)) -> UInt8Array:
    """Parts (H, W) of one person seen from the front."""
    parts = np.zeros((HEIGHT, WIDTH), np.uint8)

    def at(right: float, below: float) -> tuple[int, int]:
        return round(eyes[0] + right * UNIT), round(eyes[1] + below * UNIT)

    def box(part: Part, left: float, top: float, right: float, bottom: float) -> None:
        cv2.rectangle(parts, at(left, top), at(right, bottom), int(part), -1)

    def limb(part: Part, points: list[tuple[float, float]], width: float) -> None:
        spots = np.array([at(*point) for point in points], np.int32)
        cv2.polylines(parts, [spots], False, int(part), round(width * UNIT))

    apart = pose.legs_apart
    for side in (-1, 1):
        foot = side * apart
        limb(Part.LEG, [(side * 0.4, 4.3), (foot, 8.4)], 0.55)
        if pose.wears == "trousers":
            limb(Part.PANTS, [(side * 0.4, 4.2), (side * (0.4 + (apart - 0.4) * 0.9), 7.9)], 0.62)
        toe = foot + side * 0.35
        box(Part.SHOE, min(foot - 0.2, toe), 8.35, max(foot + 0.2, toe), 8.8)
    if pose.wears == "skirt":
        hem = [at(-0.8, 3.7), at(0.8, 3.7), at(1.0, 5.8), at(-1.0, 5.8)]
        cv2.fillPoly(parts, [np.array(hem, np.int32)], int(Part.SKIRT))
    if pose.wears == "trousers":
        box(Part.PANTS, -0.75, 3.6, 0.75, 4.4)
    for side in (-1, 1):
        points = [(side * x, y) for x, y in ARMS[pose.arms]]
        limb(Part.ARM, points, 0.36)
        limb(_upper(pose), _first_part(points, pose.sleeve), 0.46)
    torso = [at(-1.05, 1.5), at(1.05, 1.5), at(0.75, 3.0), at(0.8, 3.75), at(-0.8, 3.75)]
    torso.append(at(-0.75, 3.0))
    cv2.fillPoly(parts, [np.array(torso, np.int32)], int(_upper(pose)))
    if pose.wears == "dress":
        hem = [at(-0.75, 3.0), at(0.75, 3.0), at(1.1, 6.5), at(-1.1, 6.5)]
        cv2.fillPoly(parts, [np.array(hem, np.int32)], int(Part.DRESS))
    _draw_head(parts, eyes, pose)
    return parts


def paint(parts_hw: UInt8Array) -> UInt8Array:
    """The picture (H, W, 3) that a parser of these colours labels as drawn."""
    image = np.zeros((*parts_hw.shape, 3), np.uint8)
    for part, colour in COLOURS.items():
        image[parts_hw == part] = colour
    return image


def _upper(pose: Pose) -> Part:
    return Part.DRESS if pose.wears == "dress" else Part.TOP


def _first_part(points: list[tuple[float, float]], share: float) -> list[tuple[float, float]]:
    """The beginning of a path of two stretches, a share of its length."""
    path = np.array(points)
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    left = share * lengths.sum()
    if left <= lengths[0]:
        end = path[0] + (path[1] - path[0]) * left / lengths[0]
        return [tuple(path[0]), tuple(end)]
    end = path[1] + (path[2] - path[1]) * (left - lengths[0]) / lengths[1]
    return [tuple(path[0]), tuple(path[1]), tuple(end)]


def _draw_head(parts: UInt8Array, eyes: Point, pose: Pose) -> None:
    head = np.full_like(parts, 255)
    x, y = round(eyes[0]), round(eyes[1])
    cv2.rectangle(head, (x - 12, y + 30), (x + 12, y + 105), int(Part.FACE), -1)
    cv2.ellipse(head, (x, y - 6), (33, 42), 0, 0, 360, int(Part.HAIR), -1)
    cv2.ellipse(head, (x, y + 6), (23, 30), 0, 0, 360, int(Part.FACE), -1)
    if pose.glasses:
        for side in (-1, 1):
            cv2.ellipse(head, (x + 11 * side, y), (9, 6), 0, 0, 360, int(Part.GLASSES), -1)
        cv2.line(head, (x - 22, y), (x + 22, y), int(Part.GLASSES), 2)
    matrix = cv2.getRotationMatrix2D((x, y), -pose.tilt, 1.0)
    turned = cv2.warpAffine(
        head, matrix, head.shape[::-1], flags=cv2.INTER_NEAREST, borderValue=255
    )
    neck_below = turned[: y + 80] != 255
    parts[: y + 80][neck_below] = turned[: y + 80][neck_below]
