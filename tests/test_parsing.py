"""Real SegFormer classes from disk to region, receipt and picture; no label has a fixed place."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from deployments.maskers import ParsingMasker
from deployments.segmentation import SegmenterReplica
from deployments.segmenters import network
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.network import Device
from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.parsing.parser import absorb_details
from deployments.segmenters.parsing.segmenter import ParsingSegmenter
from deployments.segmenters.preprocessing import read_preprocessing
from deployments.sources import ModelSource
from serve.config import SegmenterConfig, WeightsConfig
from serve.errors import (
    BundleInvalid,
    GenerationFailed,
    NotSupported,
    OutOfDeviceMemory,
    SubjectNotFound,
)
from serve.messages import EXPERTS, Expert, SegmentReply, SegmentRequest, UInt8Array
from serve.schemas.tryon import TryOnAnswer
from tests.fakes import build_local_api
from tests.labelled_people import COLOURS, LABELS, Pose, draw_labels, paint
from tests.pictures import encoded, photo
from tests.tiny.segformer import build_segformer, write_preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_segformer(tmp_path_factory.mktemp("parser") / "tiny", LABELS)


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> ParsingSegmenter:
    return loaded(folder)


def loaded(folder: Path, cache_bytes: int = 2**26, **options: object) -> ParsingSegmenter:
    masker = ParsingMasker(model=ModelSource(path=folder), **options)
    built = ParsingSegmenter(masker, SegmenterPlan(cache_bytes))
    built.load()
    return built


def request(image: UInt8Array, expert: Expert = "top", content: str = "") -> SegmentRequest:
    return SegmentRequest(image, expert, content or hashlib.sha256(image).hexdigest())


def replied(outcome: object) -> SegmentReply:
    assert isinstance(outcome, SegmentReply), outcome
    return outcome


def test_drawn_person_is_parsed_as_drawn(segmenter: ParsingSegmenter) -> None:
    parts = draw_labels(Pose(glasses=True))
    assert segmenter._parser is not None
    (parsed,) = segmenter._parser.parse([paint(parts)])
    drawn = np.where(parts == Part.SHOE, Part.FEET, parts)
    assert (parsed.parts_hw == drawn).mean() > 0.98
    assert np.abs(parsed.silhouette_hw / 255 - (parts > 0)).mean() < 0.02


def test_silhouette_is_soft_at_the_edge_only(segmenter: ParsingSegmenter) -> None:
    parts = draw_labels()
    reply = replied(segmenter.segment([request(paint(parts))])[0])
    soft = (reply.silhouette_hw > 0) & (reply.silhouette_hw < 255)
    assert 0 < soft.mean() < 0.05
    assert reply.silhouette_hw[300, 240] == 255
    assert reply.silhouette_hw[10, 10] == 0


def test_half_precision_parses_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, as far as a CPU can tell: every tensor of the pass in 16 bits."""
    half = Device("cpu", torch.float16)
    monkeypatch.setattr(network, "choose_device", lambda full_precision: half)
    segmenter, parts = loaded(folder), draw_labels()
    assert segmenter._parser is not None
    assert next(segmenter._parser._network.model.parameters()).dtype == torch.float16
    (parsed,) = segmenter._parser.parse([paint(parts)])
    assert (parsed.parts_hw == np.where(parts == Part.SHOE, Part.FEET, parts)).mean() > 0.97


def test_permuted_label_order_gives_the_same_regions(
    segmenter: ParsingSegmenter, tmp_path: Path
) -> None:
    order = np.random.default_rng(3).permutation(len(LABELS)).tolist()
    permuted = loaded(build_segformer(tmp_path, LABELS, order))
    image = paint(draw_labels(Pose(glasses=True, arms="akimbo")))
    for expert in EXPERTS:
        plain = replied(segmenter.segment([request(image, expert)])[0])
        other = replied(permuted.segment([request(image, expert)])[0])
        # Sums in another order round differently: soft values may differ by one level.
        assert np.abs(plain.region_hw.astype(int) - other.region_hw).max() <= 1, expert
        assert np.abs(plain.silhouette_hw.astype(int) - other.silhouette_hw).max() <= 1


def test_face_box_is_the_landmark_that_labels_give(segmenter: ParsingSegmenter) -> None:
    reply = replied(segmenter.segment([request(paint(draw_labels()))])[0])
    assert reply.landmarks.face == pytest.approx((217, 66, 263, 126), abs=5)
    assert set(reply.landmarks.points) == {"chin", "forehead"}


