"""k8s/README.md speaks of what is there, and leaves nothing out that somebody must know."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from k8s.observed import HERE
from serve.cli import app
from tests.manifests import COMPONENTS, DOCUMENTED_SECRETS, OVERLAYS, of_kind, overlay

TEXT = (HERE / "README.md").read_text(encoding="utf-8")
ROOT = HERE.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def test_every_path_is_there() -> None:
    paths = re.findall(r"`((?:k8s|serve|deployments|configs|tests)/[^\s`*<]*)`", TEXT)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_name_in_a_file_is_in_that_file() -> None:
    """The table of traps: `file.py`: `name`."""
    pairs = re.findall(r"`((?:k8s|serve)/\S+\.(?:py|yaml))`: `([A-Za-z_.]+)(?::[^`]*)?`", TEXT)
    assert len(pairs) > 15
    for path, name in pairs:
        text = Path(ROOT / path).read_text(encoding="utf-8")
        for part in name.split("."):
            assert part in text, (path, part)


def test_every_command_is_one() -> None:
    commands = get_command(app)
    asked = set(re.findall(r"(?:^|`|\()sm4ll ((?:[a-z0-9]+ ?)+)", TEXT, re.MULTILINE))
    assert {"k8s apply ", "store key", "tryon "} <= asked
    for words in asked:
        command = commands
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, words
            command = command.commands[word]


def test_empty_cluster_is_fewer_than_ten_commands_from_a_tryon() -> None:
    laptop, production, _ = BLOCKS
    for block in (laptop, production):
        lines = block.strip().splitlines()
        assert len(lines) < 10
        assert lines[-1].startswith("sm4ll tryon ")


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_opening_is_explained(name: str) -> None:
    for policy in of_kind(overlay(name), "NetworkPolicy"):
        assert f"`{policy['metadata']['name']}`" in TEXT


def test_every_secret_and_component_is_explained() -> None:
    for secret, keys in DOCUMENTED_SECRETS.items():
        (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{secret}` |"))
        # The laptop's own database is the only one that reads its password.
        for key in keys - ({"password"} if secret == "sm4ll-database" else set()):
            assert f"`{key}`" in row, (secret, key)
    for component in COMPONENTS:
        assert f"`{component}`" in TEXT
