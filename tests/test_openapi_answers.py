"""What the API answers is what /openapi.json says, whatever is sent to it; and never a 5xx.

Schemathesis makes requests from the document, fitting ones and others, for every operation: on the
cluster as a tenant, and as an administrator in a process of its own. What an administrator may (add
versions, disable tenants, revoke keys) would sooner or later hit what other tests use.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import uvicorn

from serve.policy import SCOPES
from tests.fakes import build_local_api
from tests.tenants import add_key_to
from tests.up import Up

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
EXAMPLES_PER_OPERATION = 10
TIMEOUT_S = 600
TENANTS_SCOPES = tuple(scope for scope in SCOPES if scope != "admin")


@contextmanager
def served(family: Path) -> Iterator[tuple[str, str]]:
    """URL and administrator's key of an API that nobody else uses."""
    api = build_local_api(family, is_key_added=False)
    key = add_key_to(api, "schemathesis")
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", key
    finally:
        server.should_exit = True
        thread.join(30)


def ask_everything(url: str, key: str, folder: Path) -> None:
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run"),
        *(f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES_PER_OPERATION), "--request-timeout", "60"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "Tested: " in done.stdout


@pytest.mark.ray
def test_every_answer_to_a_tenant_is_as_the_document_says(up: Up, tmp_path: Path) -> None:
    ask_everything(up.url, up.open_tenant("schemathesis", TENANTS_SCOPES), tmp_path)


def test_every_answer_to_an_administrator_is_as_the_document_says(
    family: Path, tmp_path: Path
) -> None:
    with served(family) as (url, key):
        ask_everything(url, key, tmp_path)
