"""What somebody meets who reads the document, or uses the API, for the first time."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.testclient import TestClient
from typer.main import get_command

from serve.api.authentication import PUBLIC_PATHS
from serve.cli import app
from serve.commands import jobs as job_commands
from serve.commands import keys as key_commands
from serve.policy import SCOPES
from serve.schemas.assets import ErasureRequest
from serve.schemas.batches import BatchRequest
from serve.schemas.experiments import NewExperiment, WeightsChange
from serve.schemas.experts import DefaultChange
from serve.schemas.jobs import JobJson, JobPage
from serve.schemas.keys import KeyCard, KeyRotation, NewKey
from serve.schemas.outcomes import OutcomeRequest
from serve.schemas.pins import PinRequest
from serve.schemas.rollouts import NewRollout
from serve.schemas.tenants import NewTenant, TenantChange
from serve.schemas.tryon import TryOnJson
from serve.schemas.versions import NewVersion
from serve.schemas.webhooks import RotationRequest, TestMessage
from serve.store.ids import new_id
from serve.store.job_cards import describe_job
from serve.store.tables import Job, JobClass, JobState
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo

BODIES: dict[str, type[BaseModel]] = {
    "post /v1/tryon": TryOnJson,
    "post /v1/jobs": JobJson,
    "post /v1/batches": BatchRequest,
    "post /v1/erasures": ErasureRequest,
    "post /v1/outcomes": OutcomeRequest,
    "post /v1/versions": NewVersion,
    "post /v1/experiments": NewExperiment,
    "put /v1/experiments/{experiment_id}/weights": WeightsChange,
    "post /v1/rollouts": NewRollout,
    "put /v1/pins/{collection}": PinRequest,
    "put /v1/experts/{expert}/default": DefaultChange,
    "post /v1/webhooks/test": TestMessage,
    "post /v1/webhooks/secrets/rotate": RotationRequest,
    "post /v1/tenants": NewTenant,
    "patch /v1/tenants/{tenant_id}": TenantChange,
    "post /v1/tenants/{tenant_id}/keys": NewKey,
    "post /v1/tenants/{tenant_id}/keys/{key_id}/rotate": KeyRotation,
}


@pytest.fixture(scope="module")
def http(family: Path) -> Iterator[TestClient]:
    api: FastAPI = build_local_api(family)
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_document_says_nothing_twice(http: TestClient) -> None:
    """`json` keeps the last of two equal keys; stricter readers refuse them."""

    def refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(set(names)) == len(names), names
        return dict(pairs)

    json.loads(http.get("/openapi.json").text, object_pairs_hook=refuse_doubles)


def test_every_route_with_a_key_says_that_it_may_be_asked_too_often(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    silent = [
        f"{method} {path}"
        for method, path, operation in operations(document)
        if path not in PUBLIC_PATHS and "429" not in operation["responses"]
    ]
    assert silent == []


def test_every_json_body_has_an_example_that_would_be_taken(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    shown = {}
    for method, path, operation in operations(document):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            shown[f"{method} {path}"] = _examples(document, body["schema"])
    assert set(shown) == set(BODIES)
    for name, examples in shown.items():
        assert examples, name
        for example in examples:
            BODIES[name].model_validate(example)


def _examples(document: dict[str, Any], schema: dict[str, Any]) -> list[Any]:
    found = list(schema.get("examples", ()))
    for each in (schema, *schema.get("anyOf", ())):
        name = each.get("$ref", "").rpartition("/")[2]
        found += document["components"]["schemas"].get(name, {}).get("examples", ())
    return found


def test_a_batch_is_told_in_the_words_in_which_it_is_polled(http: TestClient) -> None:
    url = "https://shop.invalid/a.png"
    made = http.post(
        "/v1/batches",
        json={
            "expert": "top",
            "version": "noop",
            "products": [{"sku": "A1", "image": url}],
            "persons": [{"name": "one", "image": url}],
            "webhook_url": "https://shop.invalid/hook",
        },
    )
    assert made.status_code == 201, made.text
    polled = http.post(f"{made.headers['location']}/cancel").json()
    (message,) = http.get("/v1/webhooks/deliveries").json()["items"]
    detail = http.get(f"/v1/webhooks/deliveries/{message['id']}").json()
    told = detail["payload"]["data"]
    assert detail["payload"]["type"] == "batch.cancelled"
    assert told.pop("links").items() <= polled["links"].items()
    assert _in_seconds(told) == {name: _in_seconds(polled)[name] for name in told}


def _in_seconds(card: dict[str, Any]) -> dict[str, Any]:
    return {**card, "finished_at": card["finished_at"][:19]}


@pytest.mark.parametrize(
    ("path", "remedy"), [("/v1/job", "/openapi.json"), ("/v1/jobs/", "none of them ends")]
)
def test_a_wrong_path_is_told_where_the_right_ones_are(
    http: TestClient, path: str, remedy: str
) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert remedy in answer.json()["remedy"]


def test_a_wrong_method_is_told_which_ones_there_are(http: TestClient) -> None:
    answer = http.put("/v1/jobs")
    assert answer.status_code == 405
    assert answer.headers["allow"]
    assert "Allow" in answer.json()["remedy"]


def test_events_and_polls_say_where_the_pictures_are(http: TestClient) -> None:
    files = {
        "person": encoded(photo()),
        "product": encoded(photo(64, 64, seed=1)),
        "mask": encoded(box_mask()),
    }
    made = http.post("/v1/jobs", data={"expert": "top", "version": "noop"}, files=files)
    path = made.headers["location"]
    last = http.get(f"{path}/events").text.rstrip().rpartition("data: ")[2]
    outputs = json.loads(last)["outputs"]
    assert outputs == http.get(path).json()["outputs"]
    assert http.get(outputs[0]["url"]).status_code == 200
    for refused in (http.delete(path), http.get("/v1/jobs/job_x"), http.get("/v1/batches/bat_x")):
        assert refused.status_code in (404, 409)
        assert refused.json()["remedy"]


def commands() -> Iterator[tuple[str, str]]:
    """Every command that works on a running API, and its help."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, str]]:
        for sub, each in getattr(command, "commands", {}).items():
            yield from walk(each, f"{name} {sub}")
        if not hasattr(command, "commands"):
            yield name, command.help or ""

    known = get_command(app).commands  # type: ignore[attr-defined]
    groups = ("jobs", "batches", "webhooks", "assets", "tenants", "store", "usage")
    for name in (*groups, "experiments", "rollouts"):
        yield from walk(known[name], name)


