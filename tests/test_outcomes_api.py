"""What people say about answers is kept once, in its order, and only for their own tenant."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import Client
from serve.commands import outcomes as commands
from serve.store.engine import Database
from serve.store.experiment_tables import Verdict
from serve.store.outcomes import (
    NewOutcome,
    list_outcomes,
    record_outcomes,
    remove_expired_outcomes,
)
from tests.fakes import build_local_api
from tests.stores import START, add_tenant
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer
from tests.test_tenants_command import Through

LATER = START + timedelta(days=400)


@pytest.fixture(scope="module")
def api(family: Path) -> FastAPI:
    return build_local_api(family)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@pytest.fixture
def connected(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str | None) -> Client:
        return Client("http://testserver", LOCAL_TOKEN, Through(http))

    monkeypatch.setattr(commands, "connect", connect)


def say(http: TestClient, body: Any, token: str = LOCAL_TOKEN) -> Response:
    return http.post("/v1/outcomes", json=body, headers=bearer(token))


def told(http: TestClient, request_id: str, token: str = LOCAL_TOKEN) -> list[tuple[str, str]]:
    answer = http.get(
        "/v1/outcomes", params={"request_id": request_id}, headers=bearer(token)
    ).json()
    return [(item["verdict"], item["reason"]) for item in answer["items"]]


@pytest.mark.anyio
async def test_said_again_it_is_the_first_one_and_order_is_kept(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
    said = [
        NewOutcome(request_id="r", verdict=Verdict.REJECTED, reason="too red"),
        NewOutcome(request_id="r", verdict=Verdict.ACCEPTED),
        NewOutcome(request_id="r", verdict=Verdict.REJECTED, reason="again"),
        NewOutcome(request_id="a", verdict=Verdict.CONVERTED),
    ]
    async with database.transaction() as session:
        first = await record_outcomes(session, "acme", said, START, LATER)
        assert [is_new for _, is_new in first] == [True, True, False, True]
        assert first[0][0].reason == first[2][0].reason == "too red"
        assert first[0][0].at < first[1][0].at
    async with database.transaction() as session:
        again = await record_outcomes(session, "acme", said[2:3], LATER, LATER)
        assert [(row.id, row.at, new) for row, new in again] == [(first[0][0].id, START, False)]
    for expected in (2, 1, 0):
        async with database.transaction() as session:
            assert await remove_expired_outcomes(session, "acme", LATER, 2) == expected
    async with database.reading() as session:
        assert await list_outcomes(session, "acme") == []


def test_new_is_201_and_the_same_again_is_200_with_the_first(http: TestClient) -> None:
    body = {"request_id": "req_one", "verdict": "rejected", "reason": "too red"}
    first = say(http, body)
    again = say(http, {**body, "reason": "another"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["items"] == again.json()["items"]
    assert (first.json()["num_new"], again.json()["num_new"]) == (1, 0)
    assert say(http, {"request_id": "req_one", "verdict": "accepted"}).status_code == 201
    assert set(told(http, "req_one")) == {("rejected", "too red"), ("accepted", "")}


def test_many_are_said_at_once_and_listed_by_page(http: TestClient, api: FastAPI) -> None:
    token = add_key_to(api, "lists", ("review",))
    many = [{"request_id": f"req_{n}", "verdict": "returned"} for n in range(1000)]
    assert say(http, {"outcomes": many}, token).json()["num_new"] == 1000
    seen: list[str] = []
    after = None
    while True:
        parameters = {"limit": 200, **({"after": after} if after else {})}
        page = http.get("/v1/outcomes", params=parameters, headers=bearer(token)).json()
        seen += [item["request_id"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(seen) == sorted(one["request_id"] for one in many)
    assert say(http, {"outcomes": [*many, many[0]]}, token).status_code == 400


def test_another_tenant_sees_and_changes_nothing_of_it(http: TestClient, api: FastAPI) -> None:
    other = add_key_to(api, "umbrella", ("tryon",))
    say(http, {"request_id": "req_shared", "verdict": "accepted"})
    assert told(http, "req_shared", other) == []
    assert say(http, {"request_id": "req_shared", "verdict": "accepted"}, other).status_code == 201
    assert len(told(http, "req_shared")) == len(told(http, "req_shared", other)) == 1


def test_a_key_without_the_scope_is_refused(http: TestClient, api: FastAPI) -> None:
    token = add_key_to(api, "jobber", ("jobs",))
    answer = say(http, {"request_id": "r", "verdict": "accepted"}, token)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"request_id": "r"},
        {"request_id": "r", "verdict": "liked"},
        {"request_id": "r\u0000", "verdict": "accepted"},
        {"request_id": "r", "verdict": "accepted", "reason": "x" * 201},
        {"outcomes": []},
        {"verdict": "accepted", "outcomes": [{"request_id": "r", "verdict": "accepted"}]},
    ],
)
def test_what_says_nothing_is_400(http: TestClient, body: dict[str, Any]) -> None:
    answer = say(http, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def sm4ll(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["outcomes", *arguments], env={"COLUMNS": "200"})


@pytest.mark.usefixtures("connected")
def test_command_says_one(http: TestClient) -> None:
    result = sm4ll("add", "req_cli", "rejected", "--reason", "hue")
    assert result.exit_code == 0, result.output
    assert told(http, "req_cli") == [("rejected", "hue")]
    assert sm4ll("add", "req_cli", "liked").exit_code == 2


@pytest.mark.usefixtures("connected")
def test_a_shops_file_is_sent_and_bad_lines_are_told_by_number(
    http: TestClient, tmp_path: Path
) -> None:
    file = tmp_path / "returns.csv"
    lines = [
        "Request_ID;verdict;reason;shop",
        "csv_1;Returned;too; wide",
        "csv_2;liked;",
        ";accepted;",
    ]
    file.write_text("\r\n".join([*lines, "csv_3; converted"]), encoding="utf-8-sig")
    result = sm4ll("import", str(file))
    assert result.exit_code == 1
    assert "2 new, 0 said before, 2 lines not understood" in result.stdout
    assert "returns.csv:3: verdict 'liked'" in result.stderr
    assert "returns.csv:4: request_id ''" in result.stderr
    assert told(http, "csv_1") == [("returned", "too")]
    assert told(http, "csv_3") == [("converted", "")]
    assert "0 new, 2 said before" in sm4ll("import", str(file)).stdout


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("content", [b"", b"name,age\n", b"request_id,verdict\n\xff\xfe"])
def test_what_is_no_such_table_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.csv"
    file.write_bytes(content)
    result = sm4ll("import", str(file))
    assert result.exit_code == 2
    assert "other.csv" in result.stderr
