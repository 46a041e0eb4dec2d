"""`sm4ll assets` and `sm4ll webhooks` against the real API: what they say and exit with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from standardwebhooks.webhooks import Webhook
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import ApiError, Client
from serve.commands import assets, webhooks
from tests.fakes import build_local_api
from tests.pictures import encoded, photo
from tests.tenants import LOCAL_TOKEN
from tests.test_tenants_command import FAMILY, Through
from tests.test_webhooks import Receivers
from tests.test_webhooks_api import deliver

HOOK = "https://shop.example.org/hook"


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as http:
        yield http


@pytest.fixture(autouse=True)
def connected(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str | None) -> Client:
        return Client("http://testserver", LOCAL_TOKEN, Through(http))

    monkeypatch.setattr(assets, "connect", connect)
    monkeypatch.setattr(webhooks, "connect", connect)


def sm4ll(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def said(*arguments: str) -> str:
    result = sm4ll(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.stdout.strip()


def test_picture_is_uploaded_listed_and_deleted(tmp_path: Path, http: TestClient) -> None:
    (tmp_path / "more").mkdir()
    for seed, name in enumerate(("a.png", "more/b.png", "more/c.png")):
        (tmp_path / name).write_bytes(encoded(photo(64, 64, seed)))
    paths = (str(tmp_path / "a.png"), str(tmp_path / "more"))
    lines = said("assets", "upload", *paths, "--subject", "anna").splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["a.png", "b.png", "c.png"]
    ids = [line.split()[0] for line in lines]
    assert said("assets", "upload", *paths, "--subject", "anna").splitlines() == lines
    assert http.get(f"/v1/assets/{ids[0]}/content").content == (tmp_path / "a.png").read_bytes()
    listed = said("assets", "list", "--subject", "anna", "--kind", "input")
    assert all(asset_id in listed for asset_id in ids)
    assert "64x64" in listed
    assert ids[0] not in said("assets", "list", "--subject", "ben")
    assert said("assets", "delete", *ids[:2]).count("is deleted") == 2
    gone = sm4ll("assets", "delete", ids[0])
    assert isinstance(gone.exception, ApiError)
    assert gone.exception.problem.code == "not_found"


def test_erasing_a_person_prints_the_proof(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo(64, 64, 5)))
    asset_id = said("assets", "upload", str(tmp_path / "a.png"), "--subject", "zoe").split()[0]
    record = json.loads(said("assets", "erase", "zoe"))
    assert [asset["id"] for asset in record["assets"]] == [asset_id]
    assert record["is_complete"]
    assert json.loads(said("assets", "erase", "zoe"))["assets"] == []


@pytest.mark.parametrize(
    "line", ["assets list --kind photo", "webhooks deliveries --status lost", "assets erase"]
)
def test_wrong_word_is_refused_before_anything_is_sent(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "connect", None)
    monkeypatch.setattr(webhooks, "connect", None)
    assert sm4ll(*line.split()).exit_code == 2


@pytest.mark.parametrize("subject", ["", "a" * 129, "a\nb"])
def test_no_subject_is_a_wrong_argument(subject: str) -> None:
    assert sm4ll("assets", "erase", subject).exit_code == 2


def test_message_is_sent_shown_and_sent_again(api: FastAPI) -> None:
    secret = sm4ll("webhooks", "secret", "rotate", "--overlap-h", "0")
    assert secret.stdout.startswith("whsec_")
    assert len(secret.stdout.split()) == 1
    assert "shown once" in secret.stderr
    delivery, status = said("webhooks", "test", HOOK).split()
    assert status == "pending"
    post = Receivers()
    deliver(api, post)
    Webhook(secret.stdout.strip()).verify(post.bodies[0], dict(post.headers[0]))
    listed = said("webhooks", "deliveries", "--status", "delivered")
    assert delivery in listed
    assert "200" in listed
    assert said("webhooks", "redeliver", delivery).split() == [delivery, "pending"]
    assert delivery not in said("webhooks", "deliveries", "--status", "delivered")


def test_old_secret_is_listed_until_its_overlap_ends() -> None:
    said("webhooks", "secret", "rotate")
    said("webhooks", "secret", "rotate", "--overlap-h", "2")
    listed = said("webhooks", "secret", "list")
    assert listed.count("always") == 1
    assert len(listed.splitlines()) >= 4
    assert "whsec_" not in listed


@pytest.mark.parametrize("overlap_h", ["-1", "169"])
def test_overlap_out_of_range_is_refused(overlap_h: str) -> None:
    result = sm4ll("webhooks", "secret", "rotate", "--overlap-h", overlap_h)
    assert result.exit_code == 2
