"""The default of an expert changes on every router without a restart, and says what it was."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.errors import Conflict
from serve.experiments.defaults import Defaults
from serve.store.audit import list_records
from serve.store.defaults import clear_default, find_default, set_default
from serve.store.engine import Database
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.routing import read_revision
from tests.fakes import build_local_api
from tests.stores import START, FakeClock, add_tenant
from tests.tenants import add_key_to, bearer
from tests.two_tops import design, run_experiment, write_two_tops


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return build_local_api(write_two_tops(tmp_path_factory.mktemp("tops") / "family"))


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def test_default_is_set_shown_and_given_back(http: TestClient) -> None:
    first = http.put("/v1/experts/top/default", json={"version": "2"})
    assert first.status_code == 200, first.text
    card = first.json()
    assert (card["default"], card["previous"], card["source"]) == ("top@2", "top@1", "cluster")
    card = http.put("/v1/experts/top/default", json={"version": "top@3"}).json()
    assert (card["default"], card["previous"]) == ("top@3", "top@2")
    again = http.put("/v1/experts/top/default", json={"version": "top@3"}).json()
    assert (again["previous"], again["changed_at"]) == ("top@2", card["changed_at"])
    models = http.get("/v1/models").json()["models"]
    assert [m["version"] for m in models if m["default"]] == ["top@3", "eye@1"]
    eye, top = http.get("/v1/experts").json()["items"]
    assert top == again
    assert (eye["default"], eye["source"], eye["set"]) == ("eye@1", "family", None)
    assert top["versions"] == ["top@1", "top@2", "top@3"]
    card = http.delete("/v1/experts/top/default").json()
    assert (card["default"], card["source"], card["set"]) == ("top@1", "family", None)
    assert http.delete("/v1/experts/top/default").status_code == 200
    acts = [one["action"] for one in http.get("/v1/audit").json()["items"]]
    assert acts[:2] == ["default.clear", "default.set"]


@pytest.mark.parametrize(
    ("path", "version", "status"),
    [
        ("/v1/experts/top/default", "top@4", 404),
        ("/v1/experts/top/default", "eye@1", 404),
        ("/v1/experts/dress/default", "dress@1", 404),
        ("/v1/experts/hat/default", "hat@1", 400),
    ],
)
def test_what_is_not_deployed_is_no_default(
    http: TestClient, path: str, version: str, status: int
) -> None:
    answer = http.put(path, json={"version": version})
    assert answer.status_code == status, answer.text


def test_defaults_are_for_administrators(api: FastAPI, http: TestClient) -> None:
    headers = bearer(add_key_to(api, "hooli", ("tryon", "jobs", "versions", "review")))
    wanted = {"version": "top@2"}
    path = "/v1/experts/top/default"
    assert http.put(path, json=wanted, headers=headers).status_code == 403
    assert http.delete(path, headers=headers).status_code == 403
    assert http.get("/v1/experts", headers=headers).status_code == 403


@pytest.mark.anyio
async def test_change_keeps_the_last_good_one_and_raises_the_revision(database: Database) -> None:
    clock = FakeClock()
    async with database.transaction() as session:
        before = await read_revision(session)
        await set_default(session, "top", "top@2", "key", clock(), instead_of="top@1")
        clock.advance(60)
        await set_default(session, "top", "top@3", "rollout", clock())
        await set_default(session, "top", "top@3", "somebody", clock())  # changes nothing
    async with database.reading() as session:
        row = await find_default(session, "top")
        assert row is not None
        assert (row.version, row.previous, row.changed_by) == ("top@3", "top@2", "rollout")
        assert row.changed_at == START + timedelta(seconds=60)
        assert await read_revision(session) == before + 2
    async with database.transaction() as session:
        assert await clear_default(session, "top") is not None
        assert await clear_default(session, "top") is None
    async with database.reading() as session:
        assert await find_default(session, "top") is None
        assert await read_revision(session) == before + 3


@pytest.mark.anyio
async def test_nobody_meddles_with_an_open_rollout(database: Database) -> None:
    await run_experiment(database, design("rollout-1"))
    defaults = Defaults(database, FakeClock())
    async with database.transaction() as session:
        await add_tenant(session)
        session.add(
            Rollout(
                id="rol-1",
                told_tenant_id="acme",
                experiment_id="rollout-1",
                expert="top",
                plan={},
                numbers={},
                state=RolloutState.RUNNING,
                stage=0,
                revision=1,
                stage_started_at=START,
                created_by="tests",
                created_at=START,
                updated_at=START,
            )
        )
    for act in (
        lambda: defaults.set("key", "top", "top@2", "top@1"),
        lambda: defaults.clear("key", "top"),
    ):
        with pytest.raises(Conflict, match="rol-1"):
            await act()
    await defaults.set("key", "eye", "eye@1", None)
    async with database.transaction() as session:
        rollout = await session.get_one(Rollout, "rol-1")
        rollout.finished_at = START
    await defaults.set("key", "top", "top@2", "top@1")
    async with database.reading() as session:
        records = await list_records(session, limit=10)
    assert [(r.actor, r.action, r.target) for r in records] == [
        ("key", "default.set", "top"),
        ("key", "default.set", "eye"),
    ]
