"""`sm4ll up` as a user starts it, in a process of its own, on a real PostgreSQL and Redis."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serve.client import Client
from serve.policy import SCOPES, Scope
from serve.schemas.keys import NewKey
from serve.schemas.tenants import NewTenant
from serve.settings import free_port
from tests.otlp import Receiver, receiving
from tests.postgres import PostgresServer
from tests.redis_server import started_redis

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
FAMILY = """
router:
  autoscaling: {min_replicas: 2, max_replicas: 2}
jobs: {lease_s: 6, max_attempts: 10}
pricing: {usd_per_gpu_second: 0.001}
experts:
  - version: top@noop
    autoscaling: {min_replicas: 2, max_replicas: 2}
  - version: top@doomed
"""
EXPERT = """
expert: top
name: noop
title: changes nothing, slowly
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: noop, seconds: 0.1, steps: 4}
"""
DOOMED = """
expert: top
name: doomed
title: fails on purpose
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: noop, drill: {failure_share: 1}}
"""
DATABASE_PASSWORD = "hushed-by-heart"
PROVIDER_KEY = "fa-0123456789-nobody-knows"


@dataclass(frozen=True)
class Up:
    """A running cluster, its administrator's key and its database."""

    process: subprocess.Popen[bytes]
    url: str
    key: str
    database_url: str
    metrics_url: str
    log_file: Path
    traces: Receiver
    """Gets every span of the cluster."""

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def open_tenant(self, tenant_id: str, scopes: Sequence[Scope] = SCOPES) -> str:
        """A new tenant's first key, made as an administrator does."""
        with Client(self.url, self.key) as client:
            client.create_tenant(NewTenant(id=tenant_id, name=tenant_id))
            return client.create_key(tenant_id, NewKey(name="first", scopes=tuple(scopes))).token

    def kill(self, name: str) -> int:
        """SIGKILL to one process whose command line names this; says which."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = [child for child in children if name in _command_of(child)]
        assert found, f"no {name} runs"
        found[0].send_signal(signal.SIGKILL)
        return found[0].pid


def _command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="session")
def up(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two routers, two replicas of a no-op expert that takes 0.1 s, one job runner.

    PostgreSQL here takes any password; with this one it can be looked for.
    """
    folder = tmp_path_factory.mktemp("up")
    database_url = postgres.create_database().replace("@", f":{DATABASE_PASSWORD}@")
    experts = {"top.noop": EXPERT, "top.doomed": DOOMED}
    with running(folder, database_url, FAMILY, experts) as cluster:
        yield cluster


@contextlib.contextmanager
def running(
    folder: Path, database_url: str, family: str, experts: Mapping[str, str]
) -> Iterator[Up]:
    """`sm4ll up` on what these documents say, until the block ends.

    Args:
        experts: bundles by the names of their files, without `.yaml`.
    """
    (folder / "experts").mkdir()
    for name, bundle in experts.items():
        (folder / f"experts/{name}.yaml").write_text(bundle)
    (folder / "family.yaml").write_text(family)
    with started_redis() as redis, receiving() as traces:
        settings = {
            "SM4LL_DATABASE_URL": database_url,
            "SM4LL_REDIS_URL": redis.url,
            "SM4LL_FASHN_API_KEY": PROVIDER_KEY,
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
        }
        process, url = _start(folder, settings)
        try:
            _wait_until_ready(url, process, folder)
            key = (folder / "data/local.key").read_text().strip()
            metrics_url = (folder / "data/local.metrics").read_text().strip()
            log_file = folder / "up.log"
            yield Up(process, url, key, database_url, metrics_url, log_file, traces)
        finally:
            _stop(process)


def _start(folder: Path, settings: Mapping[str, str]) -> tuple["subprocess.Popen[bytes]", str]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "serve.cli", "up", "--json-log", "--port", str(port)),
        *("--family", str(folder / "family.yaml"), "--data", str(folder / "data")),
    ]
    # Ray's ports and our data belong to the cluster of the other tests.
    own = {name: value for name, value in os.environ.items() if name[:4] not in ("RAY_", "SM4L")}
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(command, env={**own, **settings}, stdout=log, stderr=log)
    return process, f"http://127.0.0.1:{port}"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    with Client(url) as client:
        while not client.readiness().ready:
            if process.poll() is not None or time.monotonic() > give_up_s:
                pytest.fail(f"it did not start: {(folder / 'up.log').read_text()[-3000:]}")
            time.sleep(0.2)