def test_batch_is_one_pass_and_equals_singles(folder: Path) -> None:
    segmenter = loaded(folder)
    passes: list[int] = []
    assert segmenter._parser is not None
    segmenter._parser._network.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(len(kwargs["pixel_values"])),
        with_kwargs=True,
    )
    images = [paint(draw_labels(Pose(arms=arms))) for arms in ("down", "raised")]
    images.append(np.ascontiguousarray(images[0][:600, 40:]))
    requests = [request(image, "top", str(index)) for index, image in enumerate(images)]
    together = segmenter.segment([*requests, request(images[0], "dress", "0")])
    assert passes == [3]
    alone = loaded(folder)
    for one, outcome in zip(requests, together, strict=False):
        single = replied(alone.segment([one])[0])
        assert (single.region_hw == replied(outcome).region_hw).all()
    assert [replied(outcome).batch_size for outcome in together] == [4] * 4


def test_second_expert_on_the_same_picture_comes_from_the_cache(folder: Path) -> None:
    segmenter, image = loaded(folder), paint(draw_labels())
    first = replied(segmenter.segment([request(image, "top")])[0])
    second = replied(segmenter.segment([request(image, "shoes")])[0])
    assert (first.cached, second.cached) == (False, True)
    assert first.silhouette_hw is second.silhouette_hw
    forgetful = loaded(folder, cache_bytes=0)
    for _ in range(2):
        assert not replied(forgetful.segment([request(image)])[0]).cached


def test_picture_without_a_person_fails_alone(segmenter: ParsingSegmenter) -> None:
    empty = np.full((300, 200, 3), COLOURS[Part.BACKGROUND], np.uint8)
    good, bad = segmenter.segment([request(paint(draw_labels())), request(empty, "top", "empty")])
    assert isinstance(good, SegmentReply)
    assert isinstance(bad, SubjectNotFound)
    assert bad.remedy


class Breaking:
    """A parser that runs out of memory, or breaks, on pictures of one size."""

    def __init__(self, parser: object, broken: Exception):
        self._parser = parser
        self._broken = broken
        self.labels = parser.labels

    def parse(self, images: list[UInt8Array]) -> object:
        if any(image.shape[0] == 300 for image in images):
            raise self._broken
        return self._parser.parse(images)


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (OutOfDeviceMemory("full"), OutOfDeviceMemory),
        (ZeroDivisionError("in the network"), GenerationFailed),
    ],
)
def test_picture_that_breaks_the_network_fails_alone_and_is_not_cached(
    folder: Path, broken: Exception, seen: type[Exception]
) -> None:
    segmenter = loaded(folder)
    real = segmenter._parser
    segmenter._parser = Breaking(real, broken)
    image = paint(draw_labels())
    batch = [request(image), request(image[:300], "top", "b")]
    good, bad = segmenter.segment(batch)
    assert isinstance(good, SegmentReply)
    assert isinstance(bad, seen)
    segmenter._parser = real
    assert isinstance(segmenter.segment(batch)[1], SegmentReply)


def test_device_out_of_memory_is_named(segmenter: ParsingSegmenter) -> None:
    assert segmenter._parser is not None
    network = segmenter._parser._network
    with pytest.raises(OutOfDeviceMemory, match="no room"), network.running():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_our_preprocessing_is_that_of_transformers(folder: Path) -> None:
    image = photo(210, 333)
    ours = read_preprocessing(folder).apply([image])
    theirs = SegformerImageProcessorPil.from_pretrained(folder)(image, return_tensors="np")
    assert np.abs(ours - theirs["pixel_values"]).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 320}, (320, 320)),
        ({"size": {"shortest_edge": 512}}, (512, 512)),
        ({"do_center_crop": True, "crop_size": {"height": 96, "width": 64}}, (64, 96)),
    ],
)
def test_size_is_read_in_every_spelling(
    tmp_path: Path, settings: dict[str, object], size: tuple[int, int]
) -> None:
    write_preprocessing(tmp_path, (8, 8), **settings)
    read = read_preprocessing(tmp_path)
    assert (read.width_px, read.height_px) == size


def test_missing_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="preprocessor_config.json"):
        read_preprocessing(tmp_path)


def test_weights_that_are_missing_are_never_random(tmp_path: Path) -> None:
    build_segformer(tmp_path, LABELS)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decode_head.classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleInvalid, match="decode_head.classifier.weight"):
        loaded(tmp_path)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    build_segformer(tmp_path, LABELS)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BundleInvalid, match="pytorch_model.bin"):
        loaded(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    build_segformer(tmp_path, LABELS)
    config = json.loads((tmp_path / "config.json").read_text())
    ours = {"model_type": "SegformerForHumans", "auto_map": {"AutoConfig": "theirs.Config"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **ours}))
    (tmp_path / "theirs.py").write_text("raise SystemExit('executed')")
    with pytest.raises(BundleInvalid, match="never executed here"):
        loaded(tmp_path)


