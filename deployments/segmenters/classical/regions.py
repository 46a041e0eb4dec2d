"""Turns what is known about a person into the region each expert may change."""

from collections.abc import Callable

import cv2
import numpy as np

from deployments.segmenters.classical.figure import HIP, NECK, WAIST, draw_half
from deployments.segmenters.classical.headmarks import Head
from deployments.segmenters.classical.person import Person
from serve.errors import SubjectNotFound
from serve.messages import Expert, Point, UInt8Array

MIN_SEEN = 0.7
"""Of the torso's place that a well seen torso fills."""
OWN_MASK = "or bring your own mask."


def draw_region(person: Person, expert: Expert, dilation: float) -> UInt8Array:
    """Draw the region (H, W): 255 where the expert may paint, 0 elsewhere, soft only for bg.

    Raises:
        SubjectNotFound: the part of the person that the expert edits is not visible.
    """
    if expert == "bg":
        return _background(person)
    region = _DRAWERS[expert](person)
    if dilation > 0.0:
        region = _grown(region, dilation * _shorter_side(region))
    if not region.any():
        raise SubjectNotFound(
            f"the part of the person that {expert} edits lies outside the picture",
            remedy=f"Send a photo that shows it, {OWN_MASK}",
        )
    return region


def _eye(person: Person) -> UInt8Array:
    head = _head(person, "eyes")
    left, right = -head.cheek_a - 0.12, head.cheek_b + 0.12
    corners = [(left, -0.27), (right, -0.27), (right, 0.27), (left, 0.27)]
    return _polygon(person, [head.at(x, y) for x, y in corners])


def _face(person: Person) -> UInt8Array:
    head = _head(person, "face")
    region = _empty(person)
    axes = (1.06 * head.width * head.size_px, 1.1 * head.size_px)
    cv2.ellipse(region, (head.at(head.centre, 0.17), axes, head.roll), 255, -1)
    return region


def _top(person: Person) -> UInt8Array:
    unit, levels = person.body.figure.unit_px, person.body.levels
    collar = levels.neck - 0.2 * unit
    _require(person, collar + 0.1 * unit, "upper body")
    body = np.maximum(_rows(person, collar, levels.hip + 0.35 * unit), _torso(person))
    region = _grown(_closed(body, 0.5 * unit), 0.16 * unit)
    region[: max(int(collar - 0.1 * unit), 0)] = 0
    region[max(int(levels.hip + 0.5 * unit), 0) :] = 0
    return _without_hands(_without_head(region, person), person)


def _torso(person: Person) -> UInt8Array:
    """Shoulders to hips by proportion, for where the outline lost a dark or white garment.

    Where it lost little, the person is turned rather than badly seen, and nothing far is added.
    """
    region, figure = _empty(person), person.body.figure
    half = ((0.4, NECK), (0.85, 1.2), (0.75, WAIST), (0.75, HIP))
    draw_half(region, figure, half, 255)
    seen = (person.silhouette_hw > 127).astype(np.uint8) * 255
    if np.count_nonzero(seen[region > 0]) < MIN_SEEN * np.count_nonzero(region):
        return region
    return np.asarray(region & _grown(seen, 0.1 * figure.unit_px), np.uint8)


def _bottom(person: Person) -> UInt8Array:
    unit, levels = person.body.figure.unit_px, person.body.levels
    _require(person, levels.hip + 0.3 * unit, "hips and legs")
    start = person.hem_row
    if start is None:
        start = levels.waist + 0.3 * unit
    body = _rows(person, start, levels.ankle + 0.1 * unit)
    legs = _hanging_together(_without_hands(_trunk_only(body, person), person), person)
    region = _grown(_filled_rows(legs), 0.1 * unit)
    region[: max(int(start - 0.04 * unit), 0)] = 0
    region[max(int(levels.ankle + 0.1 * unit), 0) :] = 0
    return _without_hands(region, person)


def _hanging_together(region: UInt8Array, person: Person) -> UInt8Array:
    """Drop what hangs beside the hips without touching them: hands."""
    unit, levels = person.body.figure.unit_px, person.body.levels
    narrow = cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((max(int(0.08 * unit), 1),) * 2))
    count, parts, stats, centres = cv2.connectedComponentsWithStats(np.asarray(narrow, np.uint8))
    kept = np.zeros(count, np.bool_)
    for part in range(1, count):
        bottom = stats[part, cv2.CC_STAT_TOP] + stats[part, cv2.CC_STAT_HEIGHT]
        is_leg = bottom > levels.crotch + unit
        is_trunk = abs(centres[part][0] - person.body.figure.neck_x) < 0.6 * unit
        kept[part] = is_leg or is_trunk
    return np.where(kept[parts], narrow, 0).astype(np.uint8)


def _dress(person: Person) -> UInt8Array:
    unit, levels = person.body.figure.unit_px, person.body.levels
    collar = levels.neck - 0.2 * unit
    _require(person, collar + 0.1 * unit, "torso")
    # Down to the shoes: a dress shorter than the trousers before it leaves bare legs, not cuffs.
    hem = levels.ankle - 0.22 * unit
    body = np.maximum(_rows(person, collar, hem), _torso(person))
    region = _grown(_filled_rows(_trunk_only(body, person)), 0.22 * unit)
    _flare(region, int(levels.waist), 0.5 * unit)
    region[: max(int(collar - 0.1 * unit), 0)] = 0
    return _without_hands(_without_head(region, person), person)


