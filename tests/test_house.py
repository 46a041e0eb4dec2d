"""The house rules that no linter knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("serve", "deployments", "k8s") for p in (ROOT / top).rglob("*.py"))
MAY_IMPORT_RAY = {
    "serve/added.py",
    "serve/app.py",
    "serve/job_runner.py",
    "serve/router.py",
    "serve/fleet.py",
    "serve/least_loaded.py",
    "serve/local.py",
    "serve/local_app.py",
    "serve/ray_meter.py",
    "serve/trace_headers.py",
    "serve/transports.py",
    "deployments/expert.py",
    "deployments/judging.py",
    "deployments/segmentation.py",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_our_package_is_imported_by_its_full_path_only(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^\s*import (serve|deployments)\b", text, re.M)
    assert "from __future__ import annotations" not in text


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_ray_is_imported_only_where_the_graph_is(path: Path) -> None:
    imports_ray = re.search(r"^\s*(from|import) ray\b", path.read_text(), re.M)
    assert not imports_ray or relative(path) in MAY_IMPORT_RAY


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_module_stays_below_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_importing_the_app_loads_no_torch() -> None:
    code = (
        "import sys, serve.app; "
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_fields_are_described_late(path: Path) -> None:
    """One model that has pydantic read its source costs every process that imports it 50 ms."""
    uses = "use_attribute_docstrings=" in path.read_text()
    assert not uses, "serve.described.Described does it when somebody asks"
