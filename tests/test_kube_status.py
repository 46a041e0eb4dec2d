"""What `sm4ll k8s status` and `wait` say of a cluster, over real HTTP."""

import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from k8s.control.api import ControlPlane
from k8s.state.findings import Finding
from k8s.state.snapshot import Snapshot, read_snapshot
from k8s.state.status import ClusterStatus, judge
from k8s.state.waiting import Verdict, watch_changes
from serve.cli import app
from serve.commands.k8s_status import parse_duration
from serve.settings import Settings
from tests.kube_server import Asked, Fault, KubeServer, open_kube
from tests.kube_worlds import (
    ACTIVE,
    NOW_S,
    PENDING,
    applications,
    broken,
    condition,
    fill,
    healthy,
    ray_cluster,
    serve_service,
    service,
)

PATIENCE_S = 20.0


@pytest.fixture
def kube() -> Iterator[KubeServer]:
    with open_kube(namespaces=("default", "sm4ll")) as server:
        yield server


@pytest.fixture
def api(kube: KubeServer, tmp_path: Path) -> ControlPlane:
    return open_api(kube, tmp_path)


def open_api(kube: KubeServer, folder: Path) -> ControlPlane:
    plane = ControlPlane.configured(Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(folder))))
    plane.sleep = lambda seconds: None
    return plane


def run(kube: KubeServer, folder: Path, *words: str) -> Result:
    env = {"SM4LL_KUBECONFIG": str(kube.kubeconfig(folder)), "COLUMNS": "200"}
    return CliRunner().invoke(app, ["k8s", *words], env=env)


def judged(api: ControlPlane) -> ClusterStatus:
    return judge(read_snapshot(api, "sm4ll", "sm4ll", clock=lambda: NOW_S))


def test_a_cluster_that_is_well_is_ready_in_one_screen(
    kube: KubeServer, api: ControlPlane, tmp_path: Path
) -> None:
    fill(kube, healthy())
    told = judged(api)
    assert (told.state, told.is_ready, told.is_upgraded) == ("ready", True, True)
    assert told.findings == ()
    assert {pool.pool: (pool.ready, pool.wanted, pool.gpus) for pool in told.pools} == {
        "head": (1, 1, 0.0),
        "router": (2, 2, 0.0),
        "segment": (1, 1, 0.0),
        "light-gpu-l4": (1, 1, 1.0),
    }
    assert told.kuberay_version == "v1.7.0"
    shown = run(kube, tmp_path, "status")
    assert shown.exit_code == 0
    for words in ("READY", "eye@1", "Nothing is wrong.", "port-forward svc/sm4ll-serve-svc 8000"):
        assert words in shown.output
    assert len(shown.output.splitlines()) < 24, "a terminal's height"


def test_an_upgrade_that_is_stuck_names_both_clusters_and_every_cause(
    kube: KubeServer, api: ControlPlane, tmp_path: Path
) -> None:
    fill(kube, broken())
    kube.logs[f"{PENDING}-router-worker-0"] = "first\nMemoryError: 12 GiB\n"
    told = judged(api)
    assert (told.state, told.is_ready, told.is_upgraded) == ("upgrading", True, False)
    assert [
        (line.name, line.role, line.weight_percent, line.capacity_percent)
        for line in (told.clusters)
    ] == [(ACTIVE, "active", 80, 100), (PENDING, "pending", 20, 50)]
    weights = [found.weight for found in told.findings]
    assert weights == sorted(weights, key=("broken", "waiting", "note").index)
    said = {found.subject: found for found in told.findings}
    assert (
        "does not exist in its registry"
        in said[f"pod {PENDING}-light-gpu-l4-worker-0 (light-gpu-l4)"].says
    )
    router = said[f"pod {PENDING}-router-worker-0 (router)"]
    assert 'OOMKilled); its last line: "MemoryError: 12 GiB"' in router.says
    assert said[f"pod {PENDING}-heavy-gpu-h100-worker-0 (heavy-gpu-h100)"].others == 1
    assert "BundleInvalid" in said["Expert-eye@1"].says
    assert said["Job sm4ll-migrate"].weight == "broken"
    shown = run(kube, tmp_path, "status")
    assert shown.exit_code == 0, "requests are answered"
    assert "UPGRADING" in shown.output
    assert "What helps: more memory for the pod" in shown.output


def test_json_is_the_same_for_machines(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, broken())
    shown = run(kube, tmp_path, "status", "--json")
    told = json.loads(shown.output)
    assert told["state"] == "upgrading"
    assert told["clusters"][1]["weight_percent"] == 20
    assert all(found["remedy"] for found in told["findings"] if found["weight"] == "broken")


