"""A rollout over real HTTP: in order, once, told before, and safe to be cut off anywhere."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.control.revisions import previous_done
from serve.errors import (
    ControlPlaneUnreachable,
    FieldConflict,
    RolloutFailed,
    RolloutRefused,
    RolloutTimedOut,
)
from tests.kube_server import Fault
from tests.rollout_cluster import Told, World, deployment, open_world, thing


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as made:
        yield made


def acts(plan: object) -> dict[str, str]:
    return {str(step.ref): step.act for step in plan.changes}  # type: ignore[attr-defined]


def written(world: World) -> list[str]:
    """The names of what was written, in order, without our own bookkeeping."""
    names = [path.rsplit("/", 1)[1] for _, path in world.kube.writes()]
    return [one for one in names if not one.startswith(("sm4ll-revision", "sm4ll-apply", "leases"))]


def test_everything_is_written_in_order_and_the_migration_ends_before_the_service(
    world: World,
) -> None:
    revision = world.apply(deployment())
    assert (revision.number, revision.state, revision.image) == (1, "done", "sm4ll:1")
    order = written(world)
    assert order[0] == "sm4ll"  # the namespace
    assert order.index("sm4ll-family") < order.index("sm4ll-migrate")
    assert order[-3:] == ["sm4ll-migrate", "sm4ll", "router"]
    assert world.kube.names("Lease") == []
    service = world.kube.find("RayService", "sm4ll")
    assert service is not None
    assert service.object["metadata"]["annotations"]["sm4ll.dev/revision"] == "1"
    assert "RayService sm4ll is ready" in world.told.lines


def test_what_is_applied_differs_from_nothing(world: World) -> None:
    world.apply(deployment())
    assert acts(world.plan(deployment())) == {}


def test_an_edit_is_in_place_or_a_new_cluster_by_the_fields(world: World) -> None:
    world.apply(deployment())
    (step,) = world.plan(deployment(max_pods=5)).changes
    assert step.new_cluster == ()
    assert [one.where for one in step.differences] == [
        "spec.rayClusterConfig.workerGroupSpecs[router].maxReplicas"
    ]
    plan = world.plan(deployment(image="sm4ll:2"))
    assert acts(plan) == {"Job sm4ll-migrate": "run", "RayService sm4ll": "change"}
    assert any("image" in path for path in plan.changes[-1].new_cluster)


def test_bounds_reach_the_cluster_that_runs_though_the_autoscaler_writes_to_it(
    world: World,
) -> None:
    world.apply(deployment())
    world.kube.fail("PUT", "rayclusters", Fault(409, "the object has been modified"))
    world.apply(deployment(max_pods=5))
    assert world.kube.names("RayCluster") == ["sm4ll-1"]
    cluster = world.kube.find("RayCluster", "sm4ll-1")
    assert cluster is not None
    assert cluster.object["spec"]["workerGroupSpecs"][0]["maxReplicas"] == 5
    assert "RayCluster sm4ll-1: pods of router 1 to 5" in world.told.lines


def test_what_admission_refuses_shows_before_anything_changes(world: World) -> None:
    world.apply(deployment())
    before = len(world.kube.writes())
    world.kube.refuse_apply = lambda one: (
        f"no {one['kind']} today" if one["kind"] in ("RayService", "Service") else None
    )
    with pytest.raises(RolloutFailed) as caught:
        world.apply(deployment(max_pods=5))
    assert "no RayService today" in caught.value.detail
    assert "no Service today" in caught.value.detail
    assert len(world.kube.writes()) == before


def test_in_a_new_namespace_the_rest_is_tried_before_it_is_written(world: World) -> None:
    world.kube.refuse_apply = lambda one: "no" if one["kind"] == "RayService" else None
    assert world.plan(deployment()).is_namespace_new
    with pytest.raises(RolloutFailed, match="RayService sm4ll"):
        world.apply(deployment())
    assert written(world) == ["sm4ll"]


def test_another_managers_field_is_named_and_taken_over_only_by_force(world: World) -> None:
    world.apply(deployment())
    stored = world.kube.find("ConfigMap", "sm4ll-family")
    assert stored is not None
    world.kube.put({**stored.object, "data": {"family.yaml": "experts: [theirs]"}})
    (problem,) = world.plan(deployment()).problems
    assert isinstance(problem.error, FieldConflict)
    assert "kubectl" in problem.error.detail
    with pytest.raises(RolloutFailed) as caught:
        world.apply(deployment())
    assert "--force-conflicts" in caught.value.remedy
    world.apply(deployment(), force=True)
    assert acts(world.plan(deployment())) == {}


def test_a_kind_that_is_not_installed_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    with open_world(tmp_path, missing=("ray.io",)) as world:
        with pytest.raises(RolloutFailed, match="does not know RayService") as caught:
            world.apply(deployment())
        assert "KubeRay" in caught.value.remedy
        assert world.kube.writes() == []


# The migration


def test_a_failed_migration_shows_its_log_and_the_service_is_not_touched(world: World) -> None:
    world.apply(deployment())
    world.controllers.failing_jobs["sm4ll-migrate"] = "connecting\nno such column: pins.until\n"
    with pytest.raises(RolloutFailed, match="no such column: pins.until") as caught:
        world.apply(deployment(image="sm4ll:2"))
    assert "not touched" in caught.value.remedy
    service = world.kube.find("RayService", "sm4ll")
    assert service is not None
    assert "sm4ll:1" in str(service.object["spec"])
    assert [one.state for one in world.revisions.all()] == ["failed", "done"]
    world.controllers.failing_jobs.clear()
    assert world.apply(deployment(image="sm4ll:2")).state == "done"
    assert world.controllers.job_runs == ["sm4ll-migrate"] * 3


def test_a_migration_runs_once_even_when_its_job_was_cleaned_up(world: World) -> None:
    world.apply(deployment())
    world.kube.remove("Job", "sm4ll-migrate")
    world.apply(deployment(max_pods=4))
    assert world.controllers.job_runs == ["sm4ll-migrate"]
    world.apply(deployment(max_pods=4, words="what it reads has changed"))
    assert len(world.controllers.job_runs) == 2


class Meddler(Told):
    """Breaks the watch on the Job in every way, and lets the Job end only then."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world

    def doing(self, text: str) -> None:
        super().doing(text)
        if not text.startswith("Job") or "begins" in text:
            return
        turn = sum(one.startswith("Job") for one in self.waits)
        kube = self.world.kube
        kube.drop_watches() if turn == 2 else kube.forget_history()
        kube.fail("GET", "jobs?watch", Fault(503), Fault(is_cut=True))
        done = {"type": "Complete" if turn > 3 else "Suspended", "status": "True"}
        kube.put_status("Job", "sm4ll-migrate", {"conditions": [done], "active": turn})


