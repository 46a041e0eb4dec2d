"""Labels are understood by their names, whatever their positions; what is not is refused."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from deployments.maskers import Meaning, ParsingMasker
from deployments.segmenters.parsing.labels import ATR, CELEB, PRESETS, Part, map_labels, normalise
from deployments.sources import ModelSource
from serve.errors import BundleInvalid

# Source: facts of the models' own config.json files.
CLOTHES = (
    *("Background", "Hat", "Hair", "Sunglasses", "Upper-clothes", "Skirt", "Pants", "Dress"),
    *("Belt", "Left-shoe", "Right-shoe", "Face", "Left-leg", "Right-leg", "Left-arm"),
    *("Right-arm", "Bag", "Scarf"),
)
FASHN = (
    *("background", "face", "hair", "top", "dress", "skirt", "pants", "belt", "bag", "hat"),
    *("scarf", "glasses", "arms", "hands", "legs", "feet", "torso", "jewelry"),
)
FACES = (
    *("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear"),
    *("r_ear", "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
FASHIONPEDIA = (
    *("Unlabelled", "shirt, blouse", "top, t-shirt, sweatshirt", "sweater", "cardigan"),
    *("jacket", "vest", "pants", "shorts", "skirt", "coat", "dress", "jumpsuit", "cape"),
    *("glasses", "hat", "headband, head covering, hair accessory", "tie", "glove", "watch"),
    *("belt", "leg warmer", "tights, stockings", "sock", "shoe", "bag, wallet", "scarf"),
    *("umbrella", "hood", "collar", "lapel", "epaulette", "sleeve", "pocket", "neckline"),
    *("buckle", "zipper", "applique", "bead", "bow", "flower", "fringe", "ribbon", "rivet"),
    *("ruffle", "sequin", "tassel"),
)
MODELS = {
    "segformer_b2_clothes": CLOTHES,
    "fashn-human-parser": FASHN,
    "face-parsing": FACES,
    "segformer-b2-human": FASHIONPEDIA,
}


def masker(**options: object) -> ParsingMasker:
    return ParsingMasker(model=ModelSource(path=Path("parser")), **options)


def numbered(names: tuple[str, ...]) -> dict[int, str]:
    return dict(enumerate(names))


@pytest.mark.parametrize("preset", MODELS)
def test_every_published_label_of_a_preset_is_understood(preset: str) -> None:
    by_name = map_labels(numbered(MODELS[preset]), masker(preset=preset))
    by_itself = map_labels(numbered(MODELS[preset]), masker())
    assert (by_name.parts_by_id == by_itself.parts_by_id).all()
    assert set(by_name.names) == set(MODELS[preset])


def test_meanings_in_configuration_are_the_parts() -> None:
    assert {part.name.lower() for part in Part} == set(get_args(Meaning))


def test_known_labels_mean_what_they_say() -> None:
    names = map_labels(numbered(CLOTHES), masker()).names
    assert names["Sunglasses"] == Part.GLASSES
    assert names["Upper-clothes"] == Part.TOP
    assert names["Left-shoe"] == names["Right-shoe"] == Part.SHOE
    faces = map_labels(numbered(FACES), masker()).names
    assert faces["skin"] == faces["nose"] == Part.FACE
    assert faces["eye_g"] == Part.GLASSES
    assert faces["cloth"] == Part.OTHER


def test_permuted_labels_translate_to_the_same_parts() -> None:
    ids = np.random.default_rng(0).integers(0, len(CLOTHES), (20, 30))
    order = np.random.default_rng(1).permutation(len(CLOTHES))
    shuffled = {int(place): CLOTHES[index] for index, place in enumerate(order)}
    plain = map_labels(numbered(CLOTHES), masker()).translate(ids)
    assert (map_labels(shuffled, masker()).translate(order[ids]) == plain).all()


def test_sapiens_and_lip_labels_are_understood_without_a_preset() -> None:
    sapiens = numbered(("Background", "Apparel", "Face_Neck", "Left_Upper_Arm", "Lower_Clothing"))
    assert map_labels(sapiens, masker()).names["Lower_Clothing"] == Part.PANTS
    lip = numbered(("Background", "Jumpsuits", "Upper-clothes", "Coat", "Socks", "Glove"))
    assert map_labels(lip, masker()).names["Jumpsuits"] == Part.DRESS


def test_labels_without_names_are_refused_with_a_remedy() -> None:
    with pytest.raises(BundleInvalid, match="LABEL_0, LABEL_1") as caught:
        map_labels({0: "LABEL_0", 1: "LABEL_1"}, masker())
    assert "id2label" in caught.value.remedy


def test_unknown_label_is_named_beside_the_models_own() -> None:
    labels = numbered(("background", "hair", "cummerbund"))
    with pytest.raises(BundleInvalid, match="not understood: cummerbund; .*background, hair") as c:
        map_labels(labels, masker())
    assert "masker.labels" in c.value.remedy


def test_labels_of_another_dataset_do_not_fit_a_chosen_preset() -> None:
    with pytest.raises(BundleInvalid, match="Upper-clothes"):
        map_labels(numbered(CLOTHES), masker(preset="face-parsing"))


def test_configuration_says_what_a_strange_label_means() -> None:
    labels = numbered((*CLOTHES, "Cummerbund"))
    mapped = map_labels(labels, masker(labels={"cummerbund": "belt"}))
    assert mapped.names["Cummerbund"] == Part.BELT


def test_configured_label_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(BundleInvalid, match="masker.labels names what the model has not: sash"):
        map_labels(numbered(CLOTHES), masker(labels={"sash": "belt"}))


def test_vocabulary_is_written_normalised() -> None:
    for known in PRESETS.values():
        assert all(normalise(name) == name for name in known)
    assert ATR["hat"] == CELEB["hat"] == Part.HAT
