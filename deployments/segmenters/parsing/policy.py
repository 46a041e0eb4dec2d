"""What each expert may change, drawn from the labels of a person.

Generic per category and generous: a mask that fits the old garment tells the expert its shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deployments.maskers import Part as Protected
from deployments.segmenters.background import draw_background
from deployments.segmenters.parsing.figure import HIP, WAIST, Figure
from deployments.segmenters.parsing.heads import HeadBox
from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.shapes import (
    add_box,
    add_polygon,
    area,
    box_of,
    closed,
    filled_rows,
    grown,
    hull,
    shorter_side,
    split,
    without_specks,
)
from serve.errors import NotSupported, SubjectNotFound
from serve.messages import Expert, UInt8Array

POLICY = 1
"""Changes whenever the same labels give other regions."""

OWN_MASK = "or bring your own mask."
FACE_FEATURES = (Part.FACE, Part.EYES, Part.BROWS, Part.MOUTH)
# Of the eyes' middle, in face widths and heights. Source: what the eyewear polygon of the sm4ll
# authors spans: from the middle of the forehead to the nostrils, from temple to temple.
EYE_BAND = (0.62, -0.27, 0.26)
AROUND_GLASSES = 0.05
SHOE_MARGINS = (0.15, 0.45, 0.15)
"""Beside, above (the ankle) and below (the shadow) a shoe, of its box: the box times 1.3 across."""
LEAST_ABOVE_SHOE = 0.35
"""Of a face's height: room for an ankle above flat shoes."""
GARMENT_GROWTH, FACE_GROWTH = 0.06, 0.03
"""Of the shorter side of the region's box."""
CLOSING = 0.35
"""Gaps narrower than this many face heights belong to the garment."""
OVERLAP = 0.4
"""Face heights that a garment may be longer over its neighbour than the one worn."""
MAX_HULL = 1.6
"""A hull this much larger than what it encloses takes in the scene beside spread limbs."""
MIN_SEEN = {"shoes": 0.0003, "garment": 0.004}
"""Of the picture."""

NEEDS: dict[Expert, tuple[tuple[Part, ...], ...]] = {
    "eye": ((Part.FACE,),),
    "face": ((Part.FACE,),),
    "shoes": ((Part.SHOE, Part.FEET),),
    "top": ((Part.TOP,),),
    "bottom": ((Part.PANTS, Part.SKIRT), (Part.LEG, Part.SHOE)),
    "dress": ((Part.DRESS,), (Part.TOP,)),
    "bg": ((Part.BACKGROUND,), (Part.FACE,), (Part.HAIR,)),
}
"""Of each group the parser must know at least one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a masker's configuration says about its regions."""

    hull: bool = True
    protect: tuple[Protected, ...] = ("face", "hair", "hands")
    dilation: float = 0.0
    """Grows the region by this fraction of its box's shorter side, over our own growth."""


def require_labels(known: frozenset[Part], expert: Expert, label: str) -> None:
    """Refuse an expert whose parts this parser never labels.

    Raises:
        NotSupported: names the parts, and the kind of masker that has them.
    """
    for group in NEEDS[expert]:
        if not known & set(group):
            wanted = " or ".join(part.name.lower() for part in group)
            raise NotSupported(
                f"{label} has no label for {wanted}, which {expert} needs",
                remedy="give the bundle masker.kind parsing with a parser of whole people, or "
                "classical, or bring your own mask",
            )


def draw_region(
    figure: Figure, silhouette_hw: UInt8Array, expert: Expert, policy: Policy
) -> UInt8Array:
    """Draw the region (H, W): 255 where the expert may paint, 0 elsewhere, soft only for bg.

    Raises:
        SubjectNotFound: the part of the person that the expert edits is not visible.
    """
    if expert == "bg":
        return draw_background(silhouette_hw)
    region = _DRAWERS[expert](figure, policy)
    if not region.any():
        raise SubjectNotFound(
            f"the part of the person that {expert} edits is covered or outside the picture",
            remedy=f"Send a photo that shows it, {OWN_MASK}",
        )
    return region