def test_a_broken_watch_does_not_lose_the_end_of_the_migration(world: World) -> None:
    world.controllers.stuck.add("sm4ll-migrate")
    told = Meddler(world)
    assert world.apply(deployment(), told=told).state == "done"
    assert "Job sm4ll-migrate done" in told.lines


def test_a_migration_at_work_is_not_killed_by_another(world: World) -> None:
    world.controllers.stuck.add("sm4ll-migrate")
    with pytest.raises(RolloutTimedOut, match="has no pod yet"):
        world.apply(deployment(), timeout_s=1.0)
    pod = thing("Pod", "sm4ll-migrate-x")
    pod["metadata"]["labels"] = {"batch.kubernetes.io/job-name": "sm4ll-migrate"}
    world.kube.put(pod)
    world.kube.put_status("Pod", "sm4ll-migrate-x", {"phase": "Running"})
    with pytest.raises(RolloutFailed, match="still at work"):
        world.apply(deployment(image="sm4ll:2"))


# Readiness


def test_a_service_that_fails_says_why_and_how_to_go_back(world: World) -> None:
    world.controllers.app_status = "DEPLOY_FAILED"
    world.controllers.app_message = "Deploying failed.\nValueError: no weights\n"
    with pytest.raises(RolloutFailed, match="no weights") as caught:
        world.apply(deployment())
    assert "rollback" in caught.value.remedy
    assert world.revisions.all()[0].state == "failed"


def test_late_is_not_failed_and_the_next_apply_goes_on_waiting(world: World) -> None:
    world.controllers.app_status = "DEPLOYING"
    with pytest.raises(RolloutTimedOut, match="not ready in time"):
        world.apply(deployment(), timeout_s=0.4, sure_after_s=60.0)
    assert world.revisions.all()[0].state == "pending"
    world.controllers.app_status = "RUNNING"
    world.controllers.tell_status("sm4ll", "sm4ll")
    assert acts(world.plan(deployment())) == {}
    revision = world.apply(deployment())
    assert (revision.number, revision.state) == (1, "done")


# Cut off, and two at once


class Sawyer(Told):
    """Cuts every connection from a certain line on."""

    def __init__(self, world: World, line: str):
        super().__init__()
        self.world = world
        self.line = line

    def said(self, text: str) -> None:
        super().said(text)
        if text == self.line:
            for method in ("PATCH", "DELETE", "PUT"):
                self.world.kube.fail(method, "/", *itertools.repeat(Fault(is_cut=True), 50))


