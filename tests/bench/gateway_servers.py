"""Who is measured: each server in a process and environment of its own, one at a time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import psutil

from serve.client import Client
from serve.policy import TenantPolicy
from serve.schemas.experiments import NewExperiment
from serve.schemas.keys import NewKey
from serve.schemas.tenants import NewTenant
from serve.settings import free_port
from tests.bench.peers.environment import python_with

START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2
PEERS = Path(__file__).parent / "peers"
FAMILY = Path(__file__).parent / "gateway.yaml"
BOTH_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
}
UVICORN = ("uvicorn==0.54.0", "starlette==1.10.0", "uvloop==0.23.0", "httptools==0.9.0")
LITSERVE = ("litserve==0.2.19", "starlette==1.10.0", "python-multipart==0.0.34")
BENTOML = ("bentoml==1.4.40",)
# Every limit is set, so that every one is checked; none is reached.
POLICY = TenantPolicy(
    requests_per_minute=10**9,
    concurrency=10**6,
    monthly_gpu_seconds=10**9,
    monthly_images=10**9,
)
EXPERIMENT = NewExperiment.model_validate(
    {
        "id": "gateway-bench",
        "expert": "top",
        "unit": "request",
        "start": True,
        "arms": [
            {"name": "control", "version": "top@passthrough", "weight": 5_000},
            {"name": "other", "version": "top@passthrough-b", "weight": 5_000},
        ],
    }
)


class DidNotStart(RuntimeError):
    """A server that did not answer in time; says what it printed last."""


@dataclass(frozen=True)
class Mode:
    """One way of asking a server."""

    name: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: psutil.Process
    port: int
    modes: tuple[Mode, ...]
    metrics_url: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def find(self, name: str) -> psutil.Process | None:
        """One of its processes, by its title."""
        return next((one for one in self.processes() if name in title_of(one)), None)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds by title so far."""
        used: dict[str, float] = {}
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                title = title_of(one)
                used[title] = used.get(title, 0.0) + times.user + times.system
        return used


