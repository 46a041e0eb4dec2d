"""`sm4ll k8s apply` and the way back, as a person and a CI use them, with the shipped overlay."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from k8s.control.kustomize import OVERLAYS_DIR, build, find_overlay
from serve.cli import app
from serve.commands.k8s_apply import agree
from serve.errors import ConfigError, RolloutRefused
from tests.rollout_cluster import World, open_world

SECRET = "laptop-laptop"  # of the local overlay


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped local overlay, to be edited."""
    if shutil.which("kubectl") is None and "CI" not in os.environ:
        pytest.skip("kubectl is not installed, which builds overlays")
    folder = tmp_path_factory.mktemp("installed") / "k8s"
    kept = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(OVERLAYS_DIR.parent, folder, ignore=kept)
    return folder / "overlays" / "local"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with open_world(tmp_path) as made:
        monkeypatch.setenv("SM4LL_KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield made


def sm4ll(*words: str) -> Result:
    return CliRunner().invoke(app, ["k8s", *words], catch_exceptions=False)


def edit(overlay: Path, pattern: str, text: str) -> None:
    path = overlay / "rendered" / "rayservice.yaml"
    edited, num_edits = re.subn(pattern, text, path.read_text(), flags=re.MULTILINE)
    assert num_edits > 0
    path.write_text(edited)


def test_the_shipped_overlay_is_applied_edited_rolled_back_and_deleted(
    world: World, overlay: Path
) -> None:
    named = ("--overlay", str(overlay))
    refused = sm4ll("apply", *named)
    assert (refused.exit_code, world.kube.writes()) == (2, [])
    assert "--yes" in refused.stderr
    assert SECRET not in refused.output

    applied = sm4ll("apply", *named, "--yes")
    assert applied.exit_code == 0, applied.output
    assert "Done: revision 1 in sm4ll." in applied.stdout
    same = sm4ll("diff", *named)
    assert (same.exit_code, "Nothing to do" in same.stdout) == (0, True)
    num_writes = len(world.kube.writes())
    assert sm4ll("apply", *named).exit_code == 0  # nothing to ask
    assert len(world.kube.writes()) == num_writes

    edit(overlay, r"max_replicas: 2$", "max_replicas: 3")
    edit(overlay, r"^      maxReplicas: 1$", "      maxReplicas: 4")
    in_place = sm4ll("diff", *named)
    assert in_place.exit_code == 4
    assert "RayService sm4ll  in place" in in_place.stdout
    assert re.search(r"serveConfigV2\.applications\[sm4ll\].*max_replicas.* 2 → 3", in_place.stdout)
    assert sm4ll("apply", *named, "--yes").exit_code == 0
    assert world.kube.names("RayCluster") == ["sm4ll-1"]

    edit(overlay, r"rayVersion: .*$", "rayVersion: 2.99.0")
    anew = sm4ll("apply", *named, "--yes")
    assert anew.exit_code == 0
    assert "NEW CLUSTER" in anew.stdout
    assert "! spec.rayClusterConfig.rayVersion" in anew.stdout
    assert world.kube.names("RayCluster") == ["sm4ll-2"]

    back = sm4ll("rollback", "--to", "1", "--yes")
    assert back.exit_code == 0
    assert "The database stays as it is" in back.stdout
    assert world.controllers.job_runs == ["sm4ll-migrate"]
    told = json.loads(sm4ll("history", "--json").stdout)
    assert [one["rolled_back_to"] for one in told] == [1, None, None, None]
    assert "done, back to 1" in sm4ll("history").stdout

    assert sm4ll("delete").exit_code == 2
    gone = sm4ll("delete", "--yes", "--with-data")
    assert gone.exit_code == 0
    assert {one.object["metadata"]["name"] for one in world.kube.objects.values()} == {"default"}
    assert "Nothing of ours is in sm4ll" in sm4ll("delete", "--yes").stdout


def test_everything_can_go_into_another_namespace(overlay: Path) -> None:
    manifests = build(overlay, "tryout")
    places = {one["metadata"].get("namespace") for one in manifests}
    assert places == {"tryout", None}
    assert [m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"] == ["tryout"]


def test_a_rollout_that_cannot_become_ready_exits_1_and_a_late_one_3(
    world: World, overlay: Path
) -> None:
    world.controllers.app_status = "DEPLOYING"
    late = sm4ll("apply", "--overlay", str(overlay), "--yes", "--timeout", "0.3s")
    assert late.exit_code == 3
    assert "sm4ll k8s wait" in late.stderr
    assert sm4ll("history").stdout.count("pending") == 1
    assert sm4ll("rollback", "--yes").exit_code == 1  # there is nothing to go back to
    world.controllers.app_status = "RUNNING"
    world.controllers.tell_status("sm4ll", "sm4ll")
    again = sm4ll("apply", "--overlay", str(overlay), "--yes")
    assert again.exit_code == 0
    assert "it is finished now" in again.stdout


def test_an_overlay_that_is_not_there_and_one_that_cannot_be_built_are_named(
    tmp_path: Path, world: World
) -> None:
    nowhere = sm4ll("diff", "--overlay", "nowhere")
    assert nowhere.exit_code == 1
    assert "local, production" in nowhere.stderr
    (tmp_path / "kustomization.yaml").write_text("resources: [gone.yaml]")
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        build(tmp_path)
    assert find_overlay("local") == OVERLAYS_DIR / "local"


def test_without_kubectl_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        build(OVERLAYS_DIR / "local")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "expected", "is_agreed"),
    [
        ("y", "y", True),
        ("YES", "y", True),
        ("", "y", False),
        ("n", "y", False),
        ("y", "sm4ll", False),
        ("sm4ll", "sm4ll", True),
        (None, "y", False),
    ],
)
def test_only_a_clear_yes_is_one(
    monkeypatch: pytest.MonkeyPatch, typed: str | None, expected: str, is_agreed: bool
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("" if typed is None else f"{typed}\n"))
    if is_agreed:
        agree("Sure?", False, expected)
    else:
        with pytest.raises(RolloutRefused, match="Nothing was changed"):
            agree("Sure?", False, expected)


@pytest.mark.parametrize("namespace", ["", "Bad_Name!", "../default", "-sm4ll", "a" * 64])
@pytest.mark.parametrize("command", ["delete --yes", "status", "apply --overlay local --yes"])
def test_what_is_no_namespace_is_refused_before_the_server_is_asked(
    command: str, namespace: str, world: World
) -> None:
    """An unset variable in a script must not mean all of them."""
    refused = sm4ll(*command.split(), "--namespace", namespace)
    assert refused.exit_code == 2
    assert "is no name in Kubernetes" in " ".join(refused.stderr.split())
    assert world.kube.writes() == []
