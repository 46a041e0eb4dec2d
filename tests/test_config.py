from pathlib import Path

import pytest
from pydantic import TypeAdapter

from deployments.backends.registry import BACKENDS
from deployments.bundle import bundle_path, load_bundle, load_family
from deployments.maskers import ClassicalMasker, ParsingMasker
from deployments.recipes import BackendConfig
from deployments.segmenters.registry import SEGMENTERS
from deployments.sources import ModelSource
from serve.config import FamilyConfig, load_yaml
from serve.errors import ConfigError
from serve.messages import EXPERTS
from serve.settings import CONFIGS_DIR

BUNDLES = sorted((CONFIGS_DIR / "experts").glob("*.yaml"))


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_shipped_bundle_loads_and_its_file_is_named_after_it(path: Path) -> None:
    bundle = load_bundle(path)
    assert bundle_path(path.parent, bundle.version) == path
    assert bundle.masker.kind in SEGMENTERS


def test_shipped_family_serves_all_seven_experts() -> None:
    family, bundles = load_family(CONFIGS_DIR / "family.yaml")
    assert {deployed.expert for deployed in family.experts} == set(EXPERTS)
    assert all(bundle.is_preview for bundle in bundles.values())


def test_every_backend_kind_is_in_the_config_and_vice_versa() -> None:
    schema = TypeAdapter(BackendConfig).json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(BACKENDS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("- a\n", "must be a mapping, got list"),
        ("experts: []\n", "experts"),
        ("experts: [{version: hat@1}]\n", "experts.0.version"),
        ("experts: [{version: eye@1}, {version: eye@1}]\n", "listed twice: eye@1"),
        ("experts: [{version: eye@1, replicas: 2}]\n", "experts.0.replicas"),
        (
            "experts: [{version: eye@1, autoscaling: {min_replicas: 3, max_replicas: 2}}]\n",
            "max_replicas is below min_replicas",
        ),
        ("experts: [", "not readable as YAML"),
    ],
)
def test_bad_family_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"family\.yaml") as caught:
        load_yaml(path, FamilyConfig)
    assert named in str(caught.value)


def test_missing_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_yaml(tmp_path / "nowhere.yaml", FamilyConfig)


def write_bundle(path: Path, extra: str = "") -> Path:
    path.write_text(
        "expert: eye\nname: '2'\ntitle: t\nstatus: alpha\n"
        f"licence: {{name: MIT, commercial_use: true}}\n{extra}"
    )
    return path


def test_bundle_in_a_file_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says otherwise than its eye@2"):
        load_bundle(write_bundle(tmp_path / "eye.1.yaml"))


def test_only_the_noop_backend_passes_bytes_through(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="noop"):
        load_bundle(write_bundle(tmp_path / "eye.2.yaml", "imaging: passthrough\n"))


def test_fingerprint_changes_with_anything_the_bundle_pins(tmp_path: Path) -> None:
    plain = load_bundle(write_bundle(tmp_path / "eye.2.yaml"))
    assert plain.fingerprint == load_bundle(tmp_path / "eye.2.yaml").fingerprint
    wider = load_bundle(write_bundle(tmp_path / "eye.2.yaml", "crop: {context: 2.0}\n"))
    assert wider.fingerprint != plain.fingerprint


def write_family(folder: Path, bundles: dict[str, str], text: str) -> Path:
    (folder / "experts").mkdir()
    for version, extra in bundles.items():
        expert, _, name = version.partition("@")
        (folder / f"experts/{expert}.{name}.yaml").write_text(
            f"expert: {expert}\nname: '{name}'\ntitle: t\nstatus: alpha\n{extra}"
        )
    (folder / "family.yaml").write_text(text)
    return folder / "family.yaml"


NONCOMMERCIAL = "licence: {name: FLUX.1-dev, commercial_use: false}\n"
COMMERCIAL = "licence: {name: Apache-2.0, commercial_use: true}\n"


def test_noncommercial_version_stops_the_start_unless_the_deployment_allows_it(
    tmp_path: Path,
) -> None:
    line = "experts: [{version: eye@2}]\n"
    path = write_family(tmp_path, {"eye@2": NONCOMMERCIAL}, line)
    with pytest.raises(ConfigError, match=r"eye@2 is under FLUX\.1-dev") as caught:
        load_family(path)
    assert "allow_noncommercial: true" in str(caught.value)
    path.write_text("experts: [{version: eye@2, allow_noncommercial: true}]\n")
    assert not load_family(path)[1]["eye@2"].licence.commercial_use


KLEIN = """
backend:
  kind: inpaint
  model: {path: klein}
  prompt: {text: the person wears it}
  adapter: {source: {path: %s}}
  max_batch_size: %d
  recipe: {pipeline: Flux2KleinInpaintPipeline}
product: {canvas: {size: [64, 64]}}
"""
SHARED = """
shared: [{name: klein}]
experts: [{version: eye@2, shared: klein}, {version: top@2, shared: klein}]
"""


def test_versions_that_differ_in_their_adapter_share_replicas(tmp_path: Path) -> None:
    bundles = {"eye@2": COMMERCIAL + KLEIN % ("a", 4), "top@2": COMMERCIAL + KLEIN % ("b", 4)}
    family, _ = load_family(write_family(tmp_path, bundles, SHARED))
    assert family.replicas_of(family.experts[1]) is family.shared[0]


def test_versions_on_different_bases_cannot_share_replicas(tmp_path: Path) -> None:
    bundles = {"eye@2": COMMERCIAL + KLEIN % ("a", 4), "top@2": COMMERCIAL + KLEIN % ("b", 2)}
    with pytest.raises(ConfigError, match="top@2 and eye@2 cannot share replicas"):
        load_family(write_family(tmp_path, bundles, SHARED))


def test_version_without_a_base_cannot_share_replicas(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eye@2 has no base to share"):
        load_family(write_family(tmp_path, {"eye@2": COMMERCIAL, "top@2": COMMERCIAL}, SHARED))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("shared: [{name: a}]\nexperts: [{version: eye@1}]\n", "named on one side only: a"),
        ("experts: [{version: eye@1, shared: a}]\n", "named on one side only: a"),
        (
            "shared: [{name: a}]\n"
            "experts: [{version: eye@1, shared: a, resources: {num_gpus: 1}}]\n",
            "resources belongs to the shared replicas",
        ),
    ],
)
def test_sharing_that_does_not_add_up_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "family.yaml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_yaml(tmp_path / "family.yaml", FamilyConfig)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("masker: {kind: matting, model: {path: m}}\n", "a matting masker finds bg only"),
        (KLEIN.replace("product: {canvas: {size: [64, 64]}}", "") % ("a", 4), "product.canvas"),
        ("masker: {kind: parsing, model: {repo: a/b}}\n", "revision of 40 hex digits"),
        ("masker: {kind: parsing, model: {repo: a/b, path: c}}\n", "say either path or repo"),
    ],
)
def test_bundle_that_cannot_serve_is_refused_when_it_is_read(
    tmp_path: Path, extra: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        load_bundle(write_bundle(tmp_path / "eye.2.yaml", extra))


def test_masker_id_is_the_same_for_what_one_deployment_can_find() -> None:
    parser = ParsingMasker(model=ModelSource(path=Path("parser")))
    assert parser.id == parser.model_copy(update={"dilation": 0.2}).id
    assert parser.id != parser.model_copy(update={"hull": False}).id
    assert ClassicalMasker(dilation=0.3).id == "classical"