def _eye(figure: Figure, policy: Policy) -> UInt8Array:
    head = _head(figure, "eyes")
    half, top, bottom = EYE_BAND
    middle, reach = head.off_centre, half * head.width
    region = np.zeros_like(figure.parts_hw)
    add_polygon(
        region,
        head.corners(middle - reach, top * head.height, middle + reach, bottom * head.height),
    )
    glasses = _near(figure.mask(Part.GLASSES), region)
    region = np.maximum(region, grown(glasses, AROUND_GLASSES * head.width))
    return _spare(_dilated(region, policy.dilation), figure, policy, about=("face", "hair"))


def _face(figure: Figure, policy: Policy) -> UInt8Array:
    _head(figure, "face")
    skin = np.minimum(figure.face, 255 - figure.mask(Part.EARS))
    face = closed(without_specks(skin, 1.0), 0.2 * figure.unit_px)
    region = hull(face) if policy.hull else face
    region = _dilated(region, FACE_GROWTH + policy.dilation)
    hidden = figure.mask(Part.HAT, Part.NECK, Part.EARS) | figure.throat
    hidden = np.where(figure.face > 0, 0, hidden).astype(np.uint8)
    return _spare(np.minimum(region, 255 - hidden), figure, policy, about=("face",))


def _top(figure: Figure, policy: Policy) -> UInt8Array:
    body = figure.mask(Part.TOP, Part.TORSO, Part.SCARF)
    lower = figure.mask(Part.PANTS, Part.SKIRT, Part.BELT, Part.LEG)
    dress = figure.mask(Part.DRESS)
    hip = figure.row_below_chin(HIP)
    body[:hip] |= dress[:hip]
    lower[hip:] |= dress[hip:]
    _require(figure, body, "garment", "upper body")
    limbs = figure.throat | figure.mask(Part.ARM)
    return _garment(figure, body, limbs, lower, policy)


def _bottom(figure: Figure, policy: Policy) -> UInt8Array:
    body = figure.mask(Part.PANTS, Part.SKIRT, Part.LEG, Part.BELT)
    upper = figure.mask(Part.TOP, Part.TORSO, Part.SCARF, Part.ARM)
    dress = figure.mask(Part.DRESS)
    waist = figure.row_below_chin(WAIST)
    body[waist:] |= dress[waist:]
    upper[:waist] |= dress[:waist]
    _require(figure, body, "garment", "hips and legs")
    return _garment(figure, filled_rows(body), np.zeros_like(body), upper, policy)


def _dress(figure: Figure, policy: Policy) -> UInt8Array:
    trunk = figure.mask(Part.DRESS, Part.TOP, Part.SKIRT, Part.PANTS, Part.TORSO, Part.BELT)
    trunk |= figure.mask(Part.SCARF, Part.LEG)
    _require(figure, trunk, "garment", "body")
    hip = figure.row_below_chin(HIP)
    trunk[hip:] = filled_rows(trunk[hip:])
    limbs = figure.throat | figure.mask(Part.ARM)
    return _garment(figure, trunk, limbs, np.zeros_like(trunk), policy)


def _shoes(figure: Figure, policy: Policy) -> UInt8Array:
    shoes = figure.mask(Part.SHOE, Part.FEET)
    _require(figure, shoes, "shoes", "shoes or feet")
    region = np.zeros_like(shoes)
    beside, above, below = SHOE_MARGINS
    for shoe in split(closed(shoes, 0.1 * figure.unit_px), min_share=0.15):
        x0, y0, x1, y1 = box_of(shoe)
        width, height = x1 - x0, y1 - y0
        up = max(above * height, LEAST_ABOVE_SHOE * figure.unit_px)
        box = (x0 - beside * width, y0 - up, x1 + beside * width, y1 + below * height)
        add_box(region, box)
    return _spare(_dilated(region, policy.dilation), figure, policy, about=())