def end_on_sigterm() -> None:
    """As on Ctrl-C: whoever is told to end ends the servers it started."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def title_of(process: psutil.Process) -> str:
    """As people know it: Ray names its replicas."""
    with contextlib.suppress(psutil.Error):
        words: list[str] = process.cmdline()
        if not words:
            return str(process.name())
        if words[0].startswith("ray::"):
            return words[0].split()[0].removeprefix("ray::").partition(".")[0]
        if "-c" in words:
            return "worker"  # of Python's multiprocessing
        script = next((Path(word).name for word in words[1:] if not word.startswith("-")), "")
        return f"{Path(words[0]).name} {script}".strip()
    return "gone"


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ray's flags and our settings of whoever starts the benchmark are not the server's, nor is a
    wish to keep no byte code: nothing would ever start warm."""
    strange = ("RAY_", "SM4LL_", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0", **extra}


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, path: str, folder: Path, env: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """A process from start to stop, once it knows the path."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=clean_environment(env), cwd=PEERS.parents[2]
        )
    try:
        _wait_until_it_answers(process, f"http://127.0.0.1:{port}{path}", log)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s and process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url, timeout=5.0).status_code in (200, 405):
                return
        time.sleep(POLL_S)
    raise DidNotStart(log.read_text(errors="replace")[-1500:])


ECHO = Mode("echo", "/echo")


def _ray(flags: Mapping[str, str], kind: str) -> Callable[[Path, Path], Iterator[Running]]:
    def run(folder: Path, cache: Path) -> Iterator[Running]:
        port = free_port()
        command = [sys.executable, "-m", "tests.bench.peers.ray_echo", str(port), kind]
        own_ports = _haproxy_ports() if flags else {}
        with started(command, port, "/-/healthz", folder, {**flags, **own_ports}) as process:
            _wait_for_route(port)
            yield Running(process, port, (ECHO,))

    return run


def _haproxy_ports() -> dict[str, str]:
    names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT")
    ports = {f"RAY_SERVE_{name}": str(free_port()) for name in names}
    ports["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = str(free_port())
    socket_path = f"/tmp/haproxy-serve/bench-{os.getpid()}.sock"
    return {**ports, "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": socket_path}


def _wait_for_route(port: int) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.post(f"http://127.0.0.1:{port}/echo", content=b"x").content == b"x":
                return
        time.sleep(POLL_S)
    raise DidNotStart("the echo's route does not answer")


def _peer(
    requirements: Sequence[str], health: str, *arguments: str
) -> Callable[[Path, Path], Iterator[Running]]:
    """
    Args:
        arguments: of its interpreter; the port comes last.
    """

    def run(folder: Path, cache: Path) -> Iterator[Running]:
        python, port = python_with(requirements, cache), free_port()
        command = [str(python), *arguments, str(port)]
        with started(command, port, health, folder, {"BENTOML_HOME": str(folder)}) as process:
            yield Running(process, port, (ECHO,))

    return run


@contextlib.contextmanager
def started_family(
    family: Path, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`sm4ll up`, as a user starts it, once every replica is ready.

    Args:
        folder: of its own; rows and key go into `data` there.
    """
    port, data = free_port(), folder / "data"
    command = [
        *(sys.executable, "-m", "serve.cli", "up", "--port", str(port)),
        *("--family", str(family), "--data", str(data)),
    ]
    with started(command, port, "/readyz", folder, env or {}) as process:
        metrics = data / "local.metrics"
        metrics_url = metrics.read_text().strip() if metrics.is_file() else None
        yield Running(process, port, (), metrics_url)


def open_tenant(running: Running, folder: Path) -> dict[str, str]:
    """The headers of a tenant that has every limit, and reaches none."""
    with Client(running.url, admin_key(folder)) as client:
        client.create_tenant(NewTenant(id="bench", name="Benchmark", policy=POLICY))
        token = client.create_key("bench", NewKey(name="benchmark")).token
    return {"Authorization": f"Bearer {token}"}


def admin_key(folder: Path) -> str:
    return (folder / "data/local.key").read_text().strip()


def _ours(folder: Path, cache: Path) -> Iterator[Running]:
    with started_family(FAMILY, folder) as running:
        headers = open_tenant(running, folder)
        with Client(running.url, admin_key(folder)) as client:
            client.experiments.create(EXPERIMENT)
        modes = (
            Mode("gateway", "/v1/tryon", {"expert": "top"}, headers),
            Mode("full", "/v1/tryon", {"expert": "top", "version": "noop"}, headers),
        )
        yield replace(running, modes=modes)


BENTOML_SERVE = (
    *("-m", "bentoml", "serve", "bentoml_echo:Echo"),
    *("--working-dir", str(PEERS), "--host", "127.0.0.1", "--port"),
)
STARTS: Mapping[str, Callable[[Path, Path], Iterator[Running]]] = {
    "uvicorn": _peer(UVICORN, "/echo", str(PEERS / "starlette_echo.py")),
    "litserve": _peer(LITSERVE, "/health", str(PEERS / "litserve_echo.py")),
    "bentoml": _peer(BENTOML, "/readyz", *BENTOML_SERVE),
    "ray-default": _ray({}, "default"),
    "ray-flagged": _ray(BOTH_FLAGS, "flagged"),
    "sm4ll": _ours,
}
"""In the order in which they are measured."""
OURS = "sm4ll"


def start_server(
    name: str, folder: Path, cache: Path
) -> "contextlib.AbstractContextManager[Running]":
    """One of STARTS, until the block ends.

    Args:
        folder: of its own, empty.
        cache: where the environments of peers are kept.

    Raises:
        CannotInstall, DidNotStart: the others can be measured without it.
    """
    return contextlib.contextmanager(STARTS[name])(folder, cache)
