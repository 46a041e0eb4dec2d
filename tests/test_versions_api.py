"""Adding a version over HTTP and by command: accepted as a wish, or refused naming the field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import Client
from serve.commands import served
from serve.commands.served import describe_replicas, is_this_machine
from serve.store.engine import Database
from serve.store.experiment_tables import ServedState
from serve.store.opening import database_url
from serve.store.served import delete_served, set_served_state
from tests.fakes import build_local_api
from tests.stores import START
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer, run
from tests.test_tenants_command import Through

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
BUNDLE: dict[str, Any] = {
    "expert": "top",
    "name": "second",
    "title": "changes nothing",
    "status": "benchmark",
    "licence": {"name": "none", "commercial_use": True},
    "backend": {"kind": "noop"},
}


def hosted(base_url: str) -> dict[str, Any]:
    return {"kind": "hosted", "provider": {"api": "fashn", "base_url": base_url}}


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


def set_state(api: FastAPI, version: str, state: ServedState | None, reason: str = "") -> None:
    """As the job runner does, which is not here; None when it is gone."""

    async def write() -> None:
        database = Database(database_url(api.state.settings))
        try:
            async with database.transaction() as session:
                if state is None:
                    assert await delete_served(session, version)
                    return
                wanted = ServedState.WANTED
                assert await set_served_state(session, version, wanted, state, reason, START)
        finally:
            await database.close()

    run(write())


def test_a_version_is_wished_for_listed_and_taken_away(api: FastAPI, http: TestClient) -> None:
    told = {"bundle": BUNDLE, "deployed": {"resources": {"num_cpus": 0.5}}, "home": "/srv/experts"}
    made = http.post("/v1/versions", json=told)
    assert made.status_code == 202, made.text
    card = made.json()
    assert (card["version"], card["state"], card["reason"]) == ("top@second", "wanted", None)
    assert (card["bundle"], card["home"]) == (BUNDLE, "/srv/experts")
    assert http.post("/v1/versions", json=told).json() == card
    assert http.get("/v1/versions").json() == {"items": [card], "next": None}
    assert http.get("/v1/versions/top@second").json() == card
    assert "top@second" not in [one["version"] for one in http.get("/v1/models").json()["models"]]
    changed = {**told, "bundle": {**BUNDLE, "title": "another"}}
    assert http.post("/v1/versions", json=changed).status_code == 409
    gone = http.delete("/v1/versions/top@second")
    assert (gone.status_code, gone.json()["state"]) == (202, "removing")
    set_state(api, "top@second", None)
    assert http.get("/v1/versions/top@second").status_code == 404
    assert http.delete("/v1/versions/top@second").status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bundle": {"expert": "top"}}, "bundle.name"),
        ({"bundle": {**BUNDLE, "name": "Second"}}, "bundle.name"),
        ({"bundle": {**BUNDLE, "expert": "hat"}}, "bundle.expert"),
        ({"bundle": {**BUNDLE, "crop": {"size_px": 0}}}, "bundle.crop.size_px"),
        ({"bundle": {**BUNDLE, "unknown": 1}}, "bundle.unknown"),
        ({"bundle": {**BUNDLE, "masker": {"kind": "matting", "model": {"path": "/m"}}}}, "bundle"),
        ({"deployed": {"autoscaling": {"min_replicas": 3}}}, "deployed.autoscaling"),
        ({"bundle": {**BUNDLE, "crop": {"size_px": 10**6}}}, "bundle.crop.size_px"),
        (
            {"deployed": {"autoscaling": {"max_replicas": 10**6}}},
            "deployed.autoscaling.max_replicas",
        ),
        ({"deployed": {"shared": "klein"}}, "deployed.shared"),
        ({"deployed": {"replicas": 2}}, "deployed.replicas"),
        ({"home": "experts"}, "home"),
        (
            {"bundle": {**BUNDLE, "backend": hosted("http://169.254.169.254")}},
            "bundle.backend.provider.base_url",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(
    http: TestClient, changes: dict[str, Any], field: str
) -> None:
    answer = http.post("/v1/versions", json={"bundle": BUNDLE, **changes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid_request"
    assert field in [error["field"] for error in answer.json()["errors"]]


@pytest.mark.parametrize(
    ("bundle", "status"),
    [
        ({**BUNDLE, "title": "a\u0000b"}, 400),
        ({**BUNDLE, "title": "a" * 300_000}, 400),
        ({**BUNDLE, "title": "\ud800"}, 400),
        ({**BUNDLE, "expert": ["top"], "name": {"a": 1}}, 400),
        ({**BUNDLE, "guidance": 1e999}, 400),
        ({**BUNDLE, "name": "noop"}, 409),
        ({**BUNDLE, "name": "api", "backend": hosted("https://api.fashn.ai")}, 202),
    ],
)
def test_no_bundle_is_a_failure_of_ours(
    http: TestClient, bundle: dict[str, Any], status: int
) -> None:
    body = json.dumps({"bundle": bundle}).encode()
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/versions", content=body, headers=headers)
    assert answer.status_code == status, answer.text


def test_versions_are_for_administrators(api: FastAPI, http: TestClient) -> None:
    key = add_key_to(api, "shop", scopes=("tryon", "versions"))
    for method, path in (("GET", ""), ("GET", "/top@a"), ("DELETE", "/top@a")):
        answer = http.request(method, f"/v1/versions{path}", headers=bearer(key))
        assert answer.status_code == 403
    answer = http.post("/v1/versions", json={"bundle": BUNDLE}, headers=bearer(key))
    assert answer.status_code == 403


def sm4ll(line: str) -> Result:
    return CliRunner().invoke(app, ["experts", *line.split()], catch_exceptions=True)


def test_command_deploys_the_familys_own_file_and_tells_why_it_failed(
    api: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family = tmp_path / "family.yaml"
    family.write_text("experts: [{version: top@noop}]\n")
    (tmp_path / "experts").mkdir()
    bundle = {**BUNDLE, "name": "third"}
    (tmp_path / "experts/top.third.yaml").write_text(yaml.safe_dump(bundle))

    def connect(url: str | None) -> Client:
        return Client("http://127.0.0.1", LOCAL_TOKEN, Through(http))

    monkeypatch.setattr(served, "connect", connect)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            set_state(api, "top@third", ServedState.FAILED, "golden sample 1 drifts by 9")

    monkeypatch.setattr(served, "sleep", sleep)
    failed = sm4ll(f"deploy top@third --family {family} --max-replicas 3")
    assert failed.exit_code == 1
    assert "golden sample 1 drifts by 9" in failed.stderr
    card = http.get("/v1/versions/top@third").json()
    assert card["deployed"]["autoscaling"] == {"max_replicas": 3}
    assert card["home"] == str((tmp_path / "experts").resolve()), "golden samples lie there"

    assert sm4ll(f"deploy top@third --family {family} --no-wait").exit_code == 0
    assert ["top@third", "wanted"] in [
        line.split()[:2] for line in sm4ll("served").stdout.splitlines()
    ]
    assert sm4ll("undeploy top@third --no-wait").exit_code == 0
    set_state(api, "top@third", None)
    wrong = sm4ll(f"deploy top@fourth --bundle {tmp_path}/experts/top.third.yaml")
    assert "the bundle of top@third" in str(wrong.exception)


def test_command_says_only_what_it_was_told() -> None:
    assert describe_replicas(None, None, None, None, False) == {}
    assert describe_replicas(5, None, 1, None, True) == {
        "autoscaling": {"min_replicas": 5, "max_replicas": 5},
        "resources": {"num_gpus": 1},
        "allow_noncommercial": True,
    }
    assert is_this_machine("http://127.0.0.1:8000")
    assert is_this_machine("http://localhost")
    assert not is_this_machine("https://tryon.example.com")
