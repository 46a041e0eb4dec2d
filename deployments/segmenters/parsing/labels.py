"""What the labels of human parsers mean, by their names and never by their positions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

from deployments.maskers import ParsingMasker
from serve.errors import BundleInvalid
from serve.messages import UInt8Array

MAX_LISTED = 30


class Part(IntEnum):
    """What a pixel shows, whichever parser says so."""

    BACKGROUND = 0
    HAT = 1
    HAIR = 2
    FACE = 3
    EYES = 4
    BROWS = 5
    MOUTH = 6
    EARS = 7
    GLASSES = 8
    NECK = 9
    TOP = 10
    DRESS = 11
    SKIRT = 12
    PANTS = 13
    BELT = 14
    SCARF = 15
    BAG = 16
    SHOE = 17
    ARM = 18
    HAND = 19
    TORSO = 20
    LEG = 21
    FEET = 22
    JEWELRY = 23
    DETAIL = 24
    OTHER = 25


def _named(**names: str) -> dict[str, Part]:
    """`top="coat vest"` reads: labels of these names mean TOP."""
    return {name: Part[part.upper()] for part, many in names.items() for name in many.split()}


# ATR. Source: config.json of mattmdjaga/segformer_b2_clothes.
ATR = _named(
    background="background",
    hat="hat",
    hair="hair",
    face="face",
    glasses="sunglasses",
    top="upper_clothes",
    dress="dress",
    skirt="skirt",
    pants="pants",
    belt="belt",
    scarf="scarf",
    bag="bag",
    shoe="left_shoe right_shoe",
    arm="left_arm right_arm",
    leg="left_leg right_leg",
)
# Source: README of the package fashn-human-parser 0.1.0.
FASHN = _named(
    background="background",
    hat="hat",
    hair="hair",
    face="face",
    glasses="glasses",
    top="top",
    dress="dress",
    skirt="skirt",
    pants="pants",
    belt="belt",
    scarf="scarf",
    bag="bag",
    feet="feet",
    arm="arms",
    hand="hands",
    torso="torso",
    leg="legs",
    jewelry="jewelry",
)
# CelebAMask-HQ. Source: config.json of jonathandinu/face-parsing; "cloth" is any clothing.
CELEB = _named(
    background="background",
    hat="hat",
    hair="hair",
    face="skin nose",
    eyes="l_eye r_eye",
    brows="l_brow r_brow",
    ears="l_ear r_ear",
    mouth="mouth u_lip l_lip",
    glasses="eye_g",
    neck="neck",
    jewelry="ear_r neck_l",
    other="cloth",
)
# Source: Fashionpedia's 46 categories; sayeed99/segformer-b2-human adds the body.
FASHIONPEDIA = _named(
    background="unlabelled unlabeled background",
    hat="hat headband_head_covering_hair_accessory",
    hair="hair",
    face="face head",
    glasses="glasses",
    neck="neck",
    top=(
        "shirt_blouse top_t_shirt_sweatshirt sweater cardigan jacket vest coat cape tie "
        "hood collar lapel epaulette sleeve neckline"
    ),
    dress="dress jumpsuit",
    skirt="skirt",
    pants="pants shorts",
    belt="belt",
    scarf="scarf",
    bag="bag_wallet",
    shoe="shoe",
    arm="arm arms left_arm right_arm",
    hand="glove hand hands left_hand right_hand",
    torso="torso torso_skin skin body",
    leg="sock leg_warmer tights_stockings leg legs left_leg right_leg",
    feet="foot feet left_foot right_foot",
    jewelry="watch",
    detail=(
        "pocket buckle zipper applique bead bow flower fringe ribbon rivet ruffle sequin tassel"
    ),
    other="umbrella",
)
# LIP and CIHP (Self-Correction-Human-Parsing), and Sapiens' body parts (docs/SEG_README.md).
_LIP = _named(
    hand="glove",
    top="coat upperclothes",
    leg="socks",
    dress="jumpsuits",
    torso="torso_skin tosor_skin",
)
_SAPIENS = _named(
    face="face_neck",
    glasses="eyeglass eyeglasses eyeglass_frame eyeglass_lenses",
    feet="left_foot right_foot",
    hand="left_hand right_hand",
    arm="left_lower_arm left_upper_arm right_lower_arm right_upper_arm",
    leg="left_lower_leg left_upper_leg right_lower_leg right_upper_leg left_sock right_sock",
    shoe="left_shoe right_shoe",
    pants="lower_clothing",
    torso="torso",
    top="upper_clothing",
    mouth="lower_lip upper_lip lower_teeth upper_teeth tongue",
    other="apparel chair headset",
)
PRESETS: dict[str, dict[str, Part]] = {
    "segformer_b2_clothes": ATR,
    "fashn-human-parser": FASHN,
    "face-parsing": CELEB,
    "segformer-b2-human": FASHIONPEDIA,
}
KNOWN = {**_SAPIENS, **_LIP, **CELEB, **FASHIONPEDIA, **ATR, **FASHN}


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A model's labels, translated."""

    parts_by_id: UInt8Array
    """(num_labels,): the Part of each label id."""
    names: Mapping[str, Part]
    """The same by the model's own names."""

    @property
    def parts(self) -> frozenset[Part]:
        return frozenset(self.names.values())

    def translate(self, ids_hw: UInt8Array) -> UInt8Array:
        """Label ids (H, W) to Parts (H, W)."""
        return np.asarray(self.parts_by_id[ids_hw], np.uint8)


