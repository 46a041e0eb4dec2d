"""What `tests/kube_server.py` knows of kinds, refusals and selectors."""

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]

# (apiVersion, kind, plural, namespaced): what our manifests and commands use.
KINDS: tuple[tuple[str, str, str, bool], ...] = (
    ("v1", "Namespace", "namespaces", False),
    ("v1", "Node", "nodes", False),
    ("v1", "Pod", "pods", True),
    ("v1", "Event", "events", True),
    ("v1", "Service", "services", True),
    ("v1", "Endpoints", "endpoints", True),
    ("v1", "Secret", "secrets", True),
    ("v1", "ConfigMap", "configmaps", True),
    ("v1", "ServiceAccount", "serviceaccounts", True),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True),
    ("v1", "PersistentVolume", "persistentvolumes", False),
    ("v1", "ResourceQuota", "resourcequotas", True),
    ("v1", "LimitRange", "limitranges", True),
    ("apps/v1", "Deployment", "deployments", True),
    ("apps/v1", "ReplicaSet", "replicasets", True),
    ("apps/v1", "StatefulSet", "statefulsets", True),
    ("apps/v1", "DaemonSet", "daemonsets", True),
    ("batch/v1", "Job", "jobs", True),
    ("batch/v1", "CronJob", "cronjobs", True),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", True),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", True),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", True),
    ("networking.k8s.io/v1", "Ingress", "ingresses", True),
    ("networking.k8s.io/v1", "IngressClass", "ingressclasses", False),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", True),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", True),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", False),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", False),
    ("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", False),
    ("storage.k8s.io/v1", "StorageClass", "storageclasses", False),
    ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True),
    ("coordination.k8s.io/v1", "Lease", "leases", True),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", False),
    ("ray.io/v1", "RayService", "rayservices", True),
    ("ray.io/v1", "RayCluster", "rayclusters", True),
    ("ray.io/v1", "RayJob", "rayjobs", True),
    ("gateway.networking.k8s.io/v1", "GatewayClass", "gatewayclasses", False),
    ("gateway.networking.k8s.io/v1", "Gateway", "gateways", True),
    ("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", True),
    ("gateway.networking.k8s.io/v1", "ReferenceGrant", "referencegrants", True),
    ("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", True),
    ("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors", True),
    ("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", True),
    ("external-secrets.io/v1", "ExternalSecret", "externalsecrets", True),
    ("kueue.x-k8s.io/v1beta1", "LocalQueue", "localqueues", True),
)
# Whose spec never changes: a Job's pods are made of its template.
IMMUTABLE = {"Job": ("spec", "template")}
REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    token: str


class Refused(Exception):
    """Becomes a `Status` body."""

    def __init__(self, code: int, message: str, reason: str = "", causes: tuple[Any, ...] = ()):
        super().__init__(message)
        self.code, self.message, self.causes = code, message, causes
        self.reason = reason or REASONS.get(code, "")

    def status(self) -> Manifest:
        details = {"details": {"causes": list(self.causes)}} if self.causes else {}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
            **details,
        }


def selects(query: dict[str, str], one: Manifest) -> bool:
    """Equality (`a=b`, `a==b`, `a!=b`), presence (`a`, `!a`) and `a in (b,c)`."""
    labels = one["metadata"].get("labels") or {}
    for term in _terms(query.get("labelSelector", "")):
        name, is_in, values = term.partition(" in ")
        if is_in:
            if labels.get(name) not in values.strip("() ").replace(" ", "").split(","):
                return False
        elif "!=" in term:
            name, _, value = term.partition("!=")
            if labels.get(name) == value:
                return False
        elif "=" in term:
            name, _, value = term.replace("==", "=").partition("=")
            if labels.get(name) != value:
                return False
        elif term.startswith("!") == (term.lstrip("!") in labels):
            return False
    for term in _terms(query.get("fieldSelector", "")):
        name, _, value = term.replace("==", "=").partition("=")
        found: Any = one
        for step in name.split("."):
            found = found.get(step, {}) if isinstance(found, dict) else {}
        if str(found or "") != value:
            return False
    return True


def _terms(selector: str) -> list[str]:
    """Split at commas outside parentheses."""
    terms, depth, term = [], 0, ""
    for letter in selector:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            terms.append(term.strip())
            term = ""
        else:
            term += letter
    return [*terms, term.strip()] if term.strip() else terms
