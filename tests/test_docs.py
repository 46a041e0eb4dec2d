"""What the README says exists."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deployments.backends.registry import BACKENDS
from deployments.bundle import Bundle
from deployments.segmenters.registry import SEGMENTERS
from serve import errors
from serve.config import FamilyConfig
from serve.errors import Sm4llError
from serve.schemas.tryon import TryOnOptions
from serve.telemetry import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_json_answer_in_the_readme_is_json_with_real_fields() -> None:
    (answer,) = map(json.loads, blocks("json"))
    assert set(answer["receipt"]["timings_ms"]) <= {*STAGES, "total"}


def test_bundle_and_family_in_the_readme_are_what_they_say() -> None:
    bundle, family = map(yaml.safe_load, blocks("yaml"))
    assert Bundle.model_validate(bundle).version == "eye@2"
    assert FamilyConfig.model_validate(family).shared[0].name == "klein"


def test_readme_names_every_backend_and_masker_kind() -> None:
    for kind in (*BACKENDS.keys() - {"noop"}, *SEGMENTERS):
        assert f"| `{kind}` |" in README


def test_every_command_in_the_readme_exists() -> None:
    from typer.main import get_command

    from serve.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^(?:\.venv/bin/)?sm4ll (\w+)", "".join(blocks("sh")), re.M))
    assert used
    assert used <= known
    targets = set(re.findall(r"^make (\w+)", "".join(blocks("sh")), re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_every_file_named_in_the_readme_exists() -> None:
    named = re.findall(r"\b((?:serve|deployments|configs|tests)/[\w./]*\w)", README)
    assert len(named) > 10
    missing = {name for name in named if not (ROOT / name).exists()} - {
        "configs/experts/eye.2.yaml"
    }
    assert not missing


def test_errors_table_has_real_codes_and_statuses() -> None:
    kinds = {
        kind.code: kind.status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Sm4llError)
    }
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", README, re.M)
    assert len(rows) >= 10
    assert {code: int(status) for code, status in rows}.items() <= kinds.items()


@pytest.mark.parametrize("name", [*TryOnOptions.model_fields, "person", "product", "mask"])
def test_every_option_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README