def test_the_help_of_every_command_shows_one_that_would_be_understood() -> None:
    for name, text in commands():
        assert f"sm4ll {name}" in text.partition("For example:")[2], name


def test_no_table_of_jobs_or_keys_cuts_anything_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve.commands.console.out._width", 80)
    at = datetime(2026, 11, 25, 19, 1, tzinfo=UTC)
    job = describe_job(
        Job(
            tenant_id="acme",
            id=new_id("job"),
            version="bottom@klein-lora-3",
            state=JobState.PARKED,
            priority=JobClass.INTERACTIVE,
            request={},
            subject="",
            attempts=12,
            predicted_gpu_ms=1,
            created_at=at,
        )
    )
    key = KeyCard(
        id=new_id("key"),
        tenant="acme",
        name="storefront of the shop",
        scopes=SCOPES,
        created_at=at,
        expires_at=at,
        revoked_at=None,
        last_used_at=at,
    )

    class Known:
        def __enter__(self) -> "Known":
            return self

        def __exit__(self, *_: object) -> None: ...

        def jobs(self, *_: object, **__: object) -> JobPage:
            return JobPage(items=(job,), next=None)

        def keys(self, _: str) -> list[KeyCard]:
            return [key]

    for module in (job_commands, key_commands):
        monkeypatch.setattr(module, "connect", lambda _: Known())
    job_commands.list_jobs(None, 20)
    key_commands.list_keys("acme")
    shown = capsys.readouterr().out
    assert "\u2026" not in shown
    assert job.id in shown
    assert key.id in shown
    assert max(map(len, shown.splitlines())) <= 80