def test_a_service_that_is_not_there_and_an_operator_that_is_not(
    kube: KubeServer, tmp_path: Path
) -> None:
    shown = run(kube, tmp_path, "status")
    assert shown.exit_code == 1
    assert "has no RayService sm4ll" in shown.output
    assert "sm4ll k8s apply" in shown.output
    kube.put(service())
    assert "there is sm4ll" in run(kube, tmp_path, "status", "--name", "other").output
    with open_kube(missing=("ray.io",), namespaces=("sm4ll",)) as bare:
        shown = run(bare, tmp_path, "status")
    assert shown.exit_code == 1
    assert "the KubeRay operator is not installed" in shown.output
    assert "helm install kuberay-operator" in shown.output


def test_rights_of_a_namespace_are_enough_and_what_is_not_read_is_named(
    kube: KubeServer, tmp_path: Path
) -> None:
    fill(kube, healthy())
    kube.fail("GET", "/api/v1/nodes", Fault(403, "nodes is forbidden"))
    kube.fail("GET", "/events", Fault(403, "events is forbidden"))
    shown = run(kube, tmp_path, "status")
    assert shown.exit_code == 0
    assert "Not read, for want of the right: Events, Nodes" in shown.output


def test_an_api_server_that_is_busy_is_asked_again(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, healthy())
    kube.fail("GET", "/rayservices/sm4ll", Fault(429, headers=(("Retry-After", "0"),)))
    assert run(kube, tmp_path, "status").exit_code == 0


def seen(*routes: dict[str, Any], **more: Any) -> Snapshot:
    return Snapshot("sm4ll", "sm4ll", NOW_S, service=service(), routes=routes, **more)


def test_the_address_is_the_most_open_one() -> None:
    named = {
        "kind": "Ingress",
        "spec": {"rules": [{"host": "tryon.example"}], "tls": [{"hosts": ["tryon.example"]}]},
    }
    gateway = {
        "kind": "Gateway",
        "spec": {"listeners": [{"port": 80}]},
        "status": {"addresses": [{"value": "34.1.2.3"}]},
    }
    inside = serve_service()
    assert judge(seen(gateway, named, services=(inside,))).address == "https://tryon.example"
    assert judge(seen(gateway, services=(inside,))).address == "http://34.1.2.3"
    told = judge(seen(services=(inside,)))
    assert told.address == "http://sm4ll-serve-svc.sm4ll:8000"
    assert told.from_here.startswith("kubectl -n sm4ll port-forward")
    balanced = copy.deepcopy(inside)
    balanced["status"]["loadBalancer"] = {"ingress": [{"hostname": "lb.example"}]}
    assert judge(seen(services=(balanced,))).address == "http://lb.example:8000"


def test_states_follow_the_conditions() -> None:
    def state(**status: Any) -> str:
        return judge(Snapshot("sm4ll", "sm4ll", NOW_S, service=service(**status))).state

    down = condition("Ready", False, "ZeroServeEndpoints")
    assert state() == "ready"
    assert state(conditions=[down]) == "not ready"
    assert state(conditions=[down], activeServiceStatus={}) == "starting"
    assert state(conditions=[condition("Suspended", True)]) == "suspended"
    assert state(conditions=[condition("RollbackInProgress", True)]) == "upgrading"
    assert state(observedGeneration=0) == "upgrading", "the last change is not in yet"
    failing = applications()
    failing["sm4ll"]["status"] = "DEPLOY_FAILED"
    bad = {"rayClusterName": ACTIVE, "applicationStatuses": failing}
    assert state(activeServiceStatus=bad) == "not ready", "Ready alone is that a pod answers"


def test_pods_that_leave_are_not_counted_and_a_third_cluster_is_seen(
    kube: KubeServer, api: ControlPlane
) -> None:
    world = healthy()
    gone = next(one for one in world if one["metadata"]["name"].endswith("router-worker-1"))
    gone["metadata"]["deletionTimestamp"] = "2026-11-26T03:01:00Z"
    fill(kube, [*world, ray_cluster(PENDING)])
    told = judged(api)
    (router,) = (p for p in told.pools if (p.cluster, p.pool) == (ACTIVE, "router"))
    assert (router.present, router.ready) == (1, 1)
    assert [line.role for line in told.clusters] == ["active", "leaving"]


def test_only_claims_of_ours_are_told_of(kube: KubeServer, api: ControlPlane) -> None:
    claims = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {"storageClassName": "fast"},
            "status": {"phase": "Pending"},
        }
        for name in ("sm4ll-models", "somebody-elses")
    ]
    fill(kube, [*healthy(), *claims])
    assert [found.subject for found in judged(api).findings] == [
        "claim sm4ll-models (storage class fast)"
    ]


def test_a_failure_must_last_before_waiting_ends() -> None:
    verdict = Verdict("ready", timeout_s=60, sure_after_s=PATIENCE_S)
    stuck = judge(seen_broken())
    assert verdict.look(stuck, 0) is None
    assert verdict.look(stuck, 10) is None
    assert verdict.look(stuck, 20) == "failed"
    assert verdict.fatal
    again = Verdict("ready", timeout_s=60, sure_after_s=PATIENCE_S)
    fresh = judge(Snapshot("sm4ll", "sm4ll", NOW_S, service=starting()))
    assert again.look(stuck, 0) is None
    assert again.look(fresh, 10) is None, "it was left over from before"
    assert again.look(stuck, 25) is None
    assert again.look(fresh, 61) == "late"
    assert again.look(judge(Snapshot("sm4ll", "sm4ll", NOW_S, service=service())), 62) == "reached"


