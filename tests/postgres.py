"""A private PostgreSQL from Debian's binaries: its own directory, its own port, gone afterwards."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from serve.settings import free_port
from serve.store.schema import upgrade

INSTALLED = Path("/usr/lib/postgresql")
OWNER = "postgres"
TEMPLATE = "migrated"
MEMORY = Path("/dev/shm")
ROOM_BYTES = 1 << 30


class PostgresServer:
    """One server on loopback. Refuses to run as root, so root lends it to Debian's user."""

    def __init__(self, binaries: Path, directory: Path):
        self._binaries = binaries
        self._directory = directory
        self._as_user = {"user": OWNER, "group": OWNER} if os.geteuid() == 0 else {}
        self.port = free_port()
        if self._as_user:
            shutil.chown(directory, OWNER, OWNER)
        self._run("initdb", "-U", OWNER, "--auth=trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        # Nothing here has to survive a power cut, and many tests hold connections at once.
        flags = f"-p {self.port} -h 127.0.0.1 -k {self._directory} -F -c max_connections=200"
        self._run("pg_ctl", "-w", "-l", str(self._directory / "log"), "-o", flags, "start")

    def stop(self) -> None:
        """As a crash would: nobody is waited for."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def create_database(self, template: str = "template1") -> str:
        """The URL of a new database."""
        name = f"t{uuid4().hex}"
        asyncio.run(self._execute(f"CREATE DATABASE {name} TEMPLATE {template}"))
        return self.url(name)

    @contextmanager
    def lent_database(self, template: str = "template1") -> Iterator[str]:
        """The same for one test: what hundreds leave behind would fill the folder."""
        url = self.create_database(template)
        try:
            yield url
        finally:
            name = url.rpartition("/")[2]
            asyncio.run(self._execute(f"DROP DATABASE {name} WITH (FORCE)"))

    def create_template(self) -> None:
        asyncio.run(self._execute(f"CREATE DATABASE {TEMPLATE}"))
        asyncio.run(upgrade(self.url(TEMPLATE)))

    def url(self, database: str) -> str:
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/{database}"

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._directory / "data"), *arguments]
        done = subprocess.run(
            command, cwd=self._directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, **self._as_user,  # type: ignore[call-overload]
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")


def find_binaries() -> Path:
    """Debian's newest; skips where there are none."""
    found = [path.parent for path in INSTALLED.glob("*/bin/initdb")]
    if not found:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    return max(found, key=lambda path: float(path.parent.name))


def find_memory() -> Path | None:
    """The folder that is memory, where it has room: databases come and go several times as fast."""
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    return MEMORY if has_room else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of this run, with one database that has the schema, to be copied."""
    binaries = find_binaries()
    # Not pytest's own folder: Debian's user may not enter that of root.
    with tempfile.TemporaryDirectory(
        prefix="sm4ll-pg-", dir=find_memory(), ignore_cleanup_errors=True
    ) as folder:
        server = PostgresServer(binaries, Path(folder))
        server.start()
        try:
            server.create_template()
            yield server
        finally:
            server.stop()
