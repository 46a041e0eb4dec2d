"""What `sm4ll prepare` writes is what an expert receives when it serves, array for array."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from deployments.bundle import Bundle, load_family
from deployments.samples import read_png, read_request, write_png, write_request
from serve.api.app import build_api
from serve.api.models import State
from serve.catalog import Catalog
from serve.commands.offline import Offline, build_offline
from serve.demo.cases import demo_cases
from serve.errors import BundleInvalid, ConfigError, GenerationFailed
from serve.imaging.limits import ImageLimits
from serve.messages import ExpertReply, ExpertRequest, Landmarks
from serve.pairs import Pair, find_pairs
from serve.permits import build_gate
from serve.pipeline import Pipeline
from serve.prepare import Outcome, SampleMeta, prepare_pairs, write_manifest
from serve.prepared_page import write_page
from serve.settings import CONFIGS_DIR
from tests.loopback_web import refusing_fetcher
from tests.tenants import LOCAL_TOKEN, bearer, open_local_services

CASES = {case.expert: case for case in demo_cases()}
SIZES = [[512, 768], [768, 768], [768, 512]]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The shipped family, and of each expert a version with canvas and fixed sizes."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(CONFIGS_DIR / "experts", folder / "experts")
    family = yaml.safe_load((CONFIGS_DIR / "family.yaml").read_text())
    for expert in CASES:
        pinned = yaml.safe_load((folder / f"experts/{expert}.1.yaml").read_text())
        pinned["name"] = "fixed"
        pinned.setdefault("crop", {}).update(sizes=SIZES)
        pinned.setdefault("product", {})["canvas"] = {"size": [512, 512]}
        (folder / f"experts/{expert}.fixed.yaml").write_text(yaml.safe_dump(pinned))
        family["experts"].append({"version": f"{expert}@fixed"})
    (folder / "family.yaml").write_text(yaml.safe_dump(family))
    return Catalog(*load_family(folder / "family.yaml"))


class RecordingExpert:
    """Gives every crop back and remembers what it was asked."""

    def __init__(self) -> None:
        self.request: ExpertRequest | None = None

    async def __call__(self, request: ExpertRequest, /) -> ExpertReply:
        self.request = request
        return ExpertReply(request.crop_hwc[None], None, request.version)


class OfflineOf:
    """One offline pipeline per version, built once: maskers take a moment to load."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._built: dict[str, Offline] = {}

    def __call__(self, version: str) -> Offline:
        if version not in self._built:
            bundle = self.catalog.choose(version.partition("@")[0], version).bundle  # type: ignore[arg-type]
            self._built[version] = build_offline(self.catalog, bundle, num_threads=2)
        return self._built[version]


@pytest.fixture(scope="module")
def offline(catalog: Catalog) -> OfflineOf:
    return OfflineOf(catalog)


@pytest.fixture(scope="module")
def serving(
    catalog: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TestClient, Mapping[str, RecordingExpert]]:
    """The real API and pipeline over HTTP, with experts that write down what reaches them."""
    experts = {bundle.version: RecordingExpert() for bundle in catalog}
    built = build_offline(catalog, next(iter(catalog)), num_threads=2)
    gate = build_gate(catalog.family, {bundle.version: bundle for bundle in catalog})
    pipeline = Pipeline(
        catalog=catalog,
        segment=built.pipeline._preparer._segment,
        experts=experts,
        gate=gate,
        threads=ThreadPoolExecutor(2),
        limits=ImageLimits(),
    )

    async def read_states() -> Mapping[str, State]:
        return dict.fromkeys(experts, "ready")

    async def read_waiting() -> tuple[str, ...]:
        return ()

    logger = logging.getLogger("tests")
    fetch = refusing_fetcher()
    services, _ = open_local_services(tmp_path_factory.mktemp("store"))
    api = build_api(
        catalog,
        pipeline,
        ImageLimits(),
        fetch,
        read_states,
        read_waiting,
        logger,
        services=services,
        predict=gate.predict,
    )
    return TestClient(api, headers=bearer(LOCAL_TOKEN)), experts


def run(offline: Offline, pairs: list[Pair], out_dir: Path) -> list[Outcome]:
    return asyncio.run(
        prepare_pairs(pairs, offline.plan, offline.prepare, out_dir, lambda outcome: None)
    )


def write_pair(home: Path, expert: str, **more: bytes) -> Path:
    case = CASES[expert]  # type: ignore[index]
    home.mkdir(parents=True)
    shutil.copy(case.person_path, home / f"person{case.person_path.suffix}")
    shutil.copy(case.product_path, home / f"product{case.product_path.suffix}")
    for role, data in more.items():
        (home / f"{role}.png").write_bytes(data)
    return home