def starting() -> dict[str, Any]:
    return service(conditions=[condition("Ready", False, "Initializing")], activeServiceStatus={})


def seen_broken() -> Snapshot:
    refused = condition("Ready", False, "ValidationFailed", "the name is too long")
    return Snapshot("sm4ll", "sm4ll", NOW_S, service=service(conditions=[refused]))


def test_upgraded_means_that_the_last_change_answers() -> None:
    verdict = Verdict("upgraded", timeout_s=60)
    moving = service(observedGeneration=0)
    assert verdict.look(judge(Snapshot("sm4ll", "sm4ll", NOW_S, service=moving)), 1) is None
    assert verdict.look(judge(Snapshot("sm4ll", "sm4ll", NOW_S, service=service())), 2) == "reached"


def test_wait_exits_by_what_came_of_it(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, healthy())
    reached = run(kube, tmp_path, "wait", "--for", "upgraded")
    assert reached.exit_code == 0
    assert "It is upgraded: http://sm4ll-serve-svc.sm4ll:8000" in reached.output
    kube.put_status("RayService", "sm4ll", starting()["status"])
    late = run(kube, tmp_path, "wait", "--timeout", "0s")
    assert late.exit_code == 3
    assert "starting: 5 of 5 pods ready" in late.output
    assert "Not ready after 0s" in late.output


def test_wait_ends_early_on_what_waiting_does_not_cure(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, broken())
    failed = run(kube, tmp_path, "wait", "--for", "upgraded", "--patience", "0")
    assert failed.exit_code == 1
    assert "does not exist in its registry" in failed.output
    assert "Waiting does not cure that." in failed.output


class Watched(list[Asked]):
    """Requests; says when so many watches, and another path, have been asked for."""

    def __init__(self, number: int, path: str = ""):
        super().__init__()
        self.number = number
        self.path = path
        self.reached = threading.Event()

    def append(self, asked: Asked) -> None:
        super().append(asked)
        watches = sum(one.query.get("watch") == "true" for one in list(self))
        if watches >= self.number and any(one.path.endswith(self.path) for one in list(self)):
            self.reached.set()


def test_changes_are_seen_and_go_on_being_seen_when_watches_break(
    kube: KubeServer, tmp_path: Path
) -> None:
    fill(kube, healthy())
    kube.asked = Watched(2)
    with watch_changes(lambda: open_api(kube, tmp_path), "sm4ll") as changed:
        assert kube.asked.reached.wait(PATIENCE_S)
        changes_are_told(kube, changed)  # both streams have begun, and can be cut
        kube.asked = Watched(2)
        kube.drop_watches()
        assert kube.asked.reached.wait(PATIENCE_S)
        changes_are_told(kube, changed)


def changes_are_told(kube: KubeServer, changed: threading.Event) -> None:
    for kind, name in (("RayService", "sm4ll"), ("Pod", f"{ACTIVE}-router-worker-0")):
        stored = kube.find(kind, name)
        assert stored is not None
        changed.clear()
        kube.put_status(kind, name, stored.object["status"])
        assert changed.wait(PATIENCE_S), kind


def test_wait_tells_each_step_once_and_comes_back_with_the_change(
    kube: KubeServer, tmp_path: Path
) -> None:
    fill(kube, healthy())
    kube.put_status("RayService", "sm4ll", starting()["status"])
    kube.asked = Watched(2, "/nodes")  # read after the service: the first look is over

    def finish() -> None:
        assert kube.asked.reached.wait(PATIENCE_S)  # type: ignore[attr-defined]
        kube.put_status("RayService", "sm4ll", service()["status"])

    helper = threading.Thread(target=finish)
    helper.start()
    waited = run(kube, tmp_path, "wait")
    helper.join()
    assert waited.exit_code == 0
    steps = [line for line in waited.output.splitlines() if line.startswith("[")]
    assert len(steps) == len(set(steps))
    assert "starting" in steps[0]
    assert "ready: 5 of 5 pods ready, 10 of 10 deployments healthy" in steps[-1]
    assert "It is ready" in waited.output


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h", 3600), ("45", 45), ("0.5d", 43200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_duration_that_is_none_is_refused(kube: KubeServer, tmp_path: Path) -> None:
    assert run(kube, tmp_path, "wait", "--timeout", "soon").exit_code == 2


def test_findings_of_one_weight_keep_their_order() -> None:
    from k8s.state.findings import sort_findings

    found = [Finding("note", "a", ""), Finding("broken", "b", ""), Finding("broken", "a", "")]
    assert [one.subject for one in sort_findings(found)] == ["b", "a", "a"]
