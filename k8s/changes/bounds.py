"""How many pods each pool may have, brought to the cluster that runs.

KubeRay leaves a changed minReplicas or maxReplicas of a RayService for the next cluster
(kuberay#2331, #4568), so they are written to the RayCluster as well. Its `replicas` is the
autoscaler's and stays.
"""

from collections.abc import Iterator

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.rendering.cluster_hash import changed_bounds
from k8s.state.findings import dig
from k8s.state.snapshot import ORIGIN_LABEL, RAY
from serve.errors import ControlPlaneRefused

NUM_TRIES = 5


def bring_bounds(api: ControlPlane, service: Manifest, namespace: str) -> Iterator[str]:
    """Of every cluster that the service has and keeps; says what was changed."""
    name = service["metadata"]["name"]
    for cluster in api.list(RAY, "RayCluster", namespace, f"{ORIGIN_LABEL}={name}").items:
        if dig(cluster, "metadata", "deletionTimestamp") is None:
            yield from _bring(api, service, cluster["metadata"]["name"], namespace)


def _bring(api: ControlPlane, service: Manifest, name: str, namespace: str) -> Iterator[str]:
    for num_tries in range(NUM_TRIES):
        cluster = api.get(RAY, "RayCluster", name, namespace)
        if cluster is None:
            return
        as_service = {"spec": {"rayClusterConfig": cluster["spec"]}}
        wanted = changed_bounds(as_service, service)
        if not wanted:
            return
        for group in cluster["spec"]["workerGroupSpecs"]:
            bounds = wanted.get(group["groupName"])
            if bounds is not None:
                group["minReplicas"], group["maxReplicas"] = bounds.min_pods, bounds.max_pods
        try:
            api.replace(cluster, namespace)
        except ControlPlaneRefused as exc:
            # The autoscaler writes to it all the time.
            if exc.http_status != 409 or num_tries == NUM_TRIES - 1:
                raise
            continue
        told = ", ".join(
            f"{group} {one.min_pods} to {one.max_pods}" for group, one in wanted.items()
        )
        yield f"RayCluster {name}: pods of {told}"
        return