def test_unnamed_labels_are_refused_at_load(tmp_path: Path) -> None:
    build_segformer(tmp_path, {f"LABEL_{index}": (index, 0, 0) for index in range(4)})
    with pytest.raises(BundleInvalid, match="have no names"):
        loaded(tmp_path)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="nowhere"):
        loaded(tmp_path / "nowhere")


def test_parser_of_faces_refuses_garments_by_name(tmp_path: Path) -> None:
    faces = {"background": (128, 128, 128), "skin": (230, 180, 150), "hair": (60, 30, 10)}
    segmenter = loaded(build_segformer(tmp_path, {**faces, "cloth": (200, 30, 30)}))
    image = paint(draw_labels())[:170]
    face, top = segmenter.segment([request(image, "face"), request(image, "top")])
    assert isinstance(face, SegmentReply)
    assert isinstance(top, NotSupported)
    assert "top" in top.detail


def test_name_changes_with_whatever_shapes_regions(folder: Path, tmp_path: Path) -> None:
    plain = loaded(folder).name
    assert plain == loaded(folder).name
    assert plain.startswith("parsing/tiny+")
    other = build_segformer(tmp_path / "tiny", {**LABELS, "bag": (91, 200, 220)})
    names = {
        plain,
        loaded(folder, hull=False).name,
        loaded(folder, protect=("face",)).name,
        loaded(other).name,
    }
    assert len(names) == 4


def test_details_belong_to_the_garment_they_lie_on() -> None:
    parts = np.full((40, 20), Part.TOP, np.uint8)
    parts[20:] = Part.PANTS
    parts[8:12, 8:12] = parts[30:34, 8:12] = Part.DETAIL
    absorbed = absorb_details(parts)
    assert (absorbed[:20] == Part.TOP).all()
    assert (absorbed[20:] == Part.PANTS).all()


def test_replica_serves_it_without_ray(folder: Path) -> None:
    masker = ParsingMasker(model=ModelSource(path=Path(folder.name)))
    replica = SegmenterReplica(SegmenterConfig(), masker, folder.parent, WeightsConfig())
    image = paint(draw_labels())
    feetless = request(np.ascontiguousarray(image[:400]), "shoes", "b")
    whole, cut = replica._segment([request(image, "shoes"), feetless])
    assert isinstance(whole, SegmentReply)
    assert isinstance(cut, SubjectNotFound)
    assert asyncio.run(replica.ping()) == whole.masker


FAMILY = "experts:\n" + "".join(
    f"  - version: {version}\n" for version in ("bg@parsed", "top@parsed", "shoes@parsed")
)
BUNDLE = """
expert: {expert}
name: parsed
title: regions by a parser
status: benchmark
licence: {{name: none, commercial_use: true}}
backend: {{kind: {backend}}}
masker: {{kind: parsing, model: {{path: weights/tiny}}}}
"""


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    home = tmp_path_factory.mktemp("family")
    build_segformer(home / "experts/weights/tiny", LABELS)
    for expert, backend in (("bg", "warp"), ("top", "noop"), ("shoes", "noop")):
        text = BUNDLE.format(expert=expert, backend=backend)
        (home / f"experts/{expert}.parsed.yaml").write_text(text)
    (home / "family.yaml").write_text(FAMILY)
    with TestClient(build_local_api(home / "family.yaml")) as client:
        yield client


@pytest.mark.parametrize("expert", ["bg", "top", "shoes"])
def test_tryon_by_parser_keeps_the_outside_and_names_it_in_the_receipt(
    http: TestClient, expert: str
) -> None:
    person = np.repeat(np.repeat(paint(draw_labels()), 2, axis=0), 2, axis=1)
    files = {"person": encoded(person), "product": encoded(photo(200, 300))}
    response = http.post(
        "/v1/tryon", data={"expert": expert}, files=files, headers={"Accept": "application/json"}
    )
    assert response.status_code == 200, response.text
    receipt = TryOnAnswer.model_validate_json(response.content).receipt
    assert receipt.outside.max_abs_diff == 0
    assert receipt.outside.lossless
    assert receipt.masker.startswith("parsing/tiny+")
    assert receipt.region_box is not None


def test_picture_without_feet_is_a_422_with_a_remedy(http: TestClient) -> None:
    files = {"person": encoded(paint(draw_labels())[:400]), "product": encoded(photo(64, 64))}
    response = http.post("/v1/tryon", data={"expert": "shoes"}, files=files)
    assert response.status_code == 422
    assert response.json()["code"] == "subject_not_found"
    assert "both feet" in response.json()["remedy"] or "shoes" in response.json()["remedy"]
