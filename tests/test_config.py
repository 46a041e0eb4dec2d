from pathlib import Path

import pytest
from pydantic import TypeAdapter

from deployments.backends.registry import BACKENDS
from deployments.bundle import bundle_path, load_bundle, load_family
from deployments.recipes import BackendConfig
from deployments.segmenters.registry import SEGMENTERS
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
