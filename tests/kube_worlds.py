"""Objects of clusters as real ones write them: one that is well, one that is not."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.kube_server import KubeServer

Manifest = dict[str, Any]
NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
NOW_S = NOW.timestamp()
IMAGE = "ghcr.io/sm4ll/serve:2026.11"
ACTIVE, PENDING = "sm4ll-4fkxq", "sm4ll-9wzlm"
EXPERTS = ("bg@1", "bottom@1", "dress@1", "eye@1", "face@1", "shoes@1", "top@1")


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: bool, reason: str = "", message: str = "", **span: float) -> Any:
    return {
        "type": kind,
        "status": str(status),
        "reason": reason,
        "message": message,
        "lastTransitionTime": ago(**(span or {"minutes": 5})),
    }


def running(name: str = "ray-worker", *, ready: bool = True, image: str = IMAGE) -> Manifest:
    return {
        "name": name,
        "ready": ready,
        "started": True,
        "restartCount": 0,
        "image": image,
        "state": {"running": {"startedAt": ago(minutes=30)}},
        "lastState": {},
    }


def waiting(name: str, reason: str, message: str = "", **more: Any) -> Manifest:
    return {
        **running(name, ready=False),
        "started": False,
        "state": {"waiting": {"reason": reason, "message": message}},
        **more,
    }


def ended(code: int, reason: str = "Error", **span: float) -> Manifest:
    at = ago(**(span or {"minutes": 2}))
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": at}}


def pod(
    name: str,
    pool: str = "router",
    *,
    cluster: str = ACTIVE,
    gpus: int = 0,
    statuses: list[Manifest] | None = None,
    conditions: list[Manifest] | None = None,
    **status: Any,
) -> Manifest:
    """One of the service's pods: well, where nothing else is said."""
    head = pool == "head"
    container = "ray-head" if head else "ray-worker"
    resources = {"cpu": "4", "memory": "16Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    labels = {
        "app.kubernetes.io/part-of": "sm4ll",
        "ray.io/cluster": cluster,
        "ray.io/node-type": "head" if head else "worker",
        "ray.io/group": "headgroup" if head else pool,
        "sm4ll.dev/pool": pool,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "sm4ll", "uid": f"uid-{name}", "labels": labels},
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": IMAGE,
                    "resources": {"requests": resources, "limits": resources},
                }
            ],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "sm4ll-models"}}],
        },
        "status": {
            "phase": "Running",
            "conditions": conditions
            or [condition("PodScheduled", True), condition("Ready", statuses is None)],
            "containerStatuses": [running(container)] if statuses is None else statuses,
            **status,
        },
    }


def unschedulable(name: str, pool: str, message: str, **more: Any) -> Manifest:
    scheduled = condition("PodScheduled", False, "Unschedulable", message, minutes=12)
    return pod(name, pool, phase="Pending", statuses=[], conditions=[scheduled], **more)


def event(about: Manifest, reason: str, message: str, **span: float) -> Manifest:
    metadata = about["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{reason.lower()}", "namespace": "sm4ll"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": ago(**(span or {"minutes": 1})),
        "involvedObject": {
            "kind": about["kind"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
        },
    }


GROUPS = (("router", 2, 2, 4, 0), ("segment", 1, 1, 2, 0), ("light-gpu-l4", 1, 1, 4, 1))


def cluster_spec() -> Manifest:
    groups = [
        {
            "groupName": name,
            "replicas": wanted,
            "minReplicas": least,
            "maxReplicas": most,
            "numOfHosts": 1,
            "template": {"spec": {"containers": pod("x", name, gpus=gpus)["spec"]["containers"]}},
        }
        for name, wanted, least, most, gpus in GROUPS
    ]
    head = pod("x", "head")["spec"]["containers"]
    return {
        "rayVersion": "2.60.0",
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {"template": {"spec": {"containers": head}}},
        "workerGroupSpecs": groups,
    }


def applications(**statuses: str) -> Manifest:
    """
    Args:
        statuses: of single deployments, `Router="UNHEALTHY"`.
    """
    names = ("Router", "JobRunner", "Segmenter-classical", *(f"Expert-{one}" for one in EXPERTS))
    deployments = {name: {"status": statuses.get(name, "HEALTHY")} for name in names}
    return {"sm4ll": {"status": "RUNNING", "serveDeploymentStatuses": deployments}}


def service(**status: Any) -> Manifest:
    told = {
        "observedGeneration": 1,
        "serviceStatus": "Running",
        "numServeEndpoints": 4,
        "conditions": [
            condition("Ready", True, "NonZeroServeEndpoints", hours=3),
            condition("UpgradeInProgress", False, "NoPendingCluster", hours=3),
        ],
        "activeServiceStatus": {
            "rayClusterName": ACTIVE,
            "applicationStatuses": applications(),
        },
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": "sm4ll",
            "namespace": "sm4ll",
            "uid": "uid-sm4ll",
            "generation": 1,
            "creationTimestamp": ago(hours=3),
        },
        "spec": {"rayClusterConfig": cluster_spec(), "serveConfigV2": "applications: []\n"},
        "status": {**told, **status},
    }


def ray_cluster(name: str = ACTIVE, **status: Any) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": name,
            "namespace": "sm4ll",
            "uid": f"uid-{name}",
            "labels": {"ray.io/originated-from-cr-name": "sm4ll"},
            "annotations": {"ray.io/kuberay-version": "v1.7.0"},
            "creationTimestamp": ago(hours=3) if name == ACTIVE else ago(minutes=12),
        },
        "spec": cluster_spec(),
        "status": status,
    }