_DRAWERS: dict[Expert, Callable[[Figure, Policy], UInt8Array]] = {
    "eye": _eye,
    "face": _face,
    "top": _top,
    "bottom": _bottom,
    "dress": _dress,
    "shoes": _shoes,
}


def _garment(
    figure: Figure, trunk: UInt8Array, limbs: UInt8Array, keep: UInt8Array, policy: Policy
) -> UInt8Array:
    """Room for any garment of the category where this one is worn.

    Args:
        trunk: what the garment covers for sure.
        limbs: what it covers when it has sleeves or a high neck.
        keep: neighbours that the new garment may overlap a little, where the old one ends.
    """
    whole = closed(trunk | limbs, CLOSING * figure.unit_px)
    shape = _dilated(
        _hulled(whole, trunk, figure.row_below_chin(HIP)) if policy.hull else whole,
        GARMENT_GROWTH + policy.dilation,
    )
    beside = _dilated(whole, GARMENT_GROWTH + policy.dilation)
    first, last = figure.row_below_chin(0.0), box_of(trunk)[3] + OVERLAP * figure.unit_px
    shape[:first] &= beside[:first]
    shape[round(last) :] &= beside[round(last) :]
    overlap = grown(trunk, OVERLAP * figure.unit_px)
    shape = np.minimum(shape, 255 - np.minimum(keep, 255 - overlap)) | np.minimum(keep, overlap)
    others = figure.mask(Part.BAG, Part.SHOE, Part.FEET)
    return _spare(np.minimum(shape, 255 - others), figure, policy, about=())


def _hulled(whole: UInt8Array, trunk: UInt8Array, hip: int) -> UInt8Array:
    """The hull of everything where that is compact, else of the trunk, else of the halves."""
    for part in (whole, trunk):
        shape = hull(part)
        if area(shape) <= MAX_HULL * area(part):
            return shape | whole
    shape = whole.copy()
    for half in (slice(None, hip), slice(hip, None)):
        rounded = hull(whole[half])
        if area(rounded) <= MAX_HULL * area(whole[half]):
            shape[half] = rounded
    return shape


def _dilated(region: UInt8Array, share: float) -> UInt8Array:
    return grown(region, share * shorter_side(region))


def _spare(
    region: UInt8Array, figure: Figure, policy: Policy, about: tuple[str, ...]
) -> UInt8Array:
    """Take out what the policy protects, unless the expert is about it."""
    protected = set(policy.protect) - set(about)
    if "face" in protected:
        region = np.minimum(region, 255 - figure.face)
    if "hair" in protected:
        region = np.minimum(region, 255 - figure.mask(Part.HAIR, Part.HAT))
    if "hands" in protected:
        region = np.minimum(region, 255 - figure.hands)
    return region


def _near(mask_hw: UInt8Array, region_hw: UInt8Array) -> UInt8Array:
    """The parts of a mask that touch the region."""
    touching = [piece for piece in split(mask_hw, 0.05) if (piece & region_hw).any()]
    near = np.zeros_like(mask_hw)
    for piece in touching:
        near |= piece
    return near


def _head(figure: Figure, part: str) -> HeadBox:
    if figure.head is None:
        raise SubjectNotFound(
            f"no {part} found: the parser sees no face, or too small a one",
            remedy=f"Send a photo that shows the face, {OWN_MASK}",
        )
    return figure.head


def _require(figure: Figure, mask_hw: UInt8Array, least: str, part: str) -> None:
    share = figure.share(mask_hw)
    if share < MIN_SEEN[least]:
        raise SubjectNotFound(
            f"no {part} found: the parser sees it on {share:.2%} of the picture, "
            f"{MIN_SEEN[least]:.2%} are needed",
            remedy=f"Send a photo that shows the {part}, {OWN_MASK}",
        )
