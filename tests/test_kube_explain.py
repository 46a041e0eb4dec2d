"""Every way in which a pod is not ready has its own words, and a remedy that fits."""

import copy
from typing import Any

import pytest

from k8s.state.explain import Surroundings, explain_pod
from k8s.state.explain_service import (
    explain_applications,
    explain_claim,
    explain_cluster,
    explain_job,
    explain_refusal,
    explain_service,
    gist,
)
from k8s.state.findings import Finding, merge_alike, name_of
from k8s.state.quantity import parse_quantity, parse_time, tell_age, tell_amount
from k8s.state.scheduling import requests_of
from tests.kube_worlds import (
    IMAGE,
    NOW_S,
    PENDING,
    ago,
    applications,
    broken,
    condition,
    ended,
    event,
    failed_job,
    healthy,
    node,
    pod,
    ray_cluster,
    running,
    service,
    unschedulable,
    waiting,
)

Manifest = dict[str, Any]


def explain(one: Manifest, *events: Manifest, **around: Any) -> Finding:
    found = explain_pod(one, Surroundings(NOW_S, events, **around))
    assert found is not None
    return found


def test_a_pod_that_is_ready_needs_no_words() -> None:
    assert explain_pod(pod("a"), Surroundings(NOW_S)) is None
    assert explain_pod(pod("a", phase="Succeeded"), Surroundings(NOW_S)) is None


FEW_GPUS = (
    "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/"
    "control-plane: }, 4 Insufficient nvidia.com/gpu. preemption: 0/5 nodes are available: 1"
    " Preemption is not helpful for scheduling, 4 No preemption victims found for incoming pod."
)


def test_too_few_gpus_are_told_with_what_is_asked_and_what_there_is() -> None:
    nodes = [node("a"), node("b", gpus=4)]
    found = explain(unschedulable("p", "heavy-gpu", FEW_GPUS, gpus=1), nodes=nodes)
    assert found.weight == "waiting"
    assert found.subject == "pod p (heavy-gpu)"
    assert (
        "has been waiting for 12 min for a node: none of 5 nodes takes it: 1 is of the control"
        in (found.says)
    )
    assert "4 have too little nvidia.com/gpu free (it asks for 1, others use" in found.says
    assert "more nodes with nvidia.com/gpu" in found.remedy
    large = explain(unschedulable("p", "heavy-gpu", FEW_GPUS, gpus=8), nodes=nodes)
    assert "it asks for 8, the largest node has 4 in all" in large.says
    assert "a node with 8 nvidia.com/gpu" in large.remedy
    none = explain(unschedulable("p", "heavy-gpu", FEW_GPUS, gpus=1), nodes=[node("a")])
    assert "nodes that offer nvidia.com/gpu" in none.remedy
    unread = explain(unschedulable("p", "heavy-gpu", FEW_GPUS, gpus=1))
    assert "4 have too little nvidia.com/gpu free (it asks for 1)" in unread.says


@pytest.mark.parametrize(
    ("message", "says", "remedy"),
    [
        ("0/1 nodes are available: 1 Insufficient memory.", "it asks for 16 GiB", "more nodes"),
        ("0/1 nodes are available: 1 Insufficient cpu.", "too little cpu free (it asks for 4", ""),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint {nvidia.com/gpu: present}.",
            "2 have the taint nvidia.com/gpu: present, which it does not tolerate",
            "tolerate nvidia.com/gpu: present",
        ),
        (
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
            "2 have not the labels it asks for (nvidia.com/gpu.product=NVIDIA-H100)",
            "a node with nvidia.com/gpu.product=NVIDIA-H100",
        ),
        ("0/1 nodes are available: 1 node(s) were unschedulable.", "1 is cordoned", "uncordon"),
        ("0/3 nodes are available: 3 Too many pods.", "3 have as many pods as", "more nodes"),
        ("no nodes available to schedule pods", "no nodes available to schedule pods", ""),
        ("0/1 nodes are available: 1 node(s) were odd.", "1: node(s) were odd", ""),
    ],
)
def test_each_reason_of_the_scheduler_is_said_in_words(
    message: str, says: str, remedy: str
) -> None:
    one = unschedulable("p", "light-gpu", message)
    one["spec"]["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-H100"}
    found = explain(one)
    assert says in found.says
    assert remedy in found.remedy


