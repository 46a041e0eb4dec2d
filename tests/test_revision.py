"""A revision names what an application is built from; who builds it waits until that is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app as collect_deployments

from serve.app import AppArgs, build_app
from serve.errors import ConfigError
from serve.revision import WAIT_S, family_revision, wait_for_revision
from tests.measured_family import write_bundle, write_footprint

BUNDLE = {
    "expert": "eye",
    "name": "1",
    "title": "Eyewear",
    "status": "beta",
    "licence": {"name": "none", "commercial_use": True},
}


def write(folder: Path, family: dict[str, Any], **bundle: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eye.1.yaml").write_text(yaml.safe_dump({**BUNDLE, **bundle}))
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump({"bundles_dir": ".", **family}))
    return path


def family(**changes: Any) -> dict[str, Any]:
    return {"experts": [{"version": "eye@1", **changes}]}


def test_bounds_and_objectives_are_no_part_of_it(tmp_path: Path) -> None:
    before = family_revision(write(tmp_path, family()))
    bounds = {"min_replicas": 2, "max_replicas": 9, "target_drain_s": 3}
    router = {"autoscaling": {"min_replicas": 3, "max_replicas": 5}}
    slo = {"experts": {"eye": {"latency_s": 5.0}}}
    edited = {**family(autoscaling=bounds), "router": router, "slo": slo}
    assert family_revision(write(tmp_path, edited)) == before


@pytest.mark.parametrize(
    ("changed", "bundle"),
    [
        (family(allow_noncommercial=True), {}),
        (family(autoscaling={"min_replicas": 0}), {}),  # routers ask it whether they are ready
        ({**family(), "router": {"max_ongoing_requests": 9}}, {}),
        (family(), {"crop": {"size_px": 512}}),
    ],
)
def test_all_else_is(tmp_path: Path, changed: dict[str, Any], bundle: dict[str, Any]) -> None:
    before = family_revision(write(tmp_path, family()))
    assert family_revision(write(tmp_path, changed, **bundle)) != before


def test_where_the_documents_lie_is_not(tmp_path: Path) -> None:
    here = family_revision(write(tmp_path / "here", family()))
    assert family_revision(write(tmp_path / "elsewhere", family())) == here


def test_what_was_measured_is_beside_the_bundle_in_a_folder_or_flat(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    path = tmp_path / "family.yaml"
    path.write_text(yaml.safe_dump({"experts": [{"version": "eye@2"}]}))
    unmeasured = family_revision(path)
    write_footprint(bundle, 5.0)
    measured = family_revision(path)
    assert measured != unmeasured
    folder = tmp_path / "experts/eye.2"
    (folder / "footprint.yaml").rename(tmp_path / "experts/eye.2.footprint.yaml")
    folder.rmdir()
    assert family_revision(path) == measured


class Kubelet:
    """Time that passes by waiting, and a mounted ConfigMap that is another after a while."""

    def __init__(self, mount: Path, after_s: float, swap: Callable[[], None]):
        self.now_s = 0.0
        self._after_s, self._swap, self._is_done = after_s, swap, False

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s >= self._after_s and not self._is_done:
            self._is_done = True
            self._swap()


def mount(folder: Path, version: str) -> None:
    """As kubelet does: every file a link through `..data`, which is put in place at once."""
    data = folder / "..data"
    new = folder / "..new"
    new.symlink_to(version)
    new.rename(data)
    for name in ("family.yaml", "eye.1.yaml"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_the_build_waits_for_the_documents_it_was_told_of(tmp_path: Path) -> None:
    write(tmp_path / "v1", family())
    wanted = family_revision(write(tmp_path / "v2", family(), crop={"size_px": 512}))
    mount(tmp_path, "v1")
    kubelet = Kubelet(tmp_path, 75.0, lambda: mount(tmp_path, "v2"))
    path = tmp_path / "family.yaml"
    wait_for_revision(path, wanted, sleep=kubelet.sleep, now=kubelet.now)
    assert 75.0 <= kubelet.now_s < 80.0
    assert family_revision(path) == wanted


def test_documents_that_never_come_are_an_error_that_names_both(tmp_path: Path) -> None:
    path = write(tmp_path, family())
    kubelet = Kubelet(tmp_path, 1e9, lambda: None)
    with pytest.raises(ConfigError, match=rf"revision cafe did not come .*{family_revision(path)}"):
        wait_for_revision(path, "cafe", sleep=kubelet.sleep, now=kubelet.now)
    assert WAIT_S <= kubelet.now_s < WAIT_S + 5


def test_documents_that_do_not_fit_yet_are_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path, family())
    wanted = family_revision(path)
    whole = (tmp_path / "eye.1.yaml").read_text()
    (tmp_path / "eye.1.yaml").write_text("expert: [")

    def complete() -> None:
        (tmp_path / "eye.1.yaml").write_text(whole)

    kubelet = Kubelet(tmp_path, 2.0, complete)
    wait_for_revision(path, wanted, sleep=kubelet.sleep, now=kubelet.now)
    assert kubelet.now_s >= 2.0


def test_the_application_is_built_from_that_revision(tmp_path: Path) -> None:
    path = write(tmp_path, family())
    assert build_app(AppArgs(family=path, revision=family_revision(path)))


def test_replicas_look_beside_a_bundle_in_the_mount_not_in_the_folder_behind_it(
    tmp_path: Path,
) -> None:
    """The next version of the ConfigMap takes that folder away, and other nodes never had it."""
    write(tmp_path / "v1", family())
    mount(tmp_path, "v1")
    built = collect_deployments(build_app(AppArgs(family=tmp_path / "family.yaml")), name="sm4ll")
    (segmenter,) = (one for one in built.deployments if one.name.startswith("Segmenter-"))
    assert tmp_path in segmenter.init_args