def _flare(region: UInt8Array, waist_row: int, reach_px: float) -> None:
    """Widen everything below the waist, gradually: room for a skirt wider than the hips."""
    skirt = region[max(waist_row, 0) :]
    if not len(skirt):  # the picture ends above the waist
        return
    kernel = np.ones((1, 2 * int(reach_px) + 1), np.uint8)
    wider = cv2.dilate(skirt, kernel)
    distance = cv2.distanceTransform(255 - skirt, cv2.DIST_L2, 3)
    allowed = np.minimum(np.arange(len(skirt)) * 0.35, reach_px)
    skirt[(wider > 0) & (distance <= allowed[:, None])] = 255


def _shoes(person: Person) -> UInt8Array:
    points = person.landmarks.points
    if not {"left_toe", "right_toe"} & set(points):
        raise SubjectNotFound(
            "no feet found: the person is cut off above the shoes",
            remedy=f"Send a photo that shows both feet, {OWN_MASK}",
        )
    region, unit = _empty(person), person.body.figure.unit_px
    for side in ("left", "right"):
        heel, toe = points.get(f"{side}_heel"), points.get(f"{side}_toe")
        if heel is None or toe is None:
            continue
        low, high = sorted((heel[0], toe[0]))
        margin = 0.15 * (high - low) + 0.32 * unit
        spots = [(low - margin, heel[1] - 0.95 * unit), (high + margin, heel[1] + 0.2 * unit)]
        cv2.rectangle(region, _pixel(spots[0]), _pixel(spots[1]), 255, -1)
    return region


def _background(person: Person) -> UInt8Array:
    """All but the person, by as much as each pixel is not the person: hair stays hair."""
    person_hw = person.silhouette_hw
    return np.asarray(255 - np.maximum(person_hw, cv2.GaussianBlur(person_hw, (3, 3), 0.6)))


_DRAWERS: dict[Expert, Callable[[Person], UInt8Array]] = {
    "eye": _eye,
    "face": _face,
    "top": _top,
    "bottom": _bottom,
    "dress": _dress,
    "shoes": _shoes,
}


def _head(person: Person, part: str) -> Head:
    if person.head is None:
        raise SubjectNotFound(
            f"no {part} found: the face is covered or turned away",
            remedy=f"Send a photo that shows the face, {OWN_MASK}",
        )
    return person.head


def _require(person: Person, row: float, part: str) -> None:
    if row > np.flatnonzero((person.silhouette_hw > 127).any(axis=1)).max(initial=0):
        raise SubjectNotFound(
            f"no {part} found: the picture ends above",
            remedy=f"Send a photo that shows the {part}, {OWN_MASK}",
        )


def _empty(person: Person) -> UInt8Array:
    return np.zeros_like(person.silhouette_hw)


def _polygon(person: Person, spots: list[Point]) -> UInt8Array:
    region = _empty(person)
    cv2.fillPoly(region, [np.rint(np.array(spots)).astype(np.int32)], 255)
    return region


def _rows(person: Person, top: float, bottom: float) -> UInt8Array:
    region = (person.silhouette_hw > 127).astype(np.uint8) * 255
    region[: max(int(top), 0)] = 0
    region[max(int(bottom), 0) :] = 0
    return region


def _trunk_only(region: UInt8Array, person: Person) -> UInt8Array:
    """Drop what lies far beside the trunk: arms held out."""
    figure = person.body.figure
    left, right = (int(figure.neck_x + side * 1.7 * figure.unit_px) for side in (-1, 1))
    kept = region.copy()
    kept[:, : max(left, 0)] = 0
    kept[:, max(right, 0) :] = 0
    return kept


def _filled_rows(region: UInt8Array) -> UInt8Array:
    """Fill every row from its first to its last pixel: cloth spans the gap between the legs."""
    solid = region > 0
    from_left = np.maximum.accumulate(solid, axis=1)
    from_right = np.maximum.accumulate(solid[:, ::-1], axis=1)[:, ::-1]
    return ((from_left & from_right) * 255).astype(np.uint8)


def _without_head(region: UInt8Array, person: Person) -> UInt8Array:
    head = person.head
    if head is None:
        return region
    kept = region.copy()
    axes = (1.25 * head.size_px, 1.5 * head.size_px)
    cv2.ellipse(kept, (head.at(head.centre, -0.02), axes, head.roll), 0, -1)
    return kept


def _without_hands(region: UInt8Array, person: Person) -> UInt8Array:
    kept, unit = region.copy(), person.body.figure.unit_px
    for side in ("left", "right"):
        wrist = person.landmarks.points.get(f"{side}_wrist")
        if wrist is None:
            continue
        disc = _empty(person)
        cv2.circle(disc, _pixel(wrist), max(int(0.55 * unit), 1), 1, -1)
        kept[(disc > 0) & (person.skin_hw > 0)] = 0
    return kept


def _closed(region: UInt8Array, size_px: float) -> UInt8Array:
    """Close gaps narrower than size_px; what lies off the picture counts as more of the same."""
    pad = int(size_px) + 2
    padded = np.pad(region, pad, mode="edge")
    closed = 255 - _grown(255 - _grown(padded, size_px / 2), size_px / 2)
    return np.asarray(closed[pad:-pad, pad:-pad], np.uint8)


def _grown(region: UInt8Array, radius_px: float) -> UInt8Array:
    """Dilate by a disc; by distance, because large structuring elements take seconds."""
    if not region.any():
        return region.copy()
    distance = cv2.distanceTransform(255 - region, cv2.DIST_L2, cv2.DIST_MASK_5)
    return ((distance <= radius_px) * 255).astype(np.uint8)


def _shorter_side(region: UInt8Array) -> float:
    _, _, width, height = cv2.boundingRect(region)
    return float(min(width, height))


def _pixel(spot: Point) -> tuple[int, int]:
    return round(spot[0]), round(spot[1])