def pods_of(cluster: str = ACTIVE) -> list[Manifest]:
    made = [pod(f"{cluster}-head-7tq2p", "head", cluster=cluster)]
    for name, wanted, _, _, gpus in GROUPS:
        made += [
            pod(f"{cluster}-{name}-worker-{index}", name, cluster=cluster, gpus=gpus)
            for index in range(wanted)
        ]
    return made


def node(
    name: str, gpus: int = 0, product: str = "NVIDIA-L4", labels: dict[str, str] | None = None
) -> Manifest:
    disk = {"ephemeral-storage": "400Gi"}
    gpu = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    own = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "23034"} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**own, **(labels or {})}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "31850m", "memory": "125Gi", "pods": "110", **disk, **gpu},
            "conditions": [condition("Ready", True)],
        },
    }


def serve_service() -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sm4ll-serve-svc", "namespace": "sm4ll"},
        "spec": {"type": "ClusterIP", "ports": [{"name": "serve", "port": 8000}]},
        "status": {"loadBalancer": {}},
    }


def healthy() -> list[Manifest]:
    nodes = [node("cpu-a"), node("gpu-a", gpus=4)]
    return [*nodes, service(), ray_cluster(), *pods_of(), serve_service()]


def broken() -> list[Manifest]:
    """An upgrade in the night: the new image has a typo on GPU pods, memory is short elsewhere."""
    crashed = waiting(
        "ray-worker",
        "CrashLoopBackOff",
        "back-off 5m0s restarting failed container=ray-worker pod=...",
        restartCount=7,
        lastState=ended(137, "OOMKilled"),
    )
    pulled = waiting(
        "ray-worker",
        "ImagePullBackOff",
        f'Back-off pulling image "{IMAGE}"',
    )
    lonely = unschedulable(
        f"{PENDING}-heavy-gpu-h100-worker-0",
        "heavy-gpu-h100",
        "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/"
        "control-plane: }, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 1"
        " Preemption is not helpful for scheduling, 2 No preemption victims found for incoming"
        " pod.",
        cluster=PENDING,
        gpus=1,
    )
    second = copy.deepcopy(lonely)
    second["metadata"] |= {"name": f"{PENDING}-heavy-gpu-h100-worker-1", "uid": "uid-2"}
    light = pod(
        f"{PENDING}-light-gpu-l4-worker-0",
        "light-gpu-l4",
        cluster=PENDING,
        gpus=1,
        phase="Pending",
        statuses=[pulled],
    )
    failing = applications()
    failing["sm4ll"]["status"] = "DEPLOY_FAILED"
    failing["sm4ll"]["serveDeploymentStatuses"]["Expert-eye@1"] = {
        "status": "DEPLOY_FAILED",
        "message": "The deployment failed to start 3 times in a row. This may be due to a problem"
        " with its constructor or initial health check failing. See controller logs for details."
        " Error:\n\x1b[36mray::ServeReplica:sm4ll:Expert-eye@1.initialize_and_get_metadata()"
        '\x1b[39m (pid=231, ip=10.1.2.3)\n  File "/opt/sm4ll/deployments/expert.py", line 120, in'
        " __init__\n    self._load()\nserve.errors.BundleInvalid: eye@1 does not reproduce its"
        " golden sample 2: PSNR 18.2 dB, 30 wanted",
    }
    return [
        node("cpu-a"),
        node("gpu-a", gpus=4),
        node("control", labels={"node-role.kubernetes.io/control-plane": ""}),
        service(
            conditions=[
                condition("Ready", True, "NonZeroServeEndpoints", hours=3),
                condition("UpgradeInProgress", True, "BothActivePendingClustersExist", minutes=12),
            ],
            activeServiceStatus={
                "rayClusterName": ACTIVE,
                "applicationStatuses": applications(),
                "trafficRoutedPercent": 80,
                "targetCapacity": 100,
            },
            pendingServiceStatus={
                "rayClusterName": PENDING,
                "applicationStatuses": failing,
                "trafficRoutedPercent": 20,
                "targetCapacity": 50,
            },
        ),
        ray_cluster(),
        ray_cluster(PENDING),
        *pods_of(),
        pod(f"{PENDING}-head-2xk4c", "head", cluster=PENDING),
        pod(f"{PENDING}-router-worker-0", "router", cluster=PENDING, statuses=[crashed]),
        light,
        lonely,
        second,
        serve_service(),
        event(
            light,
            "Failed",
            f'Failed to pull image "{IMAGE}": failed to pull and unpack image "{IMAGE}": failed to'
            f' resolve reference "{IMAGE}": {IMAGE}: not found',
        ),
        failed_job(),
    ]


def failed_job() -> Manifest:
    failed = condition("Failed", True, "BackoffLimitExceeded", "Job has reached the limit")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "sm4ll-migrate",
            "namespace": "sm4ll",
            "labels": {"app.kubernetes.io/part-of": "sm4ll"},
        },
        "spec": {"template": {"spec": {"containers": []}}},
        "status": {"failed": 3, "conditions": [failed]},
    }


def fill(kube: KubeServer, objects: list[Manifest]) -> None:
    """The server gives uids of its own, so events name no other."""
    for one in objects:
        if one["kind"] == "Event":
            about = {**one["involvedObject"], "uid": ""}
            one = {**one, "involvedObject": about}
        kube.put(one)
