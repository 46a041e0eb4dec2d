"""`sm4ll experiments` against the real API: from a file to its end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import ApiError, Client
from serve.commands import experiments
from serve.commands.experiments import parse_weights, percent
from tests.fakes import build_local_api
from tests.tenants import LOCAL_TOKEN
from tests.test_tenants_command import Through

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
DESIGN = """
id: top-2
title: "[bold] claims"
expert: top
coverage: 5000
namespace: {name: shirts, end: 9000}
audience: {denied_tenants: [umbrella]}
arms:
  - {name: control, version: top@noop, weight: 9000}
  - {name: new, version: top@passthrough, weight: 1000}
"""


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with TestClient(build_local_api(FAMILY, is_key_added=False)) as http:

        def connect(url: str | None) -> Client:
            return Client("http://testserver", LOCAL_TOKEN, Through(http))

        monkeypatch.setattr(experiments, "connect", connect)
        yield http


def sm4ll(*words: str) -> Result:
    return CliRunner().invoke(app, ["experiments", *words], catch_exceptions=True)


def said(*words: str) -> str:
    result = sm4ll(*words)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_experiment_from_its_file_to_its_end(http: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "top-2.yaml"
    file.write_text(DESIGN)
    made = said("create", str(file))
    assert made == "top-2: draft; control 90%, new 10%; revision 1"
    assert said("create", str(file), "--start") == made.replace("draft", "running")
    moved = said("weights", "top-2", "control=87.5%", "new=1250", "--reason", "more")
    assert moved == "top-2: running; control 87.5%, new 12.5%; revision 2"
    shown = said("show", "top-2")
    for words in ("top, by user", "covers 50%", "shirts, buckets 0 to 9000", "umbrella"):
        assert words in shown
    assert "control 87.5%, new 12.5%; 2.5% changed hands; more" in shown
    listed = said("list")
    assert "control 87.5%" in listed
    assert "[bold] claims" in listed
    for unit, gets in (("u5", "control, top@noop\n"), ("u70", "new, top@passthrough\n")):
        assert said("assign", "top-2", "--unit", unit).startswith(gets)
    assert said("assign", "top-2", "--unit", "u0").startswith("no arm (")
    assert said("pause", "top-2", "--reason", "sale").startswith("top-2: paused (sale); ")
    assert "paused" in said("assign", "top-2", "--unit", "u1")
    assert said("resume", "top-2").startswith("top-2: running; ")
    assert said("end", "top-2").startswith("top-2: ended; ")
    again = sm4ll("start", "top-2")
    assert isinstance(again.exception, ApiError)
    assert again.exception.problem.remedy
    stale = sm4ll("weights", "top-2", "control=50%", "new=50%", "--revision", "1")
    assert isinstance(stale.exception, ApiError)
    assert stale.exception.problem.status == 409


@pytest.mark.parametrize(
    "pairs",
    [["control"], ["control=x", "new=1"], ["control=9000"], ["a=-1", "b=10001"], ["a=nan%"]],
    ids=str,
)
def test_weights_that_are_none_are_refused_before_anything_is_sent(pairs: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_weights(pairs)


def test_weights_without_their_percent_signs_are_told_what_is_missing() -> None:
    with pytest.raises(typer.BadParameter, match="write 75%, not 75"):
        parse_weights(["control=75", "new=25"])


def test_weights_are_read_as_they_are_written() -> None:
    assert parse_weights(["control=99.95%", "new=5"]) == {"control": 9_995, "new": 5}
    assert [percent(weight) for weight in (10_000, 1, 1_250)] == ["100%", "0.01%", "12.5%"]


@pytest.mark.parametrize("text", ["", "[1]", "id: top-2\n", f"{DESIGN}more: 1\n", "a: [\n"])
def test_a_file_that_is_no_experiment_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    result = sm4ll("create", str(file))
    assert result.exit_code == 2
    assert "wrong.yaml" in result.output
