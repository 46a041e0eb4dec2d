"""What was applied is kept whole, in the cluster, for ten applies; and one at a time applies."""

import datetime as dt
import itertools
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.changes.lock import DURATION_S, ApplyLock
from k8s.changes.removal import Remover
from k8s.control.revisions import begin_revision, previous_done, read_git
from serve.errors import ConfigError, NotFound, RolloutRefused, RolloutTimedOut
from tests.kube_kinds import Manifest
from tests.kube_server import Fault
from tests.rollout_cluster import World, deployment, open_world, thing


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as made:
        made.kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sm4ll"}})
        yield made


def store(world: World, number: int, manifests: list[Manifest], state: str = "done") -> None:
    revision = begin_revision(manifests, "local", None, number)
    revision = world.revisions.write(revision, manifests)
    world.revisions.mark(revision, state)  # type: ignore[arg-type]


def config_map(text: str) -> Manifest:
    return thing("ConfigMap", "words", data={"text": text})


def test_a_revision_is_read_as_it_was_written_and_says_how_it_ended(world: World) -> None:
    store(world, 1, deployment())
    store(world, 2, [config_map("b")], "failed")
    newest, first = world.revisions.all()
    assert (newest.number, newest.state, first.state) == (2, "failed", "done")
    assert (first.image, first.num_objects) == ("sm4ll:1", 8)
    assert first.author.endswith(f"@{socket.gethostname()}")
    assert world.revisions.manifests(1) == deployment()
    secret = world.kube.find("Secret", "sm4ll-revision-1")
    assert secret is not None
    assert secret.object["type"] == "sm4ll.dev/revision"


def test_a_large_revision_is_kept_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8s.control.revisions.PART_BYTES", 1000)
    noise = random.Random(7).randbytes(2500).hex()
    store(world, 1, [config_map(noise)])
    assert len(world.kube.names("Secret")) > 2
    assert world.revisions.manifests(1) == [config_map(noise)]
    store(world, 1, [config_map("short")])  # parts of the long one are still there
    assert world.revisions.manifests(1) == [config_map("short")]
    monkeypatch.setattr("k8s.control.revisions.MAX_PARTS", 2)
    with pytest.raises(ConfigError, match="dashboards"):
        store(world, 2, [config_map(noise)])
    assert [one.number for one in world.revisions.all()] == [1]


def test_half_a_revision_is_named_as_damaged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8s.control.revisions.PART_BYTES", 1000)
    store(world, 1, [config_map(random.Random(7).randbytes(2500).hex())])
    world.kube.remove("Secret", "sm4ll-revision-1-part-2")
    with pytest.raises(ConfigError, match="damaged or incomplete"):
        world.revisions.manifests(1)


def test_ten_are_kept_and_the_last_good_ones_always(world: World) -> None:
    for number in range(1, 15):
        store(world, number, [config_map(str(number))], "done" if number < 3 else "failed")
    world.revisions.forget_old()
    assert [one.number for one in world.revisions.all()] == [*range(14, 4, -1), 2, 1]
    with pytest.raises(NotFound, match="14, 13"):
        world.revisions.find(3)


def test_rollback_goes_to_what_is_not_what_runs(world: World) -> None:
    assert previous_done(world.revisions.all()) is None
    store(world, 1, [config_map("a")])
    assert previous_done(world.revisions.all()) is None
    store(world, 2, [config_map("b")])
    store(world, 3, [config_map("b")])
    assert previous_done(world.revisions.all()) == world.revisions.find(1)
    store(world, 4, [config_map("c")], "pending")
    assert previous_done(world.revisions.all()) == world.revisions.find(3)


def test_the_commit_is_noted_and_whether_the_overlay_has_changed_since(tmp_path: Path) -> None:
    assert read_git(tmp_path) == ("", False)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    head, is_dirty = read_git(tmp_path)
    assert (len(head), is_dirty) == (40, False)
    (tmp_path / "new.yaml").write_text("a: 1")
    assert read_git(tmp_path) == (head, True)


# One at a time


