"""Real matting classes: soft hair, a trimap by a parser, and a no to every expert but bg."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import Sapiens2ForImageMatting

from deployments.maskers import MattingMasker
from deployments.segmenters import network
from deployments.segmenters.background import draw_background
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.matting.segmenter import MattingSegmenter
from deployments.segmenters.matting.trimap import NOBODY, PERSON, UNSURE, draw_trimap
from deployments.segmenters.network import Device
from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.preprocessing import read_preprocessing
from deployments.sources import ModelSource
from serve.errors import BundleInvalid, NotSupported, SubjectNotFound
from serve.messages import EXPERTS, Expert, SegmentReply, SegmentRequest, UInt8Array
from serve.schemas.tryon import TryOnAnswer
from tests.fakes import build_local_api
from tests.labelled_people import draw_labels
from tests.pictures import encoded, photo
from tests.tiny.matting import build_sapiens_matting, build_vitmatte
from tests.tiny.segformer import build_segformer

# Bright people before a dark wall: what the tiny VitMatte tells apart.
WALL = (30, 30, 40)
COLOURS = {
    "background": WALL,
    "hair": (250, 235, 150),
    "face": (255, 190, 170),
    "top": (190, 255, 190),
    "pants": (180, 200, 255),
    "arms": (255, 170, 240),
    "legs": (150, 255, 255),
    "feet": (255, 255, 255),
}
PARTS = {
    Part.HAIR: "hair",
    Part.FACE: "face",
    Part.TOP: "top",
    Part.PANTS: "pants",
    Part.ARM: "arms",
    Part.LEG: "legs",
    Part.SHOE: "feet",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matting")
    build_vitmatte(folder / "experts/vitmatte")
    build_segformer(folder / "experts/parser", COLOURS)
    build_sapiens_matting(folder / "experts/sapiens")
    return folder


@pytest.fixture(scope="module")
def segmenter(home: Path) -> MattingSegmenter:
    return loaded(home, "vitmatte", "parser")


def loaded(home: Path, model: str, parser: str | None = None) -> MattingSegmenter:
    source = None if parser is None else ModelSource(path=Path(parser))
    masker = MattingMasker(model=ModelSource(path=Path(model)), parser=source)
    built = MattingSegmenter(masker, SegmenterPlan(2**26, home / "experts"))
    built.load()
    return built


def request(image: UInt8Array, expert: Expert = "bg") -> SegmentRequest:
    return SegmentRequest(image, expert, hashlib.sha256(image).hexdigest())


def person(strands: bool = True) -> tuple[UInt8Array, UInt8Array]:
    """A bright person, and where single hairs stand off: too thin for the parser."""
    parts = draw_labels()
    image = np.full((*parts.shape, 3), WALL, np.uint8)
    for part, name in PARTS.items():
        image[parts == part] = COLOURS[name]
    thin = np.zeros_like(parts)
    for x in (212, 216, 264, 268) if strands else ():
        cv2.line(thin, (x, 55), (x, 95), 255, 1)
    image[(thin > 0) & (parts == 0)] = COLOURS["hair"]
    return image, np.asarray((thin > 0) & (parts == 0))


def test_trimap_leaves_the_edge_open_and_more_of_it_around_hair() -> None:
    parts = draw_labels()
    trimap = draw_trimap(parts)
    assert set(np.unique(trimap)) == {NOBODY, UNSURE, PERSON}
    assert trimap[300, 240] == PERSON
    assert trimap[300, 20] == NOBODY

    def open_beside(row: int) -> int:
        edge = int(np.flatnonzero(parts[row])[0])
        return int((trimap[row, :edge] == UNSURE).sum())

    assert open_beside(84) > 2 * open_beside(560) > 0


def test_nobody_has_an_empty_trimap_and_a_full_picture_no_edge() -> None:
    assert not draw_trimap(np.zeros((40, 30), np.uint8)).any()
    assert (draw_trimap(np.full((40, 30), Part.TOP, np.uint8)) == PERSON).all()


def test_single_hairs_are_kept_out_of_the_background(segmenter: MattingSegmenter) -> None:
    image, strands = person()
    (reply,) = segmenter.segment([request(image)])
    assert isinstance(reply, SegmentReply)
    assert reply.silhouette_hw[strands].mean() > 240
    assert reply.region_hw[strands].mean() < 20
    beside = np.roll(strands, -2, axis=1) & (draw_labels() == 0)
    assert reply.region_hw[beside].mean() > 200
    assert reply.region_hw[10, 10] == 255
    assert reply.region_hw[300, 240] == 0


def test_region_is_what_the_matte_leaves(segmenter: MattingSegmenter) -> None:
    (reply,) = segmenter.segment([request(person()[0])])
    assert isinstance(reply, SegmentReply)
    assert (reply.region_hw <= 255 - reply.silhouette_hw).all()
    flat = np.abs(255 - reply.silhouette_hw.astype(int) - reply.region_hw) <= 128
    assert flat.mean() > 0.99


def test_pictures_of_one_size_share_a_pass_and_equal_singles(home: Path) -> None:
    segmenter = loaded(home, "vitmatte", "parser")
    shapes: list[tuple[int, ...]] = []
    assert segmenter._matter is not None
    segmenter._matter._network.model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["pixel_values"].shape)),
        with_kwargs=True,
    )
    image, _ = person()
    images = [image, person(strands=False)[0], np.ascontiguousarray(image[:710])]
    images.append(np.ascontiguousarray(image[:, :400]))
    together = segmenter.segment([request(each) for each in images])
    assert sorted(shapes) == [(1, 4, 736, 416), (3, 4, 736, 480)]
    alone = loaded(home, "vitmatte", "parser")
    for each, outcome in zip(images, together, strict=True):
        (single,) = alone.segment([request(each)])
        assert isinstance(single, SegmentReply)
        assert isinstance(outcome, SegmentReply)
        assert np.abs(single.silhouette_hw.astype(int) - outcome.silhouette_hw).max() <= 1


def test_sapiens_needs_no_trimap_and_its_opacity_is_the_silhouette(home: Path) -> None:
    segmenter = loaded(home, "sapiens")
    image = photo(90, 130)
    (reply,) = segmenter.segment([request(image)])
    assert isinstance(reply, SegmentReply), reply
    folder = home / "experts/sapiens"
    model = Sapiens2ForImageMatting.from_pretrained(folder).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(read_preprocessing(folder).apply([image]))
        alpha = model(pixel_values=pixels).alphas
        sized = torch.nn.functional.interpolate(alpha, (130, 90), mode="bilinear")
    assert np.abs(reply.silhouette_hw - 255 * sized[0, 0].numpy()).max() <= 0.51
    assert int(reply.silhouette_hw.max()) - int(reply.silhouette_hw.min()) > 50


@pytest.mark.parametrize(("model", "parser"), [("vitmatte", "parser"), ("sapiens", None)])
def test_half_precision_gives_the_same_matte(
    home: Path, model: str, parser: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU runs, as far as a CPU can tell: every tensor of the pass in 16 bits."""
    image, _ = person()
    (plain,) = loaded(home, model, parser).segment([request(image)])
    half = Device("cpu", torch.float16)
    monkeypatch.setattr(network, "choose_device", lambda full_precision: half)
    (other,) = loaded(home, model, parser).segment([request(image)])
    assert isinstance(plain, SegmentReply)
    assert isinstance(other, SegmentReply)
    apart = np.abs(plain.silhouette_hw.astype(int) - other.silhouette_hw)
    assert np.quantile(apart, 0.99) <= 4


