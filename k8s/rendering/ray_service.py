"""Shape, pools and Serve config to the RayService; the one place that knows its form.

Source: ray-operator/apis/ray/v1/{rayservice,raycluster}_types.go (KubeRay v1.7.0).
"""

from collections.abc import Mapping
from typing import Any

from k8s.rendering import containers, volumes
from k8s.rendering.containers import PART_OF, PROVIDERS, STORES
from k8s.rendering.pools import PlannedCluster, Pool
from k8s.rendering.serve_config import POOL_LABEL, longest_request_s
from k8s.rendering.shape import RAY_VERSION, ClusterShape
from k8s.rendering.shared_memory import GIB, STORE_SHARE
from k8s.rendering.units import cores, gib
from k8s.rendering.yaml_text import Document, Line, to_yaml

HEAD = "head"
HEAD_SHARED_MEMORY_GIB = 0.5
"""No replica runs there, so nothing large does."""
AUTOSCALER_CPUS, AUTOSCALER_GIB = 0.5, 0.5
GCS_ADDRESS = "SM4LL_GCS_ADDRESS"
NEVER_MOVED: Mapping[str, str] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""What makes nodes come and go empties none with such a pod on it, each by its own word."""

NOTES: Mapping[str, str] = {
    "serveConfigV2:": "Edits of this string are taken in place: KubeRay puts them to the head's "
    "dashboard.\nWritten by k8s/rendering/serve_config.py.",
    "num-cpus: '0'": "No replica on the head: what it holds, nothing else has.",
    "cluster-autoscaler.kubernetes.io": "Its death is a pause of all scaling and healing, and "
    "without Redis the end of the cluster.",
    "redisAddress:": "Kubernetes puts the variable's value in: KubeRay copies this into the head's "
    "environment,\nbehind the variable that the secret fills.",
    "readinessProbe:": "Ready is who answers requests: KubeRay's services send to every ready "
    "worker.\nA pod without a replica runs no proxy, and is on its way up or down.",
    "preStop:": "Serve on until every balancer knows, and the longest request is over.",
    "{name: HOME,": "Ray's image has its Python in /home/ray, and a volume there would hide it.",
    "{name: family, configMap": "Whole: a list of its files here would make each new version a "
    "new cluster.",
    "object-store-memory:": "Below /dev/shm, which other libraries use a little as well.",
    "minReplicas:": "Bounds and tolerations are all that may change here without another cluster, "
    "and\na group that is new at the end (k8s/rendering/cluster_hash.py).",
}


def build_ray_service(
    cluster: PlannedCluster, shape: ClusterShape, serve_config: Mapping[str, Any]
) -> Document:
    longest_s = longest_request_s(cluster.family)
    labels = dict(PART_OF)
    if shape.kueue_queue:
        labels["kueue.x-k8s.io/queue-name"] = shape.kueue_queue
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": shape.name, "labels": labels},
        "spec": {
            "upgradeStrategy": _upgrade(shape),
            # Of the old cluster, after the last request was sent to it.
            "rayClusterDeletionDelaySeconds": containers.grace_s(longest_s),
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": to_yaml(serve_config),
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                **_autoscaler(shape),
                **_optional(shape),
                "headGroupSpec": _head_group(shape),
                "workerGroupSpecs": [
                    _worker_group(pool, shape, longest_s) for pool in cluster.pools
                ],
            },
        },
    }


def _upgrade(shape: ClusterShape) -> Document:
    upgrade = shape.upgrade
    if upgrade.strategy == "NewCluster":
        return {"type": "NewCluster"}
    return {
        "type": upgrade.strategy,
        "clusterUpgradeOptions": {
            "gatewayClassName": upgrade.gateway_class,
            "maxSurgePercent": upgrade.surge_percent,
            "stepSizePercent": upgrade.step_percent,
            "intervalSeconds": upgrade.interval_s,
        },
    }


def _autoscaler(shape: ClusterShape) -> Document:
    amount = {"cpu": cores(AUTOSCALER_CPUS), "memory": gib(AUTOSCALER_GIB)}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": shape.idle_timeout_s,
            "imagePullPolicy": shape.image_pull_policy,
            "resources": {"requests": Line(amount), "limits": Line(memory=amount["memory"])},
            "securityContext": containers.container_security(),
            "env": [Line(name="HOME", value=volumes.HOME)],
            "volumeMounts": [
                Line(name="tmp", mountPath="/tmp"),
                Line(name="home", mountPath=volumes.HOME),
            ],
        },
    }


def _optional(shape: ClusterShape) -> Document:
    options: Document = {}
    if shape.token_auth:
        options["authOptions"] = {"mode": "token", "secretName": "sm4ll-ray-token"}
    if shape.gcs_fault_tolerance:
        # No externalStorageNamespace: two clusters of an upgrade must not share their tables.
        password = {"secretKeyRef": {"name": "sm4ll-redis", "key": "password"}}
        options["gcsFaultToleranceOptions"] = {
            "redisAddress": f"$({GCS_ADDRESS})",
            "redisPassword": {"valueFrom": Line(password)},
        }
    return options


def _head_group(shape: ClusterShape) -> Document:
    secrets = [(GCS_ADDRESS, "sm4ll-redis", "address", False)] if shape.gcs_fault_tolerance else []
    container = {
        "name": "ray-head",
        "image": shape.image,
        "imagePullPolicy": shape.image_pull_policy,
        "ports": containers.ports(containers.HEAD_PORTS),
        "env": containers.env(shape, has_gpu=False, secrets=secrets),
        "resources": containers.resources(
            cpu=shape.head.cpu,
            memory_gib=shape.head.memory_gib + HEAD_SHARED_MEMORY_GIB,
            scratch_gib=shape.scratch_gib,
        ),
        "securityContext": containers.container_security(),
        "volumeMounts": volumes.mounts(shape),
    }
    return {
        "rayStartParams": {
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": _store_bytes(HEAD_SHARED_MEMORY_GIB),
        },
        "template": {
            "metadata": {
                "labels": containers.pool_labels(HEAD),
                "annotations": dict(NEVER_MOVED),
            },
            "spec": {
                # The autoscaler beside it asks the API server for pods.
                **containers.pod_spec(shape, needs_token=True),
                "containers": [container],
                "volumes": volumes.list_volumes(shape, HEAD_SHARED_MEMORY_GIB),
            },
        },
    }


def _worker_group(pool: Pool, shape: ClusterShape, longest_s: float) -> Document:
    return {
        "groupName": pool.name,
        "minReplicas": pool.min_pods,
        "maxReplicas": pool.max_pods,
        "replicas": pool.min_pods,
        "labels": Line({POOL_LABEL: pool.name}),
        "rayStartParams": {
            "num-cpus": str(pool.size.cpu),
            "num-gpus": "1" if pool.gpu else "0",
            "object-store-memory": _store_bytes(pool.shared_memory_gib),
        },
        "template": {
            "metadata": {"labels": Line(containers.pool_labels(pool.name))},
            "spec": {
                **containers.pod_spec(shape, needs_token=False),
                **_where(pool, shape),
                "terminationGracePeriodSeconds": containers.grace_s(longest_s),
                "containers": [_worker_container(pool, shape, longest_s)],
                "volumes": volumes.list_volumes(shape, pool.shared_memory_gib),
            },
        },
    }


def _worker_container(pool: Pool, shape: ClusterShape, longest_s: float) -> Document:
    secrets = (*STORES, *PROVIDERS) if pool.role == "router" else PROVIDERS
    return {
        "name": "ray-worker",
        "image": shape.gpu_image if pool.has_weights else shape.image,
        "imagePullPolicy": shape.image_pull_policy,
        "ports": containers.ports(containers.PORTS),
        "env": containers.env(shape, has_gpu=pool.gpu is not None, secrets=secrets),
        "resources": containers.resources(
            cpu=pool.size.cpu_request or pool.size.cpu,
            memory_gib=pool.memory_gib,
            scratch_gib=shape.scratch_gib,
            gpu=pool.gpu,
        ),
        "readinessProbe": containers.worker_readiness(),
        "lifecycle": containers.drain(longest_s),
        "securityContext": containers.container_security(),
        "volumeMounts": volumes.mounts(shape),
    }


def _where(pool: Pool, shape: ClusterShape) -> Document:
    where: Document = {}
    if pool.role == "router" and shape.spread_over_zones:
        where["topologySpreadConstraints"] = containers.spread(pool)
    if pool.gpu is not None:
        assert pool.kind is not None
        where["affinity"] = containers.on_product(pool.gpu, pool.kind)
        where["tolerations"] = [
            Line(
                {
                    "key": taint.key,
                    "operator": "Exists" if taint.value is None else "Equal",
                    **({} if taint.value is None else {"value": taint.value}),
                    "effect": taint.effect,
                }
            )
            for taint in shape.gpu_tolerations
        ]
        if shape.runtime_class:
            where["runtimeClassName"] = shape.runtime_class
    return where


def _store_bytes(shared_memory_gib: float) -> str:
    return str(int(shared_memory_gib * STORE_SHARE * GIB))