class Calendar:
    """A clock for leases."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


def test_the_second_is_told_who_is_at_it_and_since_when(world: World) -> None:
    now = Calendar()
    with ApplyLock(world.api, "sm4ll", now).held() as first:
        with (
            pytest.raises(RolloutRefused, match=r"@.* since 2026-11-26 12:00:00 UTC") as caught,
            ApplyLock(world.api, "sm4ll", now).held(),
        ):
            pass
        assert f"in {DURATION_S} s" in caught.value.remedy
        assert first.holder.startswith(caught.value.detail.split()[0])
    with ApplyLock(world.api, "sm4ll", now).held():
        assert world.kube.names("Lease") == ["sm4ll-apply"]
    assert world.kube.names("Lease") == []


def test_a_lock_that_nobody_renews_ends_and_its_holder_finds_out(world: World) -> None:
    now = Calendar()
    with ApplyLock(world.api, "sm4ll", now).held() as slept:
        now.advance(DURATION_S + 1)
        with ApplyLock(world.api, "sm4ll", now).held():
            now.advance(30)
            with pytest.raises(RolloutRefused):
                slept.renew()
        # The second has let it go, and the first must not take it back by leaving.
    assert world.kube.names("Lease") == []


def test_renewing_keeps_it(world: World) -> None:
    now = Calendar()
    with ApplyLock(world.api, "sm4ll", now).held() as lock:
        for _ in range(10):
            now.advance(30)
            lock.renew()
        with pytest.raises(RolloutRefused), ApplyLock(world.api, "sm4ll", now).held():
            pass


def test_the_lock_of_a_process_that_has_ended_is_free(world: World) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    now = Calendar()
    for host, is_free in ((socket.gethostname(), True), ("elsewhere", False)):
        held = ApplyLock(world.api, "sm4ll", now)
        held.holder = f"me@{host}/{child.pid}/x"
        with held.held():
            if is_free:
                with ApplyLock(world.api, "sm4ll", now).held():
                    pass
            else:
                with pytest.raises(RolloutRefused), ApplyLock(world.api, "sm4ll", now).held():
                    pass
    assert os.getpid() != child.pid


def test_an_answer_that_was_lost_does_not_lock_us_out(world: World) -> None:
    lock = ApplyLock(world.api, "sm4ll")
    lease = world.api.create(lock._written({}), "sm4ll")
    world.kube.fail("GET", "leases/sm4ll-apply", Fault(404))
    with lock.held():
        assert world.kube.names("Lease") == [lease["metadata"]["name"]]
    assert world.kube.names("Lease") == []


# The end


def left(world: World) -> set[str]:
    return {one.object["kind"] for one in world.kube.objects.values()}


def test_delete_keeps_data_and_takes_the_service_first(world: World) -> None:
    world.apply(deployment())
    remover = Remover(world.api, "sm4ll", world.told)
    removal = remover.plan(with_data=False)
    assert {one["kind"] for one in removal.kept} == {
        "Namespace",
        "Secret",
        "PersistentVolumeClaim",
    }
    world.told.lines.clear()
    remover.carry_out(removal)
    assert world.told.lines[0] == "RayService sm4ll deleted"
    assert left(world) == {"Namespace", "Secret", "PersistentVolumeClaim", "Pod"}
    assert world.kube.names("Secret") == ["sm4ll-admin"]
    assert remover.plan(with_data=False).gone == ()
    remover.carry_out(remover.plan(with_data=True))  # thought better of it
    assert left(world) == {"Namespace"}


def test_delete_with_data_leaves_nothing(world: World) -> None:
    world.apply(deployment())
    remover = Remover(world.api, "sm4ll", world.told)
    remover.carry_out(remover.plan(with_data=True))
    assert left(world) == {"Namespace"}
    assert world.kube.names("Namespace") == ["default"]


def impatient(world: World) -> Remover:
    """Its clock advances by a second whenever it is looked at."""
    clock = itertools.count()
    return Remover(world.api, "sm4ll", world.told, timeout_s=5.0, clock=lambda: float(next(clock)))


@pytest.mark.parametrize("kind", ["RayService", "RayCluster"])
def test_delete_waits_for_the_end_of_the_cluster_before_it_takes_what_that_needs(
    world: World, kind: str
) -> None:
    world.apply(deployment())
    world.kube.kept |= {"RayService"} & {kind}
    world.controllers.stuck.add("sm4ll-1")
    with pytest.raises(RolloutTimedOut, match=f"{kind} sm4ll") as caught:
        impatient(world).carry_out(impatient(world).plan(with_data=False))
    assert "finalizer" in caught.value.remedy
    assert world.kube.names("Service") == ["api"]
    for left_over in ("RayService", "RayCluster"):
        for name in world.kube.names(left_over):
            world.kube.finish_deletion(left_over, name)
    again = Remover(world.api, "sm4ll", world.told)
    again.carry_out(again.plan(with_data=False))
    assert world.kube.names("Service") == []


def test_somebody_elses_object_of_the_same_name_stays(world: World) -> None:
    world.apply(deployment())
    world.kube.remove("Service", "api")
    world.kube.put(thing("Service", "api", spec={"ports": [{"port": 1}]}))
    remover = Remover(world.api, "sm4ll", world.told)
    remover.carry_out(remover.plan(with_data=False))
    assert world.kube.names("Service") == ["api"]