def test_a_control_plane_that_goes_away_is_what_is_said_and_the_next_apply_goes_on(
    world: World,
) -> None:
    with pytest.raises(ControlPlaneUnreachable) as caught:
        world.apply(deployment(), told=Sawyer(world, "Job sm4ll-migrate done"))
    assert "goes on where it stopped" in caught.value.remedy
    assert world.revisions.all()[0].state == "pending"
    world.kube.heal()
    with pytest.raises(RolloutRefused, match="is changing this cluster"):
        world.apply(deployment())  # nobody could let go of the lock; it ends by itself
    world.kube.remove("Lease", "sm4ll-apply")
    assert world.apply(deployment()).number == 1
    assert world.controllers.job_runs == ["sm4ll-migrate"]


def test_cut_off_anywhere_it_is_finished_by_the_next(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.apply(deployment())
        world.apply(deployment(image="sm4ll:2", more="words"))
        wanted, num_calls = world.state(), len(world.told.lines + world.told.waits)
    num_cut = 0
    for call in range(1, num_calls, 2):
        with open_world(tmp_path) as world:
            told = Told(interrupt_at=call)
            for manifests in (deployment(), deployment(image="sm4ll:2", more="words")):
                try:
                    world.apply(manifests, told=told)
                except KeyboardInterrupt:
                    num_cut += 1
                    world.apply(manifests)
            assert world.state() == wanted
            assert [one.state for one in world.revisions.all()] == ["done", "done"]
            assert acts(world.plan(deployment(image="sm4ll:2", more="words"))) == {}
    assert num_cut == len(range(1, num_calls, 2))


def test_a_plan_that_somebody_has_overtaken_is_not_carried_out(world: World) -> None:
    world.apply(deployment())
    plan = world.plan(deployment(max_pods=3))
    world.apply(deployment(max_pods=9))
    with pytest.raises(RolloutRefused, match="revision 2 since"):
        world.apply(deployment(max_pods=3), plan=plan)


# What is gone


def test_what_an_earlier_revision_brought_is_deleted_but_not_data_or_others_things(
    world: World,
) -> None:
    world.apply(deployment())
    world.kube.put(thing("ConfigMap", "theirs"))
    gone = ("Service", "PersistentVolumeClaim", "Secret")
    fewer = [one for one in deployment() if one["kind"] not in gone]
    assert acts(world.plan(fewer)) == {"Service api": "delete"}
    world.apply(fewer)
    assert world.kube.names("Service") == []
    assert world.kube.names("PersistentVolumeClaim") == ["sm4ll-models"]
    assert "sm4ll-admin" in world.kube.names("Secret")
    assert "theirs" in world.kube.names("ConfigMap")


def test_what_a_broken_off_apply_has_brought_is_deleted_as_well(world: World) -> None:
    world.apply(deployment())
    world.controllers.failing_jobs["sm4ll-migrate"] = "no"
    with pytest.raises(RolloutFailed):
        world.apply([*deployment(image="sm4ll:2"), thing("ConfigMap", "only-there")])
    world.controllers.failing_jobs.clear()
    assert acts(world.plan(deployment()))["ConfigMap only-there"] == "delete"


def test_rollback_goes_to_the_last_good_one_and_runs_no_job(world: World) -> None:
    world.apply(deployment())
    world.apply(deployment(image="sm4ll:2"))
    target = previous_done(world.revisions.all())
    assert target is not None
    assert target.number == 1
    manifests = world.revisions.manifests(1)
    assert manifests == deployment()
    plan = world.plan(manifests, jobs=False)
    assert acts(plan) == {"RayService sm4ll": "change"}
    world.apply(manifests, plan=plan)
    assert world.controllers.job_runs == ["sm4ll-migrate"] * 2
    assert acts(world.plan(deployment(image="sm4ll:2"))) == {"RayService sm4ll": "change"}


def test_a_server_that_is_not_well_delays_a_rollout_and_does_not_change_it(
    world: World, tmp_path: Path
) -> None:
    for method in ("GET", "PATCH", "POST"):
        for kind in ("configmaps", "secrets", "jobs", "rayservices", "leases"):
            faults = Fault(429, headers=(("Retry-After", "1"),)), Fault(503), Fault(is_cut=True)
            world.kube.fail(method, kind, *faults)
    world.kube.token = "first"
    begin = world.kube.on_write

    def expire(verb: str, one: dict[str, object]) -> None:
        if one["kind"] == "ConfigMap":  # in the middle of the writes
            world.kube.token = "second"
            (tmp_path / "token").write_text("second")
        begin(verb, one)

    world.kube.on_write = expire
    assert world.apply(deployment()).state == "done"
    assert world.controllers.job_runs == ["sm4ll-migrate"]
    assert acts(world.plan(deployment())) == {}
