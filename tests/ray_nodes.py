"""Ray nodes of one machine, each started by the command that KubeRay's operator gives to the
containers of its pods, and stopped by process id."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2
import psutil
import pytest

from serve.settings import RAY_PORT_FLAGS, free_port

START_TIMEOUT_S = 120.0
POLL_S = 0.2
OBJECT_STORE_BYTES = 80 * 2**20
MARK = "SM4LL_TEST_NODES"
"""Names the cluster in the environment of all its processes: Ray's outlive their parents."""


def own_environment() -> dict[str, str]:
    """Of this process, without what belongs to the cluster of the other tests."""
    return {name: value for name, value in os.environ.items() if name[:4] not in ("RAY_", "SM4L")}


class RayNodes:
    """A head whose dashboard answers, and the nodes that join it.

    Args:
        folder: of short path; logs and sockets lie below it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._token = secrets.token_hex(16)
        self._mark = secrets.token_hex(8)
        self._gcs_port, self._dashboard_port = free_port(), free_port()
        # Several nodes share what a pod has for itself: Serve's ports are the same on all of them.
        self._serve_ports = {name: str(free_port()) for name in RAY_PORT_FLAGS}
        self._commands: list[subprocess.Popen[bytes]] = []

    def start_head(self, num_cpus: int, environment: Mapping[str, str]) -> None:
        arguments = (
            "--head",
            f"--port={self._gcs_port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard_port}",
            f"--ray-client-server-port={free_port()}",
        )
        self._start("head", num_cpus, arguments, environment)
        self.wait_for(lambda: self.call("GET", "/api/version").is_success, "the dashboard")

    def start_worker(
        self, name: str, num_cpus: int, labels: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        """Returns at once; the node joins when it is up."""
        told = ",".join(f"{key}={value}" for key, value in labels.items())
        arguments = (f"--address=127.0.0.2:{self._gcs_port}", f"--labels={told}")
        self._start(name, num_cpus, arguments, environment)

    def _start(
        self, name: str, num_cpus: int, arguments: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        common = (
            "--block",
            f"--num-cpus={num_cpus}",
            "--num-gpus=0",
            "--node-ip-address=127.0.0.2",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--metrics-export-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}",
            f"--runtime-env-agent-port={free_port()}",
            # As a pod has files of its own: Ray draws a socket's name by what is there already.
            f"--temp-dir={self._folder / name}",
        )
        ray = Path(sys.executable).parent / "ray"
        # The operator's own variables where `authOptions.mode` is `token`.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        own = {**own_environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
        with self._log_of(name).open("wb") as log:
            command = subprocess.Popen(
                [str(ray), "start", *arguments, *common],
                env={**own, **environment, **self._serve_ports, **auth, MARK: self._mark},
                stdout=log,
                stderr=log,
            )
        self._commands.append(command)

    def _log_of(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def call(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """The dashboard's API, as the operator calls it; 503 where nobody answers."""
        url = f"http://127.0.0.1:{self._dashboard_port}{path}"
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            return httpx2.request(method, url, json=body, headers=headers, timeout=60.0)
        except httpx2.TransportError as exc:
            return httpx2.Response(503, text=str(exc))

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not is_so():
            has_ended = any(command.poll() is not None for command in self._commands)
            if has_ended or time.monotonic() > give_up_s:
                logs = (log.read_text()[-2000:] for log in sorted(self._folder.glob("*.log")))
                pytest.fail("\n".join((f"{what} did not come", *logs)))
            time.sleep(POLL_S)

    def list_processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_own(process)]

    def _is_own(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return bool(process.environ().get(MARK) == self._mark)
        return False

    def stop(self) -> None:
        """Never by `ray stop`, which ends every Ray cluster of the machine."""
        while processes := self.list_processes():  # one may have started another meanwhile
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            for command in self._commands:
                command.wait(10.0)
            psutil.wait_procs(processes, timeout=10.0)