@pytest.mark.parametrize("expert", [expert for expert in EXPERTS if expert != "bg"])
def test_other_experts_are_refused_and_told_which_masker_serves(
    segmenter: MattingSegmenter, expert: Expert
) -> None:
    image, _ = person()
    refused, served = segmenter.segment([request(image, expert), request(image)])
    assert isinstance(refused, NotSupported)
    assert expert in refused.detail
    assert "classical or parsing" in refused.remedy
    assert isinstance(served, SegmentReply)


def test_second_time_comes_from_the_cache(home: Path) -> None:
    segmenter, (image, _) = loaded(home, "vitmatte", "parser"), person()
    first, second = (segmenter.segment([request(image)])[0] for _ in range(2))
    assert isinstance(first, SegmentReply)
    assert isinstance(second, SegmentReply)
    assert (first.cached, second.cached) == (False, True)


def test_vitmatte_without_a_parser_is_refused_at_load(home: Path) -> None:
    with pytest.raises(BundleInvalid, match="trimap") as caught:
        loaded(home, "vitmatte")
    assert "masker.parser" in caught.value.remedy


def test_network_of_another_kind_is_refused_at_load(home: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"segformer is not a matting network.*vitmatte"):
        loaded(home, "parser")


def test_empty_picture_and_full_person_are_refused(segmenter: MattingSegmenter) -> None:
    (nobody,) = segmenter.segment([request(np.full((200, 150, 3), WALL, np.uint8))])
    assert isinstance(nobody, SubjectNotFound)
    assert "no person" in nobody.detail
    with pytest.raises(SubjectNotFound, match="no background"):
        draw_background(np.full((50, 40), 255, np.uint8))


BUNDLE = """
expert: bg
name: matted
title: background by a matte
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: warp}
masker: {kind: matting, model: {path: vitmatte}, parser: {path: parser}}
"""


def test_background_by_matte_over_http_keeps_the_person(home: Path) -> None:
    (home / "experts/bg.matted.yaml").write_text(BUNDLE)
    (home / "family.yaml").write_text("experts:\n  - version: bg@matted\n")
    image, _ = person()
    files = {"person": encoded(image), "product": encoded(photo(300, 300, seed=4))}
    with TestClient(build_local_api(home / "family.yaml")) as client:
        headers = {"Accept": "application/json"}
        response = client.post("/v1/tryon", data={"expert": "bg"}, files=files, headers=headers)
    assert response.status_code == 200, response.text
    receipt = TryOnAnswer.model_validate_json(response.content).receipt
    assert receipt.outside.max_abs_diff == 0
    assert receipt.masker.startswith("matting/vitmatte+")
