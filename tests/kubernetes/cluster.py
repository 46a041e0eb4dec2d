"""The cluster of the end-to-end test, as a user and those who call it see it."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from serve.client import Client
from serve.commands.k8s_status import parse_duration
from serve.demo.cases import demo_cases
from serve.schemas.tryon import TryOnOptions
from tests.kubernetes.overlay import GENERATION, E2eOverlay, E2eSettings, Sm4ll, read_token

SERVICE, RAY = "sm4ll", "ray.io/v1"
SERVE_SERVICE, HEAD_SERVICE = f"{SERVICE}-serve-svc", f"{SERVICE}-head-svc"


@dataclass
class Stream:
    """What became of a steady stream of try-ons."""

    num_answered: int = 0
    failures: list[str] = field(default_factory=list)


class E2eCluster:
    """One namespace of the control plane that the kubeconfig names."""

    def __init__(self, api: ControlPlane, sm4ll: Sm4ll, overlay: E2eOverlay, settings: E2eSettings):
        self._api = api
        self._sm4ll = sm4ll
        self._overlay = overlay
        self._settings = settings
        self._token = ""
        self._turn = itertools.count()

    @property
    def namespace(self) -> str:
        return self._settings.namespace

    # What a user does

    def apply(self, *, generation: int = 1, max_replicas: int = 1) -> str:
        """Returns when what was written has arrived everywhere."""
        manifests = self._overlay.write(generation=generation, max_replicas=max_replicas)
        self._token = read_token(manifests)
        path = str(self._overlay.path)
        return self._k8s("apply", "--overlay", path, "--yes", *self._timeout)

    def diff(self) -> str:
        return self._k8s("diff", "--overlay", str(self._overlay.path))

    def wait(self, goal: str) -> str:
        return self._k8s("wait", "--for", goal, *self._timeout)

    def status(self) -> str:
        return self._k8s("status")

    def roll_back(self, revision: int) -> str:
        return self._k8s("rollback", "--to", str(revision), "--yes", *self._timeout)

    def delete(self) -> str:
        return self._k8s("delete", "--yes", "--with-data", *self._timeout)

    @property
    def _timeout(self) -> tuple[str, str]:
        return "--timeout", self._settings.timeout

    def _k8s(self, command: str, *arguments: str) -> str:
        return self._sm4ll("k8s", command, *arguments, "--namespace", self.namespace)

    # What is there

    def exists(self) -> bool:
        return self._api.get("v1", "Namespace", self.namespace) is not None

    def find_service(self) -> Manifest:
        service = self._api.get(RAY, "RayService", SERVICE, self.namespace)
        assert service is not None
        return service

    def active_cluster(self) -> str:
        name: str = self.find_service()["status"]["activeServiceStatus"]["rayClusterName"]
        return name

    def list_clusters(self) -> list[str]:
        found = self._api.list(RAY, "RayCluster", self.namespace).items
        return sorted(one["metadata"]["name"] for one in found)

    def read_generation(self) -> str:
        """Of the cluster that answers."""
        cluster = self._api.get(RAY, "RayCluster", self.active_cluster(), self.namespace)
        assert cluster is not None
        (container, *_) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        value: str = {one["name"]: one.get("value") for one in container["env"]}[GENERATION]
        return value

    def list_pods(self) -> Mapping[str, int]:
        """Restarts by unique id, of the cluster that answers."""
        labels = f"ray.io/cluster={self.active_cluster()}"
        return {
            pod["metadata"]["uid"]: sum(
                one["restartCount"] for one in pod.get("status", {}).get("containerStatuses", ())
            )
            for pod in self._api.list("v1", "Pod", self.namespace, labels=labels).items
        }

    def list_replicas(self) -> Mapping[str, str]:
        """Deployment by replica, as Serve tells the operator."""
        proxy = f"/api/v1/namespaces/{self.namespace}/services/{HEAD_SERVICE}:8265/proxy"
        told: dict[str, Any] = self._api.request("GET", f"{proxy}/api/serve/applications/")
        return {
            replica["replica_id"]: name
            for name, deployment in told["applications"]["sm4ll"]["deployments"].items()
            for replica in deployment["replicas"]
        }

    # Who calls it

    def client(self) -> Client:
        return Client(self._settings.url or self._pick_address(), self._token)

    def _pick_address(self) -> str:
        """A ready pod of the serve service, in turn, as a node's proxy does it.

        Not through the API server's own proxy: it keeps the header with our key to itself.
        """
        labels = f"kubernetes.io/service-name={SERVE_SERVICE}"
        slices = self._api.list(
            "discovery.k8s.io/v1", "EndpointSlice", self.namespace, labels=labels
        )
        addresses = sorted(
            f"http://{address}:{port['port']}"
            for one in slices.items
            for port in one.get("ports") or ()
            if (port.get("name") or "").startswith("serve")
            for endpoint in one.get("endpoints") or ()
            if endpoint.get("conditions", {}).get("ready")
            for address in endpoint["addresses"]
        )
        assert addresses, f"{SERVE_SERVICE} has no ready endpoint"
        return addresses[next(self._turn) % len(addresses)]

    def try_on(self, version: str | None = None) -> str:
        """The bundled demo pictures; answers which version it was."""
        case = next(case for case in demo_cases() if case.expert == "eye")
        options = TryOnOptions(expert="eye", version=version, seed=1, format="png")
        with self.client() as client:
            answer = client.tryon(
                options, case.person_path.read_bytes(), case.product_path.read_bytes()
            )
        assert answer.receipt.outside.max_abs_diff == 0
        return str(answer.receipt.version)

    @contextmanager
    def steady_stream(self, num_callers: int = 2) -> Iterator[Stream]:
        """Somebody is served all the time; nobody tries again."""
        stream, over = Stream(), threading.Event()

        def call() -> None:
            while not over.is_set():
                try:
                    self.try_on()
                    stream.num_answered += 1
                except Exception as exc:  # whatever it is, somebody had no answer
                    stream.failures.append(f"{type(exc).__name__}: {exc}")

        with ThreadPoolExecutor(num_callers) as pool:
            calls = [pool.submit(call) for _ in range(num_callers)]
            try:
                yield stream
            finally:
                over.set()
            for one in calls:
                one.result()

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + parse_duration(self._settings.timeout)
        while not is_so():
            assert time.monotonic() < give_up_s, f"{what}: not within {self._settings.timeout}"
            time.sleep(0.5)