def mark(parts_hw: UInt8Array, *parts: Part) -> UInt8Array:
    """255 on any of these parts (H, W); by table, which is ten times as fast as np.isin."""
    table = np.zeros(256, np.uint8)
    table[list(parts)] = 255
    return np.asarray(cv2.LUT(parts_hw, table), np.uint8)


def normalise(name: str) -> str:
    """`Upper-clothes` and `upper clothes` are one name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def map_labels(id2label: Mapping[int, str], masker: ParsingMasker) -> LabelMap:
    """Translate a model's own label names.

    Raises:
        BundleInvalid: the model does not name its labels, or a name is not understood.
    """
    label = masker.model.label
    _require_names(id2label, label)
    known = _vocabulary(id2label, masker)
    own = {normalise(name): Part[meaning.upper()] for name, meaning in masker.labels.items()}
    _require_own(id2label, own, label)
    vocabulary = {**known, **own}
    unknown = [name for name in id2label.values() if normalise(name) not in vocabulary]
    if unknown:
        raise BundleInvalid(
            f"{label}: labels not understood: {_listed(unknown)}; "
            f"the model's labels are {_listed(id2label.values())}",
            remedy="say under masker.labels what they mean, or choose another masker.preset",
        )
    names = {name: vocabulary[normalise(name)] for name in id2label.values()}
    lookup = np.zeros(max(id2label) + 1, np.uint8)
    for index, name in id2label.items():
        lookup[index] = names[name]
    return LabelMap(lookup, names)


def _require_names(id2label: Mapping[int, str], label: str) -> None:
    if any(re.fullmatch(r"LABEL_\d+", name) for name in id2label.values()):
        raise BundleInvalid(
            f"{label}: its labels have no names ({_listed(id2label.values())})",
            remedy="write the names into id2label of its config.json: positions differ between "
            "parsers, so they are never guessed",
        )


def _vocabulary(id2label: Mapping[int, str], masker: ParsingMasker) -> dict[str, Part]:
    """The chosen preset, or the one that knows all of these names, or every name known."""
    if masker.preset != "auto":
        return PRESETS[masker.preset]
    names = {normalise(name) for name in id2label.values()} - {
        normalise(name) for name in masker.labels
    }
    return next((known for known in PRESETS.values() if names <= set(known)), KNOWN)


def _require_own(id2label: Mapping[int, str], own: Mapping[str, Part], label: str) -> None:
    absent = set(own) - {normalise(name) for name in id2label.values()}
    if absent:
        raise BundleInvalid(
            f"{label}: masker.labels names what the model has not: {_listed(sorted(absent))}; "
            f"the model's labels are {_listed(id2label.values())}",
            remedy="correct the names under masker.labels",
        )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else ""
    return ", ".join(every[:MAX_LISTED]) + more