def draw_mask(expert: str) -> bytes:
    """A soft-cornered blob on the person's picture, white may change."""
    width, height = Image.open(CASES[expert].person_path).size  # type: ignore[index]
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 3), (width // 5, height // 9), 20, 0, 360, 255, -1)
    buffer = BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(a, b)


def landmarks(found: Landmarks) -> tuple[dict[str, tuple[float, ...]], object]:
    return {name: tuple(point) for name, point in found.points.items()}, found.face


@pytest.mark.parametrize("brings_mask", [False, True], ids=["found", "own mask"])
@pytest.mark.parametrize("name", ["1", "fixed"])
@pytest.mark.parametrize("expert", CASES)
def test_expert_receives_the_very_arrays_that_prepare_wrote(
    expert: str,
    name: str,
    brings_mask: bool,
    offline: OfflineOf,
    serving: tuple[TestClient, Mapping[str, RecordingExpert]],
    tmp_path: Path,
) -> None:
    version = f"{expert}@{name}"
    more = {"mask": draw_mask(expert)} if brings_mask else {}
    pair = write_pair(tmp_path / "pairs" / "a", expert, **more)
    outcomes = run(offline(version), find_pairs(tmp_path / "pairs")[0], tmp_path / "out")
    assert [kind for kind, _ in outcomes] == ["written"]

    http, experts = serving
    files = {path.stem: path.read_bytes() for path in pair.iterdir()}
    answer = http.post("/v1/tryon", data={"expert": expert, "version": name}, files=files)
    assert answer.status_code == 200, answer.text
    received = experts[version].request
    assert received is not None

    prepared = read_request(tmp_path / "out" / "a")
    assert same(prepared.crop_hwc, received.crop_hwc)
    assert same(prepared.region_hw, received.region_hw)
    assert same(prepared.product_hwc, received.product_hwc)
    assert same(prepared.silhouette_hw, received.silhouette_hw)
    assert (received.silhouette_hw is None) == brings_mask
    assert landmarks(prepared.landmarks) == landmarks(received.landmarks)
    assert landmarks(prepared.product_landmarks) == landmarks(received.product_landmarks)
    said = ("version", "seed", "num_steps", "guidance")
    assert [getattr(prepared, key) for key in said] == [getattr(received, key) for key in said]
    if name == "fixed":
        height_px, width_px = received.region_hw.shape
        assert [width_px, height_px] in SIZES
        assert received.product_hwc.shape == (512, 512, 4)


def test_target_is_cut_by_the_same_plan(offline: OfflineOf, tmp_path: Path) -> None:
    """The person's own picture as the target gives the crop once more."""
    person = CASES["eye"].person_path.read_bytes()
    write_pair(tmp_path / "pairs" / "a", "eye", target=person)
    run(offline("eye@fixed"), find_pairs(tmp_path / "pairs")[0], tmp_path / "out")
    home = tmp_path / "out" / "a"
    assert same(read_png(home / "target_crop.png"), read_png(home / "crop.png"))


def test_meta_leads_back_to_the_photo(offline: OfflineOf, tmp_path: Path) -> None:
    write_pair(tmp_path / "pairs" / "a", "eye")
    run(offline("eye@1"), find_pairs(tmp_path / "pairs")[0], tmp_path / "out")
    home = tmp_path / "out" / "a"
    meta = SampleMeta.model_validate_json((home / "meta.json").read_text())
    photo = np.asarray(Image.open(CASES["eye"].person_path))
    assert meta.person.sha256 == hashlib.sha256(CASES["eye"].person_path.read_bytes()).hexdigest()
    affine, (width, height) = meta.affine, meta.crop_size
    back = np.array(
        [
            [affine.scale_x, 0, affine.left + affine.scale_x / 2 - 0.5],
            [0, affine.scale_y, affine.top + affine.scale_y / 2 - 0.5],
        ]
    )
    cut = cv2.warpAffine(photo, back, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    assert cv2.PSNR(cut, read_png(home / "crop.png")) > 35


def test_second_run_keeps_what_is_current_and_nothing_else(
    offline: OfflineOf, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_pair(pairs / name, "eye")
    run(offline("eye@1"), find_pairs(pairs)[0], out)
    (out / "b" / "meta.json").unlink()  # as if the run had been stopped there
    shutil.copy(CASES["shoes"].product_path, pairs / "c" / "product.png")
    again = run(offline("eye@1"), find_pairs(pairs)[0], out)
    assert [kind for kind, _ in again] == ["kept", "written", "written"]
    other = run(offline("eye@fixed"), find_pairs(pairs)[0], out)
    assert [kind for kind, _ in other] == ["written"] * 3, "another bundle, other inputs"


def test_pair_without_a_subject_is_skipped_with_the_reason(
    offline: OfflineOf, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    write_pair(pairs / "face", "eye")
    write_pair(pairs / "gone", "eye")
    run(offline("eye@1"), find_pairs(pairs)[0], out)
    (out / "gone" / "notes.txt").write_text("mine")
    shutil.copy(CASES["bg"].product_path, pairs / "gone" / "person.jpg")
    outcomes = run(offline("eye@1"), find_pairs(pairs)[0], out)
    manifest, metas = write_manifest(out, offline("eye@1").plan, outcomes, [])
    assert manifest.samples == ("face",)
    (skip,) = manifest.skipped
    assert (skip.name, skip.code) == ("gone", "subject_not_found")
    assert [path.name for path in (out / "gone").iterdir()] == ["notes.txt"], "only ours is removed"
    page = write_page(out, manifest, metas).read_text()
    assert skip.reason in page
    assert 'src="face/crop.png"' in page


def test_target_of_another_size_is_skipped_with_both_sizes(
    offline: OfflineOf, tmp_path: Path
) -> None:
    product = CASES["eye"].product_path.read_bytes()
    write_pair(tmp_path / "pairs" / "a", "eye", target=product)
    ((kind, skip),) = run(offline("eye@1"), find_pairs(tmp_path / "pairs")[0], tmp_path / "out")
    assert kind == "skipped"
    assert "target is" in skip.reason  # type: ignore[union-attr]
    assert not (tmp_path / "out" / "a").exists()


def test_expert_failures_are_not_mistaken_for_bad_pairs(offline: OfflineOf, tmp_path: Path) -> None:
    """A masker that breaks stops the run: skipping all pairs one by one would hide it."""
    write_pair(tmp_path / "pairs" / "a", "eye")

    async def broken(work: object) -> None:
        raise GenerationFailed("the masker lost its device")

    found = find_pairs(tmp_path / "pairs")[0]
    with pytest.raises(GenerationFailed):
        asyncio.run(
            prepare_pairs(
                found,
                offline("eye@1").plan,
                broken,  # type: ignore[arg-type]
                tmp_path / "out",
                lambda outcome: None,
            )
        )


def test_folders_that_are_no_pairs_are_named(tmp_path: Path) -> None:
    for name, files in {
        "good": ["person.JPG", "product.png"],
        "half": ["person.jpg"],
        "twice": ["person.jpg", "person.png", "product.png"],
        "other": ["notes.txt"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    pairs, skipped = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["good"]
    assert {skip.name: skip.reason for skip in skipped} == {
        "half": "no product.*",
        "twice": "several person.*",
    }


def test_folder_without_pairs_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with person\.\*, product\.\*"):
        find_pairs(tmp_path)


def test_manifest_carries_all_that_was_pinned(offline: OfflineOf, tmp_path: Path) -> None:
    plan = offline("eye@fixed").plan
    manifest, _ = write_manifest(tmp_path, plan, [], [])
    assert Bundle.model_validate(manifest.bundle).fingerprint == manifest.bundle_sha256
    assert manifest.made_by.endswith("classical/2")


def test_colours_under_a_clear_pixel_survive_the_file(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    rgba[:10, :, 3] = 0
    write_png(tmp_path / "product.png", rgba)
    assert same(read_png(tmp_path / "product.png"), rgba)


def test_damaged_sample_is_named(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    asked = ExpertRequest(
        request_id="a",
        version="eye@1",
        crop_hwc=pixels,
        region_hw=pixels[..., 0],
        silhouette_hw=None,
        landmarks=Landmarks({"nose": (1.5, 2.0)}, (0.0, 1.0, 2.0, 3.0)),
        product_hwc=np.zeros((4, 4, 4), np.uint8),
        product_landmarks=Landmarks(),
        seed=3,
    )
    write_request(tmp_path, asked)
    assert read_request(tmp_path).landmarks == asked.landmarks
    (tmp_path / "mask.png").write_bytes(b"")
    with pytest.raises(BundleInvalid, match=r"mask\.png is damaged"):
        read_request(tmp_path)
    (tmp_path / "mask.png").unlink()
    with pytest.raises(BundleInvalid, match=r"mask\.png is missing"):
        read_request(tmp_path)
