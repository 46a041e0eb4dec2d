"""A small control plane on loopback: real HTTP, discovery, server-side apply, watches, faults.

It stores objects of any kind that it was told about, and runs no controllers: a test plays them
by `put_status`. Simplified: two managers conflict where they want different values for one path;
lists merge by `name` where all their items have one, and are one value otherwise.
"""

import base64
import copy
import itertools
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.kube_fields import FieldConflicts, Fields, fill_defaults, merge_applied

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
MAX_HISTORY = 1000


@dataclass(frozen=True)
class Fault:
    """One answer that is not what was asked for."""

    status: int = 500
    message: str = "injected"
    headers: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False
    """The connection ends without an answer."""


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


@dataclass
class Stored:
    """One object, and who owns which of its fields."""

    object: Manifest
    fields: Fields = field(default_factory=Fields)


Key = tuple[str, str, str, str]
"""apiVersion, plural, namespace, name."""
Change = tuple[int, str, Key, Manifest]


class KubeServer:
    """The cluster's memory, and what a test does to it."""

    def __init__(self, *, missing: tuple[str, ...] = (), version: str = "v1.36.2"):
        """
        Args:
            missing: Groups (or apiVersions) that are not installed.
        """
        self.version = version
        self.kinds = [
            one
            for one in KINDS
            if one[0] not in missing and one[0].partition("/")[0] not in missing
        ]
        self.objects: dict[Key, Stored] = {}
        self.asked: list[Asked] = []
        self.logs: dict[str, str] = {}
        """By pod, or pod/container."""
        self.token: str | None = None
        """The only one that is accepted; any, where None."""
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, plural) that access reviews deny."""
        self.refuse_apply: Callable[[Manifest], str | None] = lambda manifest: None
        """Plays an admission webhook: why not, or None."""
        self.on_write: Callable[[str, Manifest], None] = lambda verb, manifest: None
        """Plays controllers: called after each write that is not a dry run."""
        self.kept: set[str] = set()
        """Kinds whose objects wait for `finish_deletion`, as if they had a finalizer."""
        self.port = 0
        self._faults: list[tuple[str, str, Fault]] = []
        self._history: list[Change] = []
        self._forgotten = 0
        self._counter = itertools.count(1000)
        self._now = 1000
        self._changed = threading.Condition(threading.RLock())
        self._num_drops = 0
        self._is_closed = False

    # What a test does

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, method: str, path_part: str, *faults: Fault) -> None:
        """The next requests of that method whose path (with query) contains the part."""
        self._faults += [(method, path_part, fault) for fault in faults]

    def drop_watches(self) -> None:
        """Cut every open watch in the middle of its stream."""
        with self._changed:
            self._num_drops += 1
            self._changed.notify_all()

    def forget_history(self) -> None:
        """Watches from before now are answered with 410 Gone."""
        with self._changed:
            self._forgotten = self._now
            self._num_drops += 1
            self._changed.notify_all()

    def put(self, manifest: Manifest, namespace: str | None = None) -> Manifest:
        """As somebody else (`kubectl`) would: created, or replaced whole."""
        with self._changed:
            return self._write(self._key_of(manifest, namespace), manifest, "kubectl")

    def put_status(self, kind: str, name: str, status: Manifest, namespace: str = "sm4ll") -> None:
        """As a controller does: the status alone, without a new generation."""
        with self._changed:
            stored = self.find(kind, name, namespace)
            assert stored is not None, f"no {kind} {name}"
            stored.object["status"] = copy.deepcopy(status)
            self._tell("MODIFIED", self._key_of(stored.object, namespace), stored.object)

    def find(self, kind: str, name: str, namespace: str = "sm4ll") -> Stored | None:
        for (_, _, where, called), stored in self.objects.items():
            if stored.object["kind"] == kind and called == name and where in (namespace, ""):
                return stored
        return None

    def names(self, kind: str) -> list[str]:
        return sorted(key[3] for key, one in self.objects.items() if one.object["kind"] == kind)

    def remove(self, kind: str, name: str, namespace: str = "sm4ll") -> None:
        """As the garbage collector, or somebody else."""
        with self._changed:
            stored = self.find(kind, name, namespace)
            assert stored is not None, f"no {kind} {name}"
            self._drop(self._key_of(stored.object, namespace))

    finish_deletion = remove

    def writes(self) -> list[tuple[str, str]]:
        """(method, path) of everything that changed something, in order."""
        return [
            (one.method, one.path)
            for one in self.asked
            if one.method != "GET" and "dryRun" not in one.query and "reviews" not in one.path
        ]

    def kubeconfig(self, folder: Path, token: str = "first", namespace: str = "sm4ll") -> Path:
        """A kubeconfig whose token lies in the file `token` beside it."""
        (folder / "token").write_text(token)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"tokenFile": "token"}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "here", "user": "me", "namespace": namespace},
                }
            ],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    # What a request does

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """The status and the JSON body, or text."""
        parts = [urllib.parse.unquote(part) for part in asked.path.strip("/").split("/")]
        if self.token is not None and asked.token != self.token:
            raise Refused(401, "Unauthorized")
        if parts == ["version"]:
            major, minor = self.version.lstrip("v").split(".")[:2]
            return 200, {"major": major, "minor": minor, "gitVersion": self.version}
        if parts[-1] == "selfsubjectaccessreviews":
            return 201, self._review(asked.body)
        if parts[0] == "apis" and len(parts) == 1:
            return 200, {"kind": "APIGroupList", "groups": self._groups()}
        if parts[0] == "apis" and len(parts) == 2:
            found = [one for one in self._groups() if one["name"] == parts[1]]
            if not found:
                raise Refused(404, "the server could not find the requested resource")
            return 200, found[0]
        depth = 2 if parts[0] == "api" else 3
        api_version = "/".join(parts[1:depth])
        if len(parts) == depth:
            return 200, self._resources(api_version)
        return self._on_objects(asked, api_version, parts[depth:])

    def _review(self, body: Manifest) -> Manifest:
        wanted = body["spec"]["resourceAttributes"]
        allowed = (wanted["verb"], wanted["resource"]) not in self.forbidden
        return {**body, "status": {"allowed": allowed}}

    def _groups(self) -> list[Manifest]:
        versions: dict[str, list[str]] = {}
        for api_version, *_ in self.kinds:
            group, _, version = api_version.rpartition("/")
            if group and version not in versions.setdefault(group, []):
                versions[group].append(version)
        return [
            {
                "kind": "APIGroup",
                "name": group,
                "versions": [{"groupVersion": f"{group}/{v}", "version": v} for v in them],
                "preferredVersion": {"groupVersion": f"{group}/{them[0]}", "version": them[0]},
            }
            for group, them in versions.items()
        ]

    def _resources(self, api_version: str) -> Manifest:
        found = [
            {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]}
            for group_version, kind, plural, namespaced in self.kinds
            if group_version == api_version
        ]
        if not found:
            raise Refused(404, "the server could not find the requested resource")
        return {"kind": "APIResourceList", "groupVersion": api_version, "resources": found}

    def _on_objects(self, asked: Asked, api_version: str, rest: list[str]) -> tuple[int, Any]:
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name = rest[0], rest[1] if len(rest) > 1 else ""
        kind = next((k for v, k, p, _ in self.kinds if (v, p) == (api_version, plural)), None)
        if kind is None:
            raise Refused(404, "the server could not find the requested resource")
        key = (api_version, plural, namespace, name)
        with self._changed:
            if rest[2:] == ["log"]:
                return 200, self._log(name, asked.query)
            if asked.method == "GET":
                return 200, self._read(key) if name else self._list(key, kind, asked.query)
            if namespace and ("v1", "namespaces", "", namespace) not in self.objects:
                raise Refused(404, f'namespaces "{namespace}" not found')
            act = {
                "PATCH": self._apply,
                "POST": self._create,
                "PUT": self._replace,
                "DELETE": self._delete,
            }
            return act[asked.method](key, asked)

    def _log(self, pod: str, query: dict[str, str]) -> str:
        text = self.logs.get(f"{pod}/{query.get('container', '')}", self.logs.get(pod))
        if text is None:
            raise Refused(404, f'pods "{pod}" not found')
        lines = text.splitlines(keepends=True)
        return "".join(lines[-int(query.get("tailLines", len(lines))) :]) if lines else ""

    def _read(self, key: Key) -> Manifest:
        if key not in self.objects:
            raise Refused(404, f'{key[1]} "{key[3]}" not found')
        return self._shown(self.objects[key])

    def _list(self, key: Key, kind: str, query: dict[str, str]) -> Manifest:
        found = [
            self._shown(stored)
            for at, stored in sorted(self.objects.items())
            if at[:2] == key[:2] and key[2] in ("", at[2]) and selects(query, stored.object)
        ]
        for one in found:  # as the real one: what a list's items are, the list says
            del one["apiVersion"], one["kind"]
        start, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(found)
        metadata = {"resourceVersion": str(self._now)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        items = found[start : start + limit]
        return {
            "kind": f"{kind}List",
            "apiVersion": key[0],
            "metadata": metadata,
            "items": items,
        }

    def _apply(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        manager, force = asked.query["fieldManager"], asked.query.get("force") == "true"
        reason = self.refuse_apply(asked.body)
        if reason is not None:
            raise Refused(403, f'admission webhook "policy.example" denied the request: {reason}')
        stored = copy.deepcopy(self.objects.get(key)) or Stored({})
        try:
            merged = merge_applied(stored.object, stored.fields, asked.body, manager, force)
        except FieldConflicts as exc:
            causes = tuple(
                {"reason": "FieldManagerConflict", "message": f'conflict with "{who}"', "field": at}
                for at, who in exc.found
            )
            told = f"Apply failed with {len(causes)} conflict(s): {causes[0]['message']}"
            raise Refused(409, told, causes=causes) from exc
        self._check_immutable(key, merged)
        if "dryRun" in asked.query:
            return 200, self._dressed(key, merged, stored.fields)
        existed = key in self.objects
        written = self._write(key, merged, manager, stored.fields)
        return (200 if existed else 201), written

    def _create(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        metadata = asked.body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{next(self._counter)}"
        key = (*key[:3], name)
        if key in self.objects:
            raise Refused(409, f'{key[1]} "{name}" already exists', "AlreadyExists")
        body = {**asked.body, "metadata": {**metadata, "name": name}}
        if "dryRun" in asked.query:
            return 201, self._dressed(key, body, Fields())
        return 201, self._write(key, body, asked.query.get("fieldManager", "unknown"))

    def _replace(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        here = self._read(key)
        wanted = asked.body["metadata"].get("resourceVersion")
        if wanted not in (None, here["metadata"]["resourceVersion"]):
            raise Refused(409, "the object has been modified; please apply your changes to it")
        self._check_immutable(key, asked.body)
        return 200, self._write(key, asked.body, asked.query.get("fieldManager", "unknown"))

    def _delete(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        here = self._read(key)
        uid = (asked.body or {}).get("preconditions", {}).get("uid")
        if uid not in (None, here["metadata"]["uid"]):
            raise Refused(409, "the UID in the precondition does not match")
        if "dryRun" in asked.query:
            return 200, here
        if here["kind"] in self.kept:
            stored = self.objects[key]
            stored.object["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
            self._tell("MODIFIED", key, stored.object)
        else:
            self._drop(key)
        self.on_write("DELETE", here)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _check_immutable(self, key: Key, wanted: Manifest) -> None:
        before = self.objects.get(key)
        path = IMMUTABLE.get(wanted["kind"])
        if before is None or path is None:
            return
        old, new = before.object, fill_defaults(copy.deepcopy(wanted))
        for step in path:
            old, new = old.get(step, {}), new.get(step, {})
        if old != new:
            raise Refused(422, f"{'.'.join(path)}: Invalid value: field is immutable")

    def _key_of(self, manifest: Manifest, namespace: str | None = None) -> Key:
        metadata, kind = manifest["metadata"], manifest["kind"]
        for api_version, called, plural, namespaced in self.kinds:
            if (api_version, called) == (manifest["apiVersion"], kind):
                where = metadata.get("namespace") or namespace or "sm4ll"
                return api_version, plural, where if namespaced else "", metadata["name"]
        raise KeyError(kind)

    def _dressed(self, key: Key, manifest: Manifest, fields: Fields) -> Manifest:
        """With all that the server adds."""
        before = self.objects.get(key)
        one = fill_defaults(copy.deepcopy(manifest))
        old = before.object["metadata"] if before else {}
        metadata = one["metadata"]
        metadata["name"] = key[3]
        if key[2]:
            metadata["namespace"] = key[2]
        is_same = before is not None and before.object.get("spec") == one.get("spec")
        generation = old.get("generation", 0)
        metadata["uid"] = old.get("uid") or f"uid-{next(self._counter)}"
        metadata["creationTimestamp"] = old.get("creationTimestamp", "2026-11-26T00:00:00Z")
        metadata["generation"] = generation if is_same else generation + 1
        metadata["resourceVersion"] = old.get("resourceVersion", "")
        metadata["managedFields"] = fields.as_managed_fields(one["apiVersion"])
        if before and "status" in before.object and "status" not in one:
            one["status"] = copy.deepcopy(before.object["status"])
        if one["kind"] == "Secret" and "stringData" in one:
            coded = {k: base64.b64encode(v.encode()).decode() for k, v in one["stringData"].items()}
            one["data"] = {**one.get("data", {}), **coded}
            del one["stringData"]
        return one

    def _write(
        self, key: Key, manifest: Manifest, manager: str, fields: Fields | None = None
    ) -> Manifest:
        if fields is None:
            before = self.objects.get(key)
            fields = before.fields if before else Fields()
            fields.own_all(manager, manifest, before.object if before else {})
        one = self._dressed(key, manifest, fields)
        is_new = key not in self.objects
        had = {} if is_new else self.objects[key].object
        if not is_new and _bare(had) == _bare(one):
            self.objects[key].fields = fields  # as the real one: no change, no new version
            return self._shown(self.objects[key])
        self.objects[key] = Stored(one, fields)
        self._tell("ADDED" if is_new else "MODIFIED", key, one)
        self.on_write("POST" if is_new else "PATCH", one)
        return self._shown(self.objects[key])

    def _shown(self, stored: Stored) -> Manifest:
        return copy.deepcopy(stored.object)

    def _drop(self, key: Key) -> None:
        one = self.objects.pop(key).object
        self._tell("DELETED", key, one)
        if one["kind"] == "Namespace":
            for inside in [at for at in self.objects if at[2] == key[3]]:
                self._drop(inside)
        uid = one["metadata"]["uid"]
        for at, stored in list(self.objects.items()):
            owners = stored.object["metadata"].get("ownerReferences", [])
            if at in self.objects and any(owner["uid"] == uid for owner in owners):
                self._drop(at)

    def _tell(self, event: str, key: Key, one: Manifest) -> None:
        self._now += 1
        one["metadata"]["resourceVersion"] = str(self._now)
        self._history = [*self._history[-MAX_HISTORY:], (self._now, event, key, copy.deepcopy(one))]
        self._changed.notify_all()

    # Watches

    def watch(self, asked: Asked, api_version: str, rest: list[str]) -> Iterator[Manifest | None]:
        """What is told on one stream; None where it breaks."""
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        seen = int(asked.query.get("resourceVersion") or self._now)
        timeout_s = float(asked.query.get("timeoutSeconds", "300"))
        with self._changed:
            if seen < self._forgotten:
                yield {"type": "ERROR", "object": Refused(410, "too old resource version").status()}
                return
            num_drops = self._num_drops
        while True:
            with self._changed:
                if not self._wait_beyond(seen, num_drops, timeout_s) or self._is_closed:
                    bookmark = {"metadata": {"resourceVersion": str(self._now)}}
                    yield {"type": "BOOKMARK", "object": bookmark}
                    return
                fresh = [change for change in self._history if change[0] > seen]
                is_dropped = self._num_drops != num_drops
            if is_dropped:
                yield None
                return
            for number, event, key, one in fresh:
                seen = number
                is_meant = key[:2] == (api_version, rest[0]) and namespace in ("", key[2])
                if is_meant and selects(asked.query, one):
                    yield {"type": event, "object": one}

    def _wait_beyond(self, seen: int, num_drops: int, timeout_s: float) -> bool:
        return self._changed.wait_for(
            lambda: self._now > seen or self._num_drops != num_drops or self._is_closed, timeout_s
        )

    def take_fault(self, method: str, target: str) -> Fault | None:
        with self._changed:
            for index, (wanted, part, fault) in enumerate(self._faults):
                if wanted == method and part in target:
                    del self._faults[index]
                    return fault
        return None

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _bare(one: Manifest) -> Manifest:
    hidden = ("managedFields", "resourceVersion", "generation")
    return {**one, "metadata": {k: v for k, v in one["metadata"].items() if k not in hidden}}


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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


def _handler(kube: KubeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Tests read `asked`."""

        def _serve(self) -> None:
            split = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            asked = Asked(self.command, split.path, query, body, token)
            kube.asked.append(asked)
            fault = kube.take_fault(self.command, self.path)
            if fault is not None and fault.is_cut:
                self.close_connection = True
                return
            try:
                if fault is not None:
                    raise Refused(fault.status, fault.message)
                if query.get("watch") == "true":
                    self._stream(asked)
                    return
                code, told = kube.answer(asked)
            except Refused as exc:
                code, told = exc.code, exc.status()
            is_text = isinstance(told, str)
            text = told.encode() if is_text else json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(text)))
            for name, value in fault.headers if fault else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def _stream(self, asked: Asked) -> None:
            if kube.token is not None and asked.token != kube.token:
                raise Refused(401, "Unauthorized")
            parts = asked.path.strip("/").split("/")
            depth = 2 if parts[0] == "api" else 3
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for event in kube.watch(asked, "/".join(parts[1:depth]), parts[depth:]):
                if event is None:
                    self.close_connection = True
                    return
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    return Handler


@contextmanager
def open_kube(
    *, missing: tuple[str, ...] = (), namespaces: tuple[str, ...] = ("default",)
) -> Iterator[KubeServer]:
    """A control plane on a free port of 127.0.0.1."""
    kube = KubeServer(missing=missing)
    for name in namespaces:
        kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    with _Server(("127.0.0.1", 0), _handler(kube)) as server:
        kube.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield kube
        kube.close()
        server.shutdown()
        thread.join()