def test_a_claim_without_a_volume_is_named_with_its_cause() -> None:
    message = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "sm4ll-models", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "fast"},
        "status": {"phase": "Pending"},
    }
    one = unschedulable("p", "light-gpu", message)
    assert (
        "PersistentVolumeClaim sm4ll-models has no volume yet" in explain(one, claims=[claim]).says
    )
    absent = 'persistentvolumeclaim "sm4ll-models" not found'
    gone = explain(unschedulable("p", "light-gpu", absent), claims=[])
    assert gone.weight == "broken"
    assert "does not exist" in gone.says
    why = event(claim, "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')
    found = explain_claim(claim, [why])
    assert found is not None
    assert found.subject == "claim sm4ll-models (storage class fast)"
    assert '"fast" not found' in found.says
    assert "ReadWriteMany" in found.remedy
    first = event(claim, "WaitForFirstConsumer", "waiting for first consumer to be created")
    assert explain_claim(claim, [first]) is None
    assert explain_claim({**claim, "status": {"phase": "Bound"}}, []) is None


def test_a_node_that_is_being_added_is_worth_waiting_for() -> None:
    one = unschedulable("p", "light-gpu", FEW_GPUS, gpus=1)
    grows = explain(one, event(one, "TriggeredScaleUp", "pod triggered scale-up: [{ng 1->2}]"))
    assert "A node is being added" in grows.says
    stays = explain(one, event(one, "NotTriggerScaleUp", "pod didn't trigger scale-up"))
    assert "The cluster autoscaler adds none" in stays.says


PULL = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '


@pytest.mark.parametrize(
    ("reason", "message", "weight", "says", "remedy"),
    [
        ("ErrImagePull", f"{PULL}{IMAGE}: not found", "broken", "does not exist", "push the image"),
        (
            "ErrImagePull",
            f"{PULL}unexpected status from HEAD request: 401 Unauthorized",
            "broken",
            "refuses it",
            "docker-registry",
        ),
        (
            "ErrImagePull",
            "pull access denied, repository does not exist or may require authorization",
            "broken",
            "or does not exist",
            "imagePullSecrets",
        ),
        (
            "ErrImagePull",
            f"{PULL}dial tcp 10.0.0.1:443: i/o timeout",
            "waiting",
            "cannot be reached from the node",
            "DNS",
        ),
        ("InvalidImageName", "", "broken", "is no name of an image", "image"),
        ("ErrImageNeverPull", "", "broken", "not on the node", "kind load docker-image"),
    ],
)
def test_an_image_that_cannot_be_pulled(
    reason: str, message: str, weight: str, says: str, remedy: str
) -> None:
    found = explain(pod("p", phase="Pending", statuses=[waiting("ray-worker", reason, message)]))
    assert found.weight == weight
    assert f"image {IMAGE}" in found.says or IMAGE in found.says
    assert says in found.says
    assert remedy in found.remedy


def test_back_off_alone_says_nothing_and_the_event_does() -> None:
    backed_off = waiting("ray-worker", "ImagePullBackOff", f'Back-off pulling image "{IMAGE}"')
    one = pod("p", phase="Pending", statuses=[backed_off])
    assert explain(one).weight == "waiting"
    why = event(one, "Failed", f'Failed to pull image "{IMAGE}": {PULL}{IMAGE}: not found')
    assert explain(one, why).weight == "broken"
    other = copy.deepcopy(why)
    other["involvedObject"]["uid"] = "of one that had its name before"
    assert explain(one, other).weight == "waiting"


@pytest.mark.parametrize(
    ("message", "says", "remedy"),
    [
        (
            'secret "sm4ll-database" not found',
            "needs the Secret sm4ll-database, which does not exist",
            "kubectl create secret generic sm4ll-database",
        ),
        (
            'configmap "sm4ll-family" not found',
            "needs the ConfigMap sm4ll-family, which does not exist",
            "sm4ll k8s apply",
        ),
        (
            "couldn't find key url in Secret sm4ll/sm4ll-blobs",
            "needs the key url of the Secret sm4ll-blobs",
            "kubectl edit secret sm4ll-blobs",
        ),
        (
            "container has runAsNonRoot and image will run as root (pod: ...)",
            "must not run as root",
            "runAsUser",
        ),
    ],
)
def test_a_container_that_lacks_what_it_refers_to(message: str, says: str, remedy: str) -> None:
    stuck = waiting("ray-worker", "CreateContainerConfigError", message)
    found = explain(pod("p", phase="Pending", statuses=[stuck]))
    assert found.weight == "broken"
    assert says in found.says
    assert remedy in found.remedy


def test_a_container_that_ends_again_and_again_tells_why_and_its_last_words() -> None:
    crash = waiting("ray-worker", "CrashLoopBackOff", restartCount=5, lastState=ended(1))
    found = explain(
        pod("p", statuses=[crash]),
        last_lines={("p", "ray-worker"): "ConfigError: eye@9 is not there"},
    )
    assert found.weight == "broken"
    assert 'exit code 1; its last line: "ConfigError: eye@9 is not there"' in found.says
    assert "sm4ll k8s logs --pod p --previous" in found.remedy
    memory = waiting(
        "ray-worker", "CrashLoopBackOff", restartCount=1, lastState=ended(137, "OOMKilled")
    )
    short = explain(pod("p", statuses=[memory]))
    assert short.weight == "waiting", "once may be chance"
    assert "memory limit of 16Gi (OOMKilled)" in short.says
    killed = waiting("ray-worker", "CrashLoopBackOff", restartCount=4, lastState=ended(135))
    assert "/dev/shm is too small" in explain(pod("p", statuses=[killed])).says


def test_a_restart_is_told_for_an_hour_though_the_pod_is_ready() -> None:
    again = {**running(), "restartCount": 1, "lastState": ended(137, "OOMKilled", minutes=12)}
    one = pod("p")
    one["status"]["containerStatuses"] = [again]
    found = explain(one)
    assert found.weight == "note"
    assert "runs again; ray-worker ended 12 min ago: it needed more than its memory" in found.says
    again["lastState"] = ended(137, "OOMKilled", hours=3)
    assert explain_pod(one, Surroundings(NOW_S)) is None


def test_a_worker_waits_for_its_head_and_an_init_container_for_nobody_else() -> None:
    init = running("wait-gcs-ready", ready=False)
    one = pod("p", phase="Pending", statuses=[waiting("ray-worker", "PodInitializing")])
    one["status"]["initContainerStatuses"] = [init]
    assert "has been waiting for 30 min for the head" in explain(one).says
    one["status"]["initContainerStatuses"] = [running("warm", ready=False)]
    assert "its init container warm has been running" in explain(one).says
    one["spec"]["initContainers"] = [{"name": "warm", "restartPolicy": "Always"}]
    assert "waits for the init containers" in explain(one).says, "a sidecar is not waited for"


def test_what_cannot_be_mounted_is_said_by_an_event() -> None:
    one = pod("p", phase="Pending", statuses=[waiting("ray-worker", "ContainerCreating")])
    assert "is being made" in explain(one).says
    why = event(one, "FailedMount", 'MountVolume.SetUp failed for "key": secret "x" not found')
    found = explain(one, why)
    assert 'secret "x" not found' in found.says
    assert "sm4ll k8s doctor" in found.remedy


PROBE = {
    "exec": {
        "command": [
            *("bash", "-c"),
            "wget -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success && "
            "wget -T 2 -q -O- http://localhost:8000/-/healthz | grep success",
        ]
    }
}


def test_a_worker_without_a_replica_is_unready_by_design() -> None:
    one = pod("p", statuses=[running(ready=False)])
    one["spec"]["containers"][0]["readinessProbe"] = PROBE
    idle = explain(one, event(one, "Unhealthy", "Readiness probe failed: success"))
    assert idle.weight == "note"
    assert "by design" in idle.says
    dead = explain(one, event(one, "Unhealthy", "Readiness probe failed: wget: can't connect"))
    assert dead.weight == "waiting"
    assert (
        "its readiness probe has been failing for 5 min: Readiness probe failed: wget" in dead.says
    )
    one["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/api/healthz"}}
    assert explain(one).weight == "waiting", "ours does not ask for a proxy"


