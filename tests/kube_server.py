"""A small control plane on loopback: real HTTP, discovery, server-side apply, watches, faults.

It stores objects of any kind that it was told about, and runs no controllers: a test plays them
by `put_status` and `on_write`. Simplified: two managers conflict where they want different values
for one path; lists merge by `name` where all their items have one, and are one value otherwise.
"""

import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.kube_kinds import Asked, Manifest, Refused, selects
from tests.kube_objects import KubeObjects


@dataclass(frozen=True)
class Fault:
    """One answer that is not what was asked for."""

    status: int = 500
    message: str = "injected"
    headers: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False
    """The connection ends without an answer."""


class KubeServer(KubeObjects):
    """The cluster: its memory, its endpoints, and the faults a test gives it."""

    def __init__(self, *, missing: tuple[str, ...] = (), version: str = "v1.36.2"):
        """
        Args:
            missing: Groups (or apiVersions) that are not installed.
        """
        super().__init__(missing)
        self.version = version
        self.logs: dict[str, str] = {}
        """By pod, or pod/container."""
        self.token: str | None = None
        """The only one that is accepted; any, where None."""
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, plural) that access reviews deny."""
        self.port = 0
        self._faults: list[tuple[str, str, Fault]] = []
        self._is_closed = False

    # What a test does

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, method: str, path_part: str, *faults: Fault) -> None:
        """The next requests of that method whose path (with query) contains the part."""
        self._faults += [(method, path_part, fault) for fault in faults]

    def heal(self) -> None:
        """Forget the faults that have not come yet."""
        with self._changed:
            self._faults.clear()

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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for one `KubeServer`."""

    protocol_version = "HTTP/1.1"
    kube: KubeServer
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms each answer

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `asked`."""

    def _serve(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Asked(self.command, split.path, query, body, token)
        self.kube.asked.append(asked)
        fault = self.kube.take_fault(self.command, self.path)
        if fault is not None and fault.is_cut:
            self.close_connection = True
            return
        try:
            if fault is not None:
                raise Refused(fault.status, fault.message)
            if query.get("watch") == "true":
                self._stream(asked)
                return
            code, told = self.kube.answer(asked)
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
        if self.kube.token is not None and asked.token != self.kube.token:
            raise Refused(401, "Unauthorized")
        parts = asked.path.strip("/").split("/")
        depth = 2 if parts[0] == "api" else 3
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in self.kube.watch(asked, "/".join(parts[1:depth]), parts[depth:]):
            if event is None:
                self.close_connection = True
                return
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def open_kube(
    *, missing: tuple[str, ...] = (), namespaces: tuple[str, ...] = ("default",)
) -> Iterator[KubeServer]:
    """A control plane on a free port of 127.0.0.1."""
    kube = KubeServer(missing=missing)
    for name in namespaces:
        kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    with _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"kube": kube})) as server:
        kube.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield kube
        kube.close()
        server.shutdown()
        thread.join()
