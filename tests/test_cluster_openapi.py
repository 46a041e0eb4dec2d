"""What the API answers is what /openapi.json says, whatever is sent to it; and never a 5xx.

Schemathesis makes requests from the document, fitting ones and others, for every operation.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.up import Up

pytestmark = pytest.mark.ray

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
# An administrator's list has the ids of all tenants and keys: asked about those by name, it would
# sooner or later disable the tenant, or revoke the key, that every later test uses.
CONFIG = "".join(
    f"[phases.{phase}.extra-data-sources]\nresponses = false\n" for phase in ("coverage", "fuzzing")
)
EXAMPLES_PER_OPERATION = 10
TIMEOUT_S = 600


def test_every_answer_is_as_the_document_says(up: Up, tmp_path: Path) -> None:
    # A tenant of its own: what administrators may is tried on it and not on the other tests'.
    key = up.open_tenant("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run"),
        *(f"{up.url}/openapi.json", "--header", f"Authorization: Bearer {key}"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES_PER_OPERATION), "--request-timeout", "60"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "Tested: " in done.stdout
    up.open_tenant("untouched")  # with the administrator's key
