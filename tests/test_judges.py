"""Models that judge painted pictures: real classes of transformers, and one that breaks alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import yaml

from deployments.judge_models import JudgeModels, VisionModel, load_judge
from deployments.judges.vision import Embedder, load_embedder
from deployments.judging import JudgeReplica
from deployments.options import judge_options
from deployments.sources import ModelSource
from serve.app import AppArgs, build_app
from serve.config import Autoscaling, JudgeConfig, Resources, WeightsConfig
from serve.errors import BundleInvalid, ConfigError, GenerationFailed
from serve.imaging.cutouts import MAX_SIDE_PX, cut_for_judge
from serve.messages import (
    ExpertReply,
    ExpertRequest,
    JudgedBy,
    JudgeReply,
    JudgeRequest,
    Landmarks,
    UInt8Array,
)
from tests.tiny.segformer import build_segformer
from tests.tiny.vision import build_clip, build_resnet, build_vit

RED, BLUE = (200, 40, 40), (30, 60, 200)
Build = Callable[[Path], Path]


def draw(colour: tuple[int, int, int], height_px: int = 60, width_px: int = 90) -> UInt8Array:
    picture = np.full((height_px, width_px, 3), 255, np.uint8)
    cv2.circle(picture, (width_px // 2, height_px // 2), height_px // 3, colour, -1)
    return picture


def embedder(folder: Path, pooling: str = "auto") -> Embedder:
    model = VisionModel.model_validate({"source": {"path": folder}, "pooling": pooling})
    return load_embedder(model, folder.parent, WeightsConfig())


@pytest.mark.parametrize(
    ("build", "width"), [(build_vit, 16), (build_clip, 12), (build_resnet, 16)]
)
def test_the_same_thing_is_more_alike_than_another(
    tmp_path: Path, build: Build, width: int
) -> None:
    vectors = embedder(build(tmp_path / "net")).embed([draw(RED), draw(RED, 62, 88), draw(BLUE)])
    assert vectors.shape == (3, width)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 1e-4


def test_pooling_is_what_the_file_says(tmp_path: Path) -> None:
    folder = build_vit(tmp_path / "net")
    ways = [embedder(folder, way).embed([draw(RED)])[0] for way in ("pooled", "first", "mean")]
    assert np.allclose(embedder(folder).embed([draw(RED)])[0], ways[0])
    assert not np.allclose(ways[0], ways[1])
    assert not np.allclose(ways[1], ways[2])


def test_what_cannot_be_pooled_or_would_be_random_is_refused_at_the_start(tmp_path: Path) -> None:
    parser = build_segformer(tmp_path / "parser", {"background": (0, 0, 0), "top": RED})
    assert embedder(parser).embed([draw(RED)]).shape == (1, 8)
    with pytest.raises(BundleInvalid, match="pools nothing"):
        embedder(parser, "pooled")
    with pytest.raises(BundleInvalid, match="pooler"):
        embedder(build_vit(tmp_path / "bare", has_pooler=False))


@pytest.fixture
def models(tmp_path: Path) -> JudgeModels:
    build_vit(tmp_path / "net")
    model = VisionModel(source=ModelSource(path=Path("net")))
    return JudgeModels(embedding=model, face=model)


def test_the_deployment_judges_likeness_and_identity(tmp_path: Path, models: JudgeModels) -> None:
    replica = JudgeReplica(JudgeConfig(batch_wait_s=0), models, tmp_path, WeightsConfig())
    same = JudgeRequest(draw(RED), draw(RED), (draw(BLUE), draw(BLUE)))
    other = JudgeRequest(draw(RED), draw(BLUE), (draw(RED), draw(BLUE)))
    faceless = JudgeRequest(draw(RED), draw(RED))
    replies = replica.judge_batch([same, other, faceless])
    first, second, third = (cast(JudgeReply, reply).metrics for reply in replies)
    assert first["embedding"] == pytest.approx(1, abs=1e-5)
    assert first["face"] == pytest.approx(0, abs=1e-5)
    assert 0 <= second["embedding"] < 0.999
    assert second["face"] > 0.001
    assert set(third) == {"embedding"}


class Touchy:
    """Breaks on red."""

    metric: JudgedBy = "embedding"

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def load(self) -> None:
        """Nothing to load."""

    def judge(self, batch: Sequence[JudgeRequest]) -> list[float | None]:
        self.batch_sizes.append(len(batch))
        if any((request.painted_hwc == RED).all(axis=2).any() for request in batch):
            raise ValueError("red")
        return [0.5] * len(batch)


def test_one_that_breaks_a_judge_fails_alone() -> None:
    touchy = Touchy()
    replica = JudgeReplica(
        JudgeConfig(),
        JudgeModels(embedding=VisionModel(source=ModelSource(path=Path("net")))),
        Path(),
        WeightsConfig(),
        lambda *_: (touchy,),
    )
    requests = [JudgeRequest(draw(RED), draw(colour)) for colour in (BLUE, RED, BLUE)]
    first, second, third = replica.judge_batch(requests)
    assert first == third == JudgeReply({"embedding": 0.5})
    assert isinstance(second, GenerationFailed)
    assert touchy.batch_sizes == [3, 1, 1, 1]


FACE = (40.0, 20.0, 80.0, 60.0)


def ask_expert(version: str = "eye@1", landmarks: Landmarks | None = None) -> ExpertRequest:
    crop = np.random.default_rng(0).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    region = np.zeros((120, 100), np.uint8)
    region[30:50, 45:75] = 255
    product = np.zeros((600, 900, 4), np.uint8)
    product[100:500, 100:800] = (*RED, 255)
    return ExpertRequest(
        request_id="tr_1",
        version=version,
        crop_hwc=crop,
        region_hw=region,
        silhouette_hw=None,
        landmarks=Landmarks(face=FACE) if landmarks is None else landmarks,
        product_hwc=product,
        product_landmarks=Landmarks(face=(200.0, 200.0, 300.0, 300.0)),
        seed=1,
    )


def answer(request: ExpertRequest, alpha_hw: UInt8Array | None = None) -> ExpertReply:
    painted = request.crop_hwc.copy()
    painted[request.region_hw > 0] = BLUE
    alphas = None if alpha_hw is None else alpha_hw[None]
    return ExpertReply(images_nhwc=painted[None], alpha_nhw=alphas, version=request.version)


def test_a_judge_is_shown_cutouts() -> None:
    request = ask_expert()
    shown = cut_for_judge(request, answer(request))
    assert shown is not None
    assert shown.product_hwc.shape == (256, MAX_SIDE_PX, 3)
    assert (shown.product_hwc == RED).all()
    assert shown.painted_hwc.shape == (20, 30, 3)
    assert (shown.painted_hwc == BLUE).all()
    assert shown.faces is not None
    before, after = shown.faces
    assert before.shape == after.shape == (56, 56, 3)
    assert np.array_equal(before, request.crop_hwc[12:68, 32:88])
    assert (after[18:38, 13:43] == BLUE).all()


def test_faces_are_judged_where_the_region_touches_one() -> None:
    for landmarks in (Landmarks(), Landmarks(face=(0.0, 80.0, 40.0, 118.0))):
        request = ask_expert(landmarks=landmarks)
        shown = cut_for_judge(request, answer(request))
        assert shown is not None
        assert shown.faces is None


def test_a_swapped_face_shall_be_the_products() -> None:
    request = ask_expert("face@1")
    shown = cut_for_judge(request, answer(request))
    assert shown is not None
    assert shown.faces is not None
    assert (shown.faces[0] == RED).all()
    assert shown.faces[0].shape == (140, 140, 3)


def test_nothing_painted_is_nothing_to_judge() -> None:
    request = ask_expert()
    assert cut_for_judge(request, answer(request, np.zeros((120, 100), np.uint8))) is None


def test_the_models_are_read_beside_the_family(tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"face": {"source": {"path": "faces"}}}))
    models, home = load_judge(family, JudgeConfig())
    assert (models.embedding, home) == (None, tmp_path)
    (tmp_path / "judge.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="names no model"):
        load_judge(family, JudgeConfig())
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_judge(family, JudgeConfig(models=Path("gone.yaml")))


def test_options_of_the_deployment() -> None:
    config = JudgeConfig(
        autoscaling=Autoscaling(min_replicas=0, max_replicas=2),
        resources=Resources(num_gpus=0.1),
        max_batch_size=4,
    )
    options = judge_options(config)
    assert options["name"] == "Judge"
    assert options["autoscaling_config"]["max_replicas"] == 2
    assert options["ray_actor_options"]["num_gpus"] == 0.1
    assert options["max_ongoing_requests"] == 8


def test_a_family_with_a_judge_names_its_models(family: Path) -> None:
    extended = family.with_name("judged.yaml")
    extended.write_text(family.read_text() + "judge: {resources: {num_cpus: 0.2}}\n")
    with pytest.raises(ConfigError, match=r"judge\.yaml"):
        build_app(AppArgs(family=extended))
    extended.with_name("judge.yaml").write_text("embedding: {source: {path: /models/dino}}\n")
    app = build_app(AppArgs(family=extended))
    _, _, _, _, _, judge = app._bound_deployment.init_args
    assert judge is not None
    assert build_app(AppArgs(family=family))._bound_deployment.init_args[-1] is None
