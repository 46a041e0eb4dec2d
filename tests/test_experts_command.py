"""`sm4ll prepare` and `sm4ll experts freeze` as a person uses them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from deployments.backends.registry import create_backend
from deployments.bundle import load_bundle
from deployments.expert import ExpertReplica
from deployments.golden import check_golden
from deployments.samples import read_png, write_png
from serve.commands import experts
from serve.config import ReplicaPlan
from serve.demo.cases import demo_cases
from serve.errors import BundleInvalid, ConfigError, NotFound, SubjectNotFound
from serve.settings import CONFIGS_DIR

CASES = {case.expert: case for case in demo_cases()}
app = typer.Typer()
app.command()(experts.prepare)
app.command()(experts.freeze)


def sm4ll(*arguments: str | Path) -> Result:
    """What `serve.cli.main` says in words leaves here as an exception."""
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer


@pytest.fixture
def family(tmp_path: Path) -> Path:
    shutil.copytree(CONFIGS_DIR / "experts", tmp_path / "configs" / "experts")
    shutil.copy(CONFIGS_DIR / "family.yaml", tmp_path / "configs")
    return tmp_path / "configs" / "family.yaml"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    case = CASES["eye"]
    for name, person in {"anna": case.person_path, "scene": CASES["bg"].product_path}.items():
        home = tmp_path / "pairs" / name
        home.mkdir(parents=True)
        shutil.copy(person, home / "person.jpg")
        shutil.copy(case.product_path, home / "product.png")
    return tmp_path / "pairs"


def test_prepare_says_what_was_made_and_what_was_skipped(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = sm4ll("prepare", "--expert", "eye", "--pairs", pairs, "--out", out)
    assert answer.exit_code == 0
    assert "eye@1: 1 training inputs (1 new), 1 skipped" in answer.output
    assert "scene" in answer.output
    assert (out / "anna" / "crop.png").is_file()
    assert (out / "index.html").is_file()
    again = sm4ll("prepare", "--expert", "eye", "--pairs", pairs, "--out", out)
    assert "(0 new, 1 were there already)" in again.output


def test_prepare_without_anything_usable_exits_1(pairs: Path, tmp_path: Path) -> None:
    shutil.rmtree(pairs / "anna")
    answer = sm4ll("prepare", "--expert", "eye", "--pairs", pairs, "--out", tmp_path / "out")
    assert answer.exit_code == 1


def test_unknown_expert_and_version_list_what_there_is(pairs: Path, tmp_path: Path) -> None:
    rest = ("--pairs", pairs, "--out", tmp_path / "out")
    answer = sm4ll("prepare", "--expert", "hat", *rest)
    assert answer.exit_code == 2
    assert "shoes" in answer.output
    with pytest.raises(NotFound) as caught:
        sm4ll("prepare", "--expert", "eye", "--version", "eye@9", *rest)
    assert "eye@1" in caught.value.remedy


def test_frozen_version_that_drifts_never_becomes_a_replica(family: Path) -> None:
    answer = sm4ll("freeze", "eye@1", "--family", family, "--num", "3")
    assert answer.exit_code == 0
    assert "eye@1 is frozen as it paints on cpu" in answer.output
    bundle = load_bundle(family.parent / "experts" / "eye.1.yaml")
    backend = create_backend((bundle,), ReplicaPlan(name="test"))
    backend.load()
    check_golden(bundle, backend)
    record = yaml.safe_load((bundle.folder / "golden" / "golden.yaml").read_text())
    assert len(record["samples"]) == 3
    file = bundle.folder / "golden" / record["samples"][1] / "expected.png"
    shifted = np.clip(read_png(file).astype(int) - 37, 0, 255).astype(np.uint8)
    write_png(file, shifted)
    drift = rf"sample {record['samples'][1]}: max diff 37 > 4"
    with pytest.raises(BundleInvalid, match=drift):
        check_golden(bundle, backend)
    with pytest.raises(BundleInvalid, match=drift):
        ExpertReplica((bundle,), ReplicaPlan(name="Expert-eye@1"))


@pytest.mark.parametrize("expert", ["face", "bg"], ids=["product with landmarks", "soft region"])
def test_bundled_pictures_serve_as_golden_samples(family: Path, expert: str) -> None:
    assert sm4ll("freeze", f"{expert}@1", "--family", family, "--num", "1").exit_code == 0


def test_own_pairs_become_golden_samples(family: Path, pairs: Path) -> None:
    answer = sm4ll("freeze", "eye@1", "--family", family, "--pairs", pairs, "--quality", "draft")
    assert answer.exit_code == 0
    golden = family.parent / "experts" / "eye.1" / "golden"
    assert (golden / "anna" / "expected.png").is_file()
    assert not (golden / "scene").exists(), "no eyes there"


def test_freeze_without_a_usable_pair_says_why(family: Path, pairs: Path) -> None:
    shutil.rmtree(pairs / "anna")
    with pytest.raises(SubjectNotFound, match="scene: no"):
        sm4ll("freeze", "eye@1", "--family", family, "--pairs", pairs)
    (pairs / "scene" / "product.png").unlink()
    with pytest.raises(ConfigError, match=r"scene: no product\.\*"):
        sm4ll("freeze", "eye@1", "--family", family, "--pairs", pairs)