def test_a_pod_that_ends_is_given_its_time_and_then_its_finalizer_is_named() -> None:
    one = pod("p")
    one["metadata"] |= {"deletionTimestamp": ago(seconds=-60)}
    assert explain(one).weight == "note"
    one["metadata"] |= {"deletionTimestamp": ago(minutes=9), "finalizers": ["ray.io/gcs-ft"]}
    late = explain(one)
    assert late.weight == "waiting"
    assert "9 min ago and is kept by the finalizer ray.io/gcs-ft" in late.says
    del one["metadata"]["finalizers"]
    one["spec"]["nodeName"] = "gpu-a"
    assert "gpu-a does not say that it has ended" in explain(one).says


def test_an_eviction_names_what_ran_out() -> None:
    message = "The node was low on resource: ephemeral-storage."
    found = explain(pod("p", phase="Failed", reason="Evicted", message=message))
    assert "was evicted: The node was low on resource: ephemeral-storage." in found.says
    assert "ephemeral-storage request" in found.remedy
    gone = explain(pod("p", phase="Failed", reason="NodeLost", message="gone"))
    assert "gone (NodeLost)" in gone.says


def test_a_pod_that_a_queue_holds_back_names_the_gate() -> None:
    gated = condition("PodScheduled", False, "SchedulingGated", "held", minutes=3)
    one = pod("p", phase="Pending", statuses=[], conditions=[gated])
    one["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert "is held back for 3 min by kueue.x-k8s.io/admission" in explain(one).says


def test_pods_of_one_pool_with_one_trouble_are_one_finding() -> None:
    found = [("a", explain(one)) for one in broken() if one["kind"] == "Pod" and _is_heavy(one)]
    merged = merge_alike(found)
    assert len(merged) == 1
    assert merged[0].others == 1


def _is_heavy(one: Manifest) -> bool:
    return "heavy" in name_of(one)


def told(one: Manifest, *events: Manifest) -> list[Finding]:
    return list(explain_service(one, events, NOW_S))


def test_a_service_that_is_well_needs_no_words() -> None:
    assert told(service()) == []


def test_a_service_that_no_operator_looks_at() -> None:
    one = service()
    one["status"] = {}
    (found,) = told(one)
    assert found.weight == "broken"
    assert "nobody has looked at it for 3 h: no KubeRay operator" in found.says
    one["metadata"]["creationTimestamp"] = ago(seconds=5)
    (found,) = told(one)
    assert found.weight == "waiting"
    one["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    (found,) = told(one)
    assert found.weight == "note"


@pytest.mark.parametrize(
    ("reason", "message", "weight", "says"),
    [
        ("InitializingTimeout", "waited 30m", "broken", "KubeRay gave up: waited 30m"),
        ("ValidationFailed", "name is too long", "broken", "KubeRay refuses it: name is too long"),
        ("Initializing", "", "waiting", "has been starting for 5 min"),
        ("ZeroServeEndpoints", "", "waiting", "no pod has answered requests for 5 min"),
    ],
)
def test_a_service_that_is_not_ready(reason: str, message: str, weight: str, says: str) -> None:
    (found,) = told(service(conditions=[condition("Ready", False, reason, message)]))
    assert found.weight == weight
    assert says in found.says


def test_suspended_rolled_back_and_changed_services_say_so() -> None:
    (found,) = told(service(conditions=[condition("Suspended", True)]))
    assert "is suspended" in found.says
    (found,) = told(service(conditions=[condition("RollbackInProgress", True)]))
    assert "has been going back to the cluster of before for 5 min" in found.says
    changed = service()
    changed["metadata"]["generation"] = 2
    (found,) = told(changed)
    assert "has not been looked at" in found.says


def test_warnings_of_the_operator_are_told_while_they_are_fresh() -> None:
    one = service()
    fresh = event(one, "FailedToUpdateService", "no permission", minutes=2)
    (found,) = told(one, fresh)
    assert found.says == "no permission"
    assert told(one, {**fresh, "lastTimestamp": ago(hours=1)}) == []
    (found,) = told(one, event(one, "InvalidRayServiceSpec", "The spec is invalid: x"))
    assert found.weight == "broken"


def test_a_deployment_that_fails_is_told_by_its_exception_and_the_app_points_there() -> None:
    (service_now,) = [one for one in broken() if one["kind"] == "RayService"]
    found = list(explain_applications(service_now["status"]["pendingServiceStatus"]))
    app, deployment = found
    assert app.weight == deployment.weight == "broken"
    assert app.subject == f"application sm4ll on {PENDING}"
    assert deployment.subject == "Expert-eye@1"
    assert deployment.says == (
        "its replicas have failed to start 3 times: serve.errors.BundleInvalid: eye@1 does not"
        " reproduce its golden sample 2: PSNR 18.2 dB, 30 wanted"
    )
    assert "--expert eye@1" in deployment.remedy


def test_a_deployment_that_waits_for_room_says_what_it_needs() -> None:
    status = applications(Router="UPDATING")
    status["sm4ll"]["status"] = "DEPLOYING"
    status["sm4ll"]["serveDeploymentStatuses"]["Router"]["message"] = (
        "Deployment 'Router' in application 'sm4ll' has 2 replicas that have taken more than 30s"
        " to be scheduled. This may be due to waiting for the cluster to auto-scale or for a"
        ' runtime environment to be installed. Resources required for each replica: {"CPU": 3.0},'
        ' total resources available: {"CPU": 1.0}. Use `ray status` for more details.'
    )
    (found,) = explain_applications({"applicationStatuses": status})
    assert found.says == '2 replicas wait for room on a Ray node, each needs {"CPU": 3.0}'


QUOTA = (
    'pods "sm4ll-x-worker-1" is forbidden: exceeded quota: gpus, requested:'
    " requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=8, limited:"
    " requests.nvidia.com/gpu=8"
)


def test_a_quota_is_told_with_its_numbers() -> None:
    failure = condition("ReplicaFailure", True, "FailedCreateWorkerPod", QUOTA)
    (found,) = explain_cluster(ray_cluster(conditions=[failure]))
    assert found.says == (
        "a pod is refused by the quota gpus: it asks for requests.nvidia.com/gpu=1,"
        " requests.nvidia.com/gpu=8 is in use, requests.nvidia.com/gpu=8 is the limit"
    )
    must = explain_refusal('pods "x" is forbidden: failed quota: q: must specify limits.memory')
    assert must.says == "a pod is refused by the quota q: it must say limits.memory"
    secure = explain_refusal('pods "x" is forbidden: violates PodSecurity "restricted:latest"')
    assert "pod security" in secure.says


def test_a_failed_job_names_the_cause_of_its_pods() -> None:
    cause = Finding("waiting", "pod sm4ll-migrate-x", "migrate ended: exit code 1")
    found = explain_job(failed_job(), [cause])
    assert found is not None
    assert found.says == "failed on every try; migrate ended: exit code 1"
    assert "sm4ll k8s logs --job migrate" in found.remedy
    done = {**failed_job(), "status": {"succeeded": 1}}
    assert explain_job(done, [cause]) is None


def test_a_long_message_is_cut_and_an_empty_one_stays_empty() -> None:
    assert gist("") == ""
    assert len(gist("x" * 1000)) == 240
    assert gist("\x1b[36mred\x1b[39m") == "red"


def test_requests_are_what_the_scheduler_adds_up() -> None:
    one = pod("p", gpus=1)
    one["spec"]["containers"].append({"name": "b", "resources": {"requests": {"cpu": "500m"}}})
    one["spec"]["initContainers"] = [{"name": "i", "resources": {"requests": {"cpu": "8"}}}]
    assert requests_of(one) == {"cpu": 8.0, "memory": 16 * 2**30, "nvidia.com/gpu": 1.0}


@pytest.mark.parametrize(
    ("text", "amount"),
    [("500m", 0.5), ("16Gi", 16 * 2**30), ("2", 2), ("1e3", 1000), (None, 0), ("many", 0), (4, 4)],
)
def test_amounts_are_read_as_kubernetes_writes_them(text: object, amount: float) -> None:
    assert parse_quantity(text) == pytest.approx(amount)


def test_amounts_and_ages_are_told_as_people_say_them() -> None:
    assert tell_amount("memory", 16 * 2**30) == "16 GiB"
    assert tell_amount("memory", 512 * 2**20) == "512 MiB"
    assert tell_amount("requests.memory", 2**30) == "1 GiB"
    assert tell_amount("cpu", 31.85) == "31.85"
    assert [tell_age(s) for s in (5, 600, 12000, 300000)] == ["5 s", "10 min", "3 h 20 min", "3 d"]
    assert parse_time("2026-11-26T03:00:00Z") == NOW_S
    assert parse_time("soon") is None


def test_worlds_are_as_named() -> None:
    """The fixtures that other tests build on."""
    around = Surroundings(NOW_S)
    assert not [
        found for one in healthy() if one["kind"] == "Pod" and (found := explain_pod(one, around))
    ]
