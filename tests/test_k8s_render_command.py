"""`sm4ll k8s render` as a person uses it: what it writes, says, compares and leaves alone."""

import re
from pathlib import Path

from typer.testing import CliRunner

from serve.cli import app
from tests.manifests import build


def sm4ll(*args: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["k8s", "render", *args])
    return answer.exit_code, answer.output


def test_the_command_fills_a_folder_that_kustomize_builds(tmp_path: Path) -> None:
    code, said = sm4ll("--overlay", "local", "-o", str(tmp_path))
    assert code == 0
    assert re.search(r"light-cpu +1-2 +1 +4\.5 ", said)
    assert re.search(r"all at most +5 +4 +17\.5 +none", said)
    kinds = {one["kind"] for one in build(tmp_path / "overlays/local")}
    assert {"RayService", "ConfigMap", "Job"} <= kinds


def test_check_names_the_files_that_drifted_and_writes_nothing(tmp_path: Path) -> None:
    args = ("--overlay", "production", "-o", str(tmp_path))
    assert sm4ll(*args)[0] == 0
    assert sm4ll(*args, "--check")[0] == 0
    folder = tmp_path / "overlays/production/rendered"
    edited = (folder / "rayservice.yaml").read_text().replace("minReplicas: 2", "minReplicas: 3")
    (folder / "rayservice.yaml").write_text(edited)
    (folder / "old.yaml").write_text("{}")
    code, said = sm4ll(*args, "--check")
    assert code == 1
    named = [Path(line).name for line in said.splitlines() if line.endswith(".yaml")]
    assert named == ["old.yaml", "rayservice.yaml"]
    assert (folder / "rayservice.yaml").read_text() == edited


def test_rendering_again_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    args = ("--overlay", "local", "-o", str(tmp_path))
    sm4ll(*args)
    mine = tmp_path / "overlays/local/kustomization.yaml"
    mine.write_text("# mine")
    (tmp_path / "overlays/local/rendered/old.yaml").write_text("{}")
    sm4ll(*args)
    assert mine.read_text() == "# mine"
    assert not (tmp_path / "overlays/local/rendered/old.yaml").exists()
