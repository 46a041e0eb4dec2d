"""What requests over HTTP leave behind in an experiment, and for how long."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.store.engine import Database
from serve.store.experiment_tables import Exposure
from serve.store.exposures import Seen, read_exposures
from serve.store.opening import database_url
from serve.tenancy.retention import Sweeper
from tests.fakes import build_local_api
from tests.tenants import run
from tests.test_witness import PICTURES, add_experiment


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return local_api(tmp_path_factory.mktemp("configs"))


def local_api(folder: Path) -> FastAPI:
    """With two versions that change nothing, and the experiment `shirts` on them."""
    (folder / "experts").mkdir()
    for name in ("a", "b"):
        (folder / f"experts/top.{name}.yaml").write_text(
            f"expert: top\nname: {name}\ntitle: nothing\nstatus: benchmark\n"
            "backend: {kind: noop}\nlicence: {name: none, commercial_use: true}\n"
        )
    family = folder / "family.yaml"
    family.write_text("bundles_dir: experts\nexperts:\n  - version: top@a\n  - version: top@b\n")
    api = build_local_api(family)
    _with_database(api, _add_to)
    return api


async def _add_to(database: Database) -> None:
    async with database.transaction() as session:
        await add_experiment(session)


def _with_database(api: FastAPI, work: Callable[[Database], Any]) -> Any:
    async def do() -> Any:
        database = Database(database_url(api.state.settings))
        try:
            return await work(database)
        finally:
            await database.close()

    return run(do())


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def exposures_of(api: FastAPI, http: TestClient) -> dict[str, Seen]:
    """By id, once everything is written."""

    async def read(database: Database) -> list[Seen]:
        async with database.reading() as session:
            return await read_exposures(session, "shirts")

    assert http.portal is not None
    http.portal.call(api.state.services.recorder.flush)
    return {seen.id: seen for seen in _with_database(api, read)}


def ask(http: TestClient, path: str = "/v1/tryon", **more: Any) -> Any:
    data = {"expert": "top", "unit": "customer 4711", "format": "png", **more.pop("data", {})}
    return http.post(path, data=data, files=more.pop("files", PICTURES), **more)


def test_an_answer_over_http_leaves_an_exposure_that_names_nobody(
    api: FastAPI, http: TestClient
) -> None:
    answer = ask(http, data={"tags": "season=ss27", "category": "shirt"})
    assert answer.status_code == 200, answer.text
    seen = exposures_of(api, http)[answer.headers["sm4ll-id"]]
    assert seen.arm == answer.headers["sm4ll-arm"] in ("old", "new")
    assert (seen.request_id, seen.category) == (answer.headers["x-request-id"], "shirt")
    assert seen.metrics["outside"] == 0.0

    async def read_row(database: Database) -> Exposure | None:
        async with database.reading() as session:
            return await session.get(Exposure, ("local", seen.id, False))

    row = _with_database(api, read_row)
    written = {column.name: str(getattr(row, column.name)) for column in Exposure.__table__.columns}
    assert not [name for name, said in written.items() if "4711" in said]
    assert (row.expires_at - row.at).days in (399, 400)


def test_a_refusal_over_http_leaves_its_code(api: FastAPI, http: TestClient) -> None:
    before = exposures_of(api, http)
    answer = ask(http, files={name: PICTURES[name] for name in ("person", "product")})
    assert answer.json()["code"] == "subject_not_found"
    after = exposures_of(api, http)
    (new,) = after.keys() - before.keys()
    assert new.startswith("tr_")
    assert after[new].request_id == answer.headers["x-request-id"]
    assert (after[new].code, after[new].is_failure) == ("subject_not_found", True)


def test_a_replay_is_not_exposed_twice(api: FastAPI, http: TestClient) -> None:
    before = exposures_of(api, http)
    answers = [ask(http, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    (new,) = exposures_of(api, http).keys() - before.keys()
    assert {answer.headers["sm4ll-id"] for answer in answers} == {new}


def test_a_job_is_exposed_under_its_id_and_judged_by_its_answers(
    api: FastAPI, http: TestClient
) -> None:
    job_id = ask(http, "/v1/jobs").json()["id"]
    assert "event: finished" in http.get(f"/v1/jobs/{job_id}/events").text
    receipt = http.get(f"/v1/jobs/{job_id}").json()["receipt"]
    said = {"request_id": receipt["id"], "verdict": "converted"}
    assert http.post("/v1/outcomes", json=said).status_code == 201
    seen = exposures_of(api, http)[job_id]
    assert (seen.arm, set(seen.verdicts)) == (receipt["arm"], {"converted"})


def test_exposures_and_outcomes_go_when_their_time_is_over(api: FastAPI, http: TestClient) -> None:
    ask(http)
    assert exposures_of(api, http)

    said = {"request_id": "req_old", "verdict": "returned"}
    assert http.post("/v1/outcomes", json=said).status_code == 201
    services = api.state.services
    later = datetime.now(UTC) + timedelta(days=401)
    sweeper = Sweeper(
        services.database, services.blobs, services.assets, services.first_answers, lambda: later
    )
    assert http.portal is not None
    report = http.portal.call(sweeper.run_once)
    assert report.num_exposures >= 1
    assert report.num_outcomes >= 1
    assert exposures_of(api, http) == {}
