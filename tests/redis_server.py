"""A private Redis from Debian's binary: its own directory, its own port, gone afterwards."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from serve.settings import free_port

START_TIMEOUT_S = 10.0


class RedisServer:
    """One server on loopback that keeps nothing on disk."""

    def __init__(self, binary: str, directory: Path):
        self._binary = binary
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Also again after `kill`, on the same port and empty."""
        flags = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        command = [self._binary, *flags, "--dir", str(self._directory)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError("redis-server does not start")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait_ms(self, duration_ms: int) -> None:
        """Until so much time has passed on the server's own clock."""
        begin_us = self._time_us()
        while self._time_us() < begin_us + duration_ms * 1000:
            pass

    def _time_us(self) -> int:
        with Redis(port=self.port) as redis:
            seconds, microseconds = redis.time()
        return int(seconds) * 10**6 + int(microseconds)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def started_redis() -> Iterator[RedisServer]:
    """An empty Redis; skips where there is no binary."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no Redis on this machine (apt-get install redis-server)")
    with tempfile.TemporaryDirectory(prefix="sm4ll-redis-", ignore_cleanup_errors=True) as folder:
        server = RedisServer(binary, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """One of this test's own."""
    with started_redis() as server:
        yield server
