"""A job over HTTP: the same bytes as the synchronous answer, followed from anywhere, ended once."""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.config import JobsConfig
from serve.policy import TenantPolicy
from serve.schemas.jobs import JobCard, JobPage
from serve.schemas.problems import Problem
from serve.store.engine import Database
from serve.store.opening import database_url
from serve.store.tables import AssetKind, IdempotencyKey, LedgerEntry, LedgerState
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import add_key_to, bearer, run

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop", "seed": "3"}
SLOW = {"expert": "top", "version": "slow"}
SLOW_BUNDLE = """
expert: top
name: slow
title: takes its time
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: noop, seconds: 30, steps: 600}
"""


@pytest.fixture(scope="module")
def slow_family(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's family with a version that runs for half a minute unless it is stopped."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(family.parent / "experts", folder / "experts")
    (folder / "experts/top.slow.yaml").write_text(SLOW_BUNDLE)
    lines = [
        "bundles_dir: experts",
        "experts:",
        "  - version: top@noop",
        "  - version: top@slow",
    ]
    (folder / "family.yaml").write_text("\n".join(lines) + "\n")
    return folder / "family.yaml"


@pytest.fixture(scope="module")
def api(slow_family: Path) -> FastAPI:
    return build_local_api(slow_family)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def halted(slow_family: Path) -> Iterator[TestClient]:
    """Its runner looks once, before there is a job: what is accepted waits."""
    api = build_local_api(slow_family, jobs=JobsConfig(poll_s=3600))
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@dataclass
class Told:
    """One event of a stream."""

    id: int = 0
    kind: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def read_stream(text: str) -> list[Told]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            events.append(Told(int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


def submit(
    http: TestClient,
    data: Mapping[str, str] = NOOP,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> JobCard:
    response = http.post("/v1/jobs", data={**data, **more}, files=FILES, headers=headers)
    assert response.status_code == 202, response.text
    card = JobCard.model_validate_json(response.content)
    assert response.headers["location"] == card.links.self == f"/v1/jobs/{card.id}"
    return card


def get(http: TestClient, job_id: str) -> JobCard:
    return JobCard.model_validate_json(http.get(f"/v1/jobs/{job_id}").content)


def follow(http: TestClient, job_id: str, after: int | None = None) -> list[Told]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    response = http.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("retry: ")
    return read_stream(response.text)


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, Problem.model_validate_json(response.content).code


def test_job_makes_the_bytes_that_the_synchronous_call_makes(http: TestClient) -> None:
    card = submit(http)
    assert (card.status, card.queue_position, card.version) == ("queued", 1, "top@noop")
    assert card.estimated_start_at is not None
    assert card.quote_gpu_s > 0
    follow(http, card.id)
    done = get(http, card.id)
    assert (done.status, done.attempts, done.error) == ("succeeded", 1, None)
    (output,) = done.outputs
    job_file = http.get(output.url)
    direct = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert job_file.content == direct.content
    assert job_file.headers["content-type"] == output.media_type
    assert done.receipt is not None
    assert done.receipt.seed == 3
    assert done.links.cancel is None


def test_stream_tells_the_whole_story_in_order(http: TestClient) -> None:
    events = follow(http, submit(http).id)
    assert [event.kind for event in events] == ["queued", "started", "step", "preview", "finished"]
    assert [event.id for event in events] == [1, 2, 3, 4, 5]
    queued, _, step, preview, finished = events
    assert queued.data["position"] == 1
    assert (step.data["i"], step.data["n"]) == (1, 1)
    assert preview.data["image"].startswith("data:image/jpeg;base64,")
    assert finished.data["status"] == "succeeded"
    assert finished.data["outputs"][0]["asset"].startswith("ast_")


def test_stream_is_taken_up_where_it_was_left(http: TestClient) -> None:
    card = submit(http)
    everything = follow(http, card.id)
    assert follow(http, card.id, after=2) == everything[2:]
    response = http.get(f"/v1/jobs/{card.id}/events", headers={"Last-Event-ID": "5"})
    assert response.status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30])
def test_number_that_is_none_is_refused(http: TestClient, last: str) -> None:
    card = submit(http)
    response = http.get(f"/v1/jobs/{card.id}/events", headers={"Last-Event-ID": last})
    assert refusal(response) == (400, "invalid_request")


def test_running_job_is_cancelled_and_its_expert_is_free_again(http: TestClient) -> None:
    card = submit(http, SLOW)
    streamed: list[Told] = []
    thread = threading.Thread(target=lambda: streamed.extend(follow(http, card.id)))
    thread.start()
    wait_for(lambda: get(http, card.id).status == "running")
    cancelled_at_s = time.monotonic()
    response = http.delete(f"/v1/jobs/{card.id}")
    assert response.status_code == 200
    assert JobCard.model_validate_json(response.content).cancel_requested
    thread.join()
    assert time.monotonic() - cancelled_at_s < 5
    assert streamed[-1].data["status"] == "cancelled"
    assert get(http, card.id).status == "cancelled"
    assert refusal(http.delete(f"/v1/jobs/{submitted_and_done(http)}")) == (409, "conflict")


def submitted_and_done(http: TestClient) -> str:
    card = submit(http)
    follow(http, card.id)
    return card.id


def wait_for(is_true: Any, timeout_s: float = 20.0) -> None:
    """Polls as a client does."""
    ends_at_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < ends_at_s, "it never came"


def test_waiting_job_is_cancelled_at_once_and_costs_nothing(halted: TestClient) -> None:
    card = submit(halted)
    assert halted.delete(f"/v1/jobs/{card.id}").json()["status"] == "cancelled"
    assert halted.delete(f"/v1/jobs/{card.id}").status_code == 200
    kinds = [event.kind for event in follow(halted, card.id)]
    assert kinds == ["queued", "finished"]
    assert run(read_entry(halted.app, card.id)) is LedgerState.RELEASED


async def read_entry(api: Any, job_id: str) -> LedgerState:
    database = Database(database_url(api.state.settings))
    try:
        async with database.reading() as session:
            return (await session.get_one(LedgerEntry, ("local", job_id))).state
    finally:
        await database.close()


def test_positions_count_within_the_class(halted: TestClient) -> None:
    first, batch, second = submit(halted), submit(halted, priority="batch"), submit(halted)
    assert [get(halted, card.id).queue_position for card in (first, second, batch)] == [1, 2, 3]
    assert batch.priority == "batch"


def test_jobs_are_listed_newest_first_by_page_and_status(halted: TestClient) -> None:
    ids = [submit(halted).id for _ in range(3)][::-1]
    halted.delete(f"/v1/jobs/{ids[0]}")

    def page(query: str) -> JobPage:
        return JobPage.model_validate_json(halted.get(f"/v1/jobs?{query}").content)

    first = page("limit=2")
    assert [card.id for card in first.items] == ids[:2]
    assert [card.id for card in page(f"limit=2&after={first.next}").items] == ids[2:]
    assert [card.id for card in page("status=cancelled").items] == ids[:1]
    assert page("status=failed").items == ()


def test_another_tenant_sees_nothing_of_it(api: FastAPI, http: TestClient) -> None:
    card = submit(http)
    follow(http, card.id)
    others = bearer(add_key_to(api, "other"))
    for method, path in (
        ("GET", card.links.self),
        ("GET", card.links.events),
        ("DELETE", card.links.self),
        ("GET", get(http, card.id).outputs[0].url),
    ):
        theirs = http.request(method, path, headers=others)
        unknown = http.request(method, path.replace(card.id[-5:], "00000"), headers=others)
        assert refusal(theirs) == refusal(unknown) == (404, "not_found")
    assert http.get("/v1/jobs", headers=others).json()["items"] == []


def test_key_without_the_scope_is_refused(api: FastAPI, http: TestClient) -> None:
    headers = bearer(add_key_to(api, "scoped", scopes=["tryon"]))
    response = http.post("/v1/jobs", data=NOOP, files=FILES, headers=headers)
    assert refusal(response) == (403, "forbidden")


@pytest.mark.parametrize(
    ("changes", "files", "status", "code"),
    [
        ({"version": "9"}, {}, 404, "not_found"),
        ({"expert": "hat"}, {}, 400, "invalid_request"),
        ({"deadline_s": "0"}, {}, 400, "invalid_request"),
        ({"priority": "first"}, {}, 400, "invalid_request"),
        ({"webhook_url": "http://127.0.0.1/x"}, {}, 400, "invalid_request"),
        ({}, {"person": b"junk"}, 422, "invalid_image"),
        ({}, {"mask": encoded(box_mask() * 0)}, 422, "mask_rejected"),
        ({}, {"mask": encoded(box_mask(100, 100))}, 422, "mask_rejected"),
        ({}, {"product": "ast_" + "0" * 26}, 404, "not_found"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_fail_later_fails_now(
    http: TestClient, changes: dict[str, str], files: dict[str, Any], status: int, code: str
) -> None:
    response = http.post("/v1/jobs", data={**NOOP, **changes}, files={**FILES, **files})
    assert refusal(response) == (status, code), response.text


def test_tenant_that_keeps_no_results_has_no_jobs(api: FastAPI, http: TestClient) -> None:
    policy = TenantPolicy(result_retention_s=0)
    headers = bearer(add_key_to(api, "forgetful", policy=policy))
    response = http.post("/v1/jobs", data=NOOP, files=FILES, headers=headers)
    assert refusal(response) == (422, "not_supported")


def test_budget_and_queue_bound_what_is_accepted(halted: TestClient) -> None:
    api: Any = halted.app
    for policy, code in (
        (TenantPolicy(monthly_images=1), "quota_exhausted"),
        (TenantPolicy(max_queued_jobs=1), "rate_limited"),
    ):
        headers = bearer(add_key_to(api, code.replace("_", "-"), policy=policy))
        submit(halted, headers=headers)
        response = halted.post("/v1/jobs", data=NOOP, files=FILES, headers=headers)
        assert refusal(response) == (429, code)
        assert int(response.headers["retry-after"]) >= 1


def test_tenants_ceiling_makes_its_jobs_batch_work(api: FastAPI, http: TestClient) -> None:
    headers = bearer(add_key_to(api, "cheap", policy=TenantPolicy(max_priority="batch")))
    assert submit(http, headers=headers, priority="interactive").priority == "batch"


def test_job_takes_assets_and_json(http: TestClient) -> None:
    ids = {
        name: http.post("/v1/assets", content=data, headers={"Content-Type": "image/png"}).json()[
            "id"
        ]
        for name, data in FILES.items()
    }
    response = http.post("/v1/jobs", json={"expert": "top", "version": "noop", "seed": 3, **ids})
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    follow(http, job_id)
    (output,) = get(http, job_id).outputs
    direct = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert http.get(output.url).content == direct.content


def test_layers_of_a_job_are_one_zip(http: TestClient) -> None:
    card = submit(http, output="layers")
    follow(http, card.id)
    (output,) = get(http, card.id).outputs
    assert output.media_type == "application/zip"
    assert http.get(output.url).content[:2] == b"PK"


def test_deadline_stops_a_running_job(http: TestClient) -> None:
    card = submit(http, SLOW, deadline_s="1")
    assert card.deadline_at == card.created_at + timedelta(seconds=1)
    (*_, finished) = follow(http, card.id)
    assert finished.data["status"] == "failed"
    assert finished.data["error"]["code"] == "deadline_exceeded"


def test_inputs_are_kept_as_assets_of_the_subject(http: TestClient) -> None:
    follow(http, submit(http, subject="jane").id)
    kept = http.get("/v1/assets?subject=jane").json()["items"]
    assert {item["kind"] for item in kept} == {AssetKind.INPUT.value, AssetKind.RESULT.value}


def test_tenant_that_keeps_no_inputs_has_none_once_its_job_has_ended(
    api: FastAPI, http: TestClient
) -> None:
    policy = TenantPolicy(input_retention_s=0)
    headers = bearer(add_key_to(api, "shy", policy=policy))
    card = submit(http, headers=headers)
    path = f"/v1/jobs/{card.id}"
    http.get(f"{path}/events", headers=headers)
    assert http.get(path, headers=headers).json()["status"] == "succeeded"
    wait_for(lambda: count_inputs(api, "shy") == 0)


def count_inputs(api: FastAPI, tenant_id: str) -> int:
    files = (path for path in api.state.settings.data_dir.rglob("*") if path.is_file())
    return sum({tenant_id, "input"} <= set(path.parts) for path in files)


def test_failed_job_is_tried_again_as_a_new_one(http: TestClient) -> None:
    failed = submit(http, SLOW, deadline_s="1")
    assert refusal(http.post(f"/v1/jobs/{failed.id}/retry")) == (409, "conflict")
    follow(http, failed.id)
    response = http.post(f"/v1/jobs/{failed.id}/retry")
    assert response.status_code == 202, response.text
    again = JobCard.model_validate_json(response.content)
    assert again.id != failed.id
    assert (again.version, again.quote_gpu_s) == (failed.version, failed.quote_gpu_s)
    (*_, finished) = follow(http, again.id)
    assert finished.data["error"]["code"] == "deadline_exceeded"
    assert get(http, failed.id).finished_at is not None


def test_repeat_with_an_idempotency_key_is_the_same_job(http: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (submit(http, headers=headers) for _ in range(2))
    assert first.id == second.id


def test_router_that_takes_a_request_over_finds_its_job(api: FastAPI, http: TestClient) -> None:
    """What the first router wrote before it died: the job, and no answer for the key."""
    headers = {"Idempotency-Key": "taken over"}
    first = submit(http, headers=headers)
    run(forget_answer(api, "taken over"))
    assert submit(http, headers=headers).id == first.id


def test_router_that_takes_a_retry_over_finds_its_job(api: FastAPI, http: TestClient) -> None:
    failed = submit(http, SLOW, deadline_s="1")
    follow(http, failed.id)
    headers = {"Idempotency-Key": "tried again"}
    first = http.post(f"/v1/jobs/{failed.id}/retry", headers=headers)
    run(forget_answer(api, "tried again"))
    second = http.post(f"/v1/jobs/{failed.id}/retry", headers=headers)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]


async def forget_answer(api: FastAPI, key: str, tenant_id: str = "local") -> None:
    database = Database(database_url(api.state.settings))
    try:
        async with database.transaction() as session:
            row = await session.get_one(IdempotencyKey, (tenant_id, key))
            row.response, row.locked_until = None, row.created_at
    finally:
        await database.close()
