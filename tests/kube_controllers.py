"""What KubeRay and the Job controller do to a `KubeServer`'s objects, as far as a rollout sees."""

import copy

from k8s.rendering.cluster_hash import needs_new_cluster
from tests.kube_kinds import Manifest
from tests.kube_server import KubeServer

NOW = "2026-11-26T00:00:00Z"
TRUE, FALSE = "True", "False"


class Controllers:
    """Plays both at once after each write; a test sets what goes wrong."""

    def __init__(self, kube: KubeServer):
        self.kube = kube
        self.failing_jobs: dict[str, str] = {}
        """By name, the log of the pod."""
        self.stuck: set[str] = set()
        """Names of what stays as it is."""
        self.app_status = "RUNNING"
        self.app_message = ""
        self.job_runs: list[str] = []
        self._num_clusters = 0
        kube.on_write = self.react

    def react(self, verb: str, one: Manifest) -> None:
        kind, name = one["kind"], one["metadata"]["name"]
        namespace = one["metadata"].get("namespace", "")
        if name in self.stuck:
            return
        if kind == "Job" and verb == "POST":
            self._run(name, namespace)
        elif kind == "RayService" and verb == "DELETE":
            for cluster in set(self.kube.names("RayCluster")) - self.stuck:
                self.kube.remove("RayCluster", cluster, namespace)
        elif kind == "RayService":
            self._reconcile(one, namespace)

    def _run(self, name: str, namespace: str) -> None:
        self.job_runs.append(name)
        log = self.failing_jobs.get(name)
        pod = f"{name}-pod{len(self.job_runs)}"
        labels = {"batch.kubernetes.io/job-name": name}
        metadata = {"name": pod, "namespace": namespace, "labels": labels}
        self.kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
        phase = "Succeeded" if log is None else "Failed"
        self.kube.put_status("Pod", pod, {"phase": phase}, namespace)
        self.kube.logs[pod] = "done\n" if log is None else log
        end = {"type": "Complete" if log is None else "Failed", "status": TRUE}
        if log is not None:
            end |= {"reason": "BackoffLimitExceeded", "message": "Job has reached the limit"}
        self.kube.put_status("Job", name, {"conditions": [end]}, namespace)

    def _reconcile(self, service: Manifest, namespace: str) -> None:
        """A cluster, another where the hash asks for one, and all of it ready at once."""
        clusters = self.kube.names("RayCluster")
        name = service["metadata"]["name"]
        old = self.kube.find("RayCluster", clusters[-1], namespace) if clusters else None
        as_service = {"spec": {"rayClusterConfig": old.object["spec"]}} if old else None
        if as_service is None or needs_new_cluster(as_service, service):
            self._num_clusters += 1
            labels = {"ray.io/originated-from-cr-name": name}
            self.kube.put(
                {
                    "apiVersion": "ray.io/v1",
                    "kind": "RayCluster",
                    "metadata": {
                        "name": f"{name}-{self._num_clusters}",
                        "namespace": namespace,
                        "labels": labels,
                    },
                    "spec": copy.deepcopy(service["spec"]["rayClusterConfig"]),
                }
            )
            for former in clusters:
                self.kube.remove("RayCluster", former, namespace)
        self.tell_status(name, namespace)

    def tell_status(self, name: str, namespace: str) -> None:
        stored = self.kube.find("RayService", name, namespace)
        assert stored is not None
        is_ready = TRUE if self.app_status == "RUNNING" else FALSE
        app = {"status": self.app_status, "message": self.app_message}
        status = {
            "observedGeneration": stored.object["metadata"]["generation"],
            "serviceStatus": "Running",
            "numServeEndpoints": 1,
            "conditions": [
                {"type": "Ready", "status": is_ready, "lastTransitionTime": NOW},
                {"type": "UpgradeInProgress", "status": FALSE, "lastTransitionTime": NOW},
            ],
            "activeServiceStatus": {
                "rayClusterName": self.kube.names("RayCluster")[-1],
                "applicationStatuses": {"sm4ll": app},
            },
        }
        self.kube.put_status("RayService", name, status, namespace)
