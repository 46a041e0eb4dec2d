"""Experiments over HTTP: made once, moved by hand with a history, and explained; and what a caller
of `/v1/tryon` sees of it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.policy import TenantPolicy
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import add_key_to, bearer

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
EXPERIMENTS = "/v1/experiments"
FILES = {
    "person": encoded(photo(64, 64)),
    "product": encoded(photo(32, 32, seed=1)),
    "mask": encoded(box_mask(64, 64)),
}


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


def body(experiment_id: str, share: int = 5_000, **fields: Any) -> dict[str, Any]:
    arms = [
        {"name": "control", "version": "top@noop", "weight": 10_000 - share},
        {"name": "new", "version": "top@passthrough", "weight": share},
    ]
    return {"id": experiment_id, "expert": "top", "arms": arms, **fields}


def create(http: TestClient, experiment_id: str, **fields: Any) -> dict[str, Any]:
    answer = http.post(EXPERIMENTS, json=body(experiment_id, **fields))
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{EXPERIMENTS}/{experiment_id}"
    card: dict[str, Any] = answer.json()
    return card


def act(http: TestClient, experiment_id: str, verb: str, status: int = 200) -> dict[str, Any]:
    answer = http.post(f"{EXPERIMENTS}/{experiment_id}/{verb}", params={"reason": "why"})
    assert answer.status_code == status, answer.text
    card: dict[str, Any] = answer.json()
    return card


def test_one_is_made_read_and_made_again(http: TestClient) -> None:
    made = create(http, "made", title="A title", share=1_000)
    assert (made["status"], made["revision"], made["started_at"]) == ("draft", 1, None)
    assert made["ranges"] == [
        {"start": 0, "end": 9_000, "arm": "control"},
        {"start": 9_000, "end": 10_000, "arm": "new"},
    ]
    assert http.get(f"{EXPERIMENTS}/made").json() == made
    again = http.post(EXPERIMENTS, json=body("made", title="A title", share=1_000))
    assert (again.status_code, again.json()) == (200, made)
    other = http.post(EXPERIMENTS, json=body("made", title="Another", share=1_000))
    assert other.status_code == 409
    assert other.json()["remedy"]
    assert act(http, "made", "end")["ended_at"]


def test_lists_come_in_pages_newest_first(http: TestClient) -> None:
    for name in ("page-1", "page-2", "page-3"):
        create(http, name)
    first = http.get(EXPERIMENTS, params={"limit": 2}).json()
    assert [card["id"] for card in first["items"]] == ["page-3", "page-2"]
    rest = http.get(EXPERIMENTS, params={"after": first["next"]}).json()["items"]
    assert rest[0]["id"] == "page-1"
    assert http.get(EXPERIMENTS, params={"after": "nobody"}).status_code == 404


def test_it_goes_through_its_states_and_says_what_helps(http: TestClient) -> None:
    create(http, "states")
    assert "start" in act(http, "states", "resume", 409)["remedy"]
    assert "start" in act(http, "states", "pause", 409)["remedy"]
    assert act(http, "states", "start")["started_at"]
    assert act(http, "states", "start")["status"] == "running"
    assert act(http, "states", "pause")["reason"] == "why"
    assert "resume" in act(http, "states", "start", 409)["remedy"]
    assert act(http, "states", "resume")["status"] == "running"
    assert act(http, "states", "end")["status"] == "ended"
    assert act(http, "states", "resume", 409)["code"] == "conflict"
    assert act(http, "nobody", "start", 404)["remedy"]


def test_weights_move_with_a_history(http: TestClient) -> None:
    create(http, "weights", share=1_000)
    path = f"{EXPERIMENTS}/weights"
    change = {"weights": {"control": 5_000, "new": 5_000}, "revision": 1, "reason": "more"}
    moved = http.put(f"{path}/weights", json=change)
    assert moved.status_code == 200, moved.text
    assert [arm["weight"] for arm in moved.json()["design"]["arms"]] == [5_000, 5_000]
    stale = {"weights": {"control": 0, "new": 10_000}, "revision": 1}
    assert http.put(f"{path}/weights", json=stale).status_code == 409
    first, second = http.get(f"{path}/allocations").json()["items"]
    assert (first["num_moved"], second["num_moved"]) == (0, 4_000)
    assert (second["revision"], second["reason"]) == (2, "more")
    assert second["weights"] == {"control": 5_000, "new": 5_000}
    for weights in ({"control": 1}, {"control": 1, "other": 9_999}, {"control": -1, "new": 10_001}):
        answer = http.put(f"{path}/weights", json={"weights": weights})
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "A B"},
        {"id": "a\n"},
        {"unit": "colour"},
        {"salt": "a\nb"},
        {"coverage": 10_001},
        {"arms": []},
        {"nonsense": 1},
        {"namespace": {"name": "n", "start": 5, "end": 5}},
        {"shadow": {"arm": "control"}},
        {"alpha": 0.9},
        {"title": "\x00"},
        {"audience": {"tenants": ["\x00"]}},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(http: TestClient, wrong: dict[str, Any]) -> None:
    answer = http.post(EXPERIMENTS, json={**body("wrong"), **wrong})
    assert answer.status_code == 400, answer.text
    assert http.get(f"{EXPERIMENTS}/wrong").status_code == 404


def test_versions_that_are_not_there_are_named_with_what_to_do(http: TestClient) -> None:
    wanted = body("absent", start=True)
    wanted["arms"][1]["version"] = "top@9"
    answer = http.post(EXPERIMENTS, json=wanted)
    assert answer.status_code == 409
    assert answer.json()["remedy"] == "sm4ll experts deploy top@9"
    assert http.get(f"{EXPERIMENTS}/absent").status_code == 404, "nothing is left of it"


def test_requests_get_what_the_answer_to_the_question_says(api: FastAPI, http: TestClient) -> None:
    """Moved at once on the router that was asked; others follow."""
    create(http, "live", start=True)
    path = f"{EXPERIMENTS}/live/assignment"

    def asked(user: str) -> httpx2.Response:
        return http.post("/v1/tryon", data={"expert": "top", "unit": user}, files=FILES)

    told = {f"u{n}": http.get(path, params={"unit": f"u{n}"}).json() for n in range(12)}
    assert Counter(one["takes_part"] for one in told.values()) == {True: 12}
    for user, one in told.items():
        answer = asked(user)
        assert answer.status_code == 200, answer.text
        assert answer.headers["sm4ll-arm"] == one["arm"]
        assert answer.headers["sm4ll-version"] == one["version"]
        assert answer.headers["sm4ll-experiment"] == "live"
    assert {one["arm"] for one in told.values()} == {"control", "new"}
    assert http.get(path).json()["reason"] == "the request names no user"
    add_key_to(api, "umbrella", policy=TenantPolicy(versions=("top@noop",)))
    denied = http.get(path, params={"unit": "u1", "tenant": "umbrella"}).json()
    assert (denied["takes_part"], denied["arm"]) == (False, None)
    assert "every arm" in denied["reason"]
    assert http.get(path, params={"tenant": "nobody"}).status_code == 404
    act(http, "live", "pause")
    paused = http.get(path, params={"unit": "u1"}).json()
    assert (paused["takes_part"], paused["arm"]) == (False, told["u1"]["arm"])
    assert asked("u1").headers["sm4ll-arm"] == "default"
    act(http, "live", "end")


def test_every_change_is_in_the_audit_log(http: TestClient) -> None:
    create(http, "audited", start=True)
    act(http, "audited", "end")
    records = http.get("/v1/audit", params={"limit": 3}).json()["items"]
    assert [record["action"] for record in records] == [
        *("experiment.end", "experiment.start", "experiment.create")
    ]
    assert {record["target"] for record in records} == {"audited"}
    assert http.get("/v1/audit/verify").json()["intact"]


def test_it_is_for_administrators(api: FastAPI, http: TestClient) -> None:
    key = bearer(add_key_to(api, "weyland", ("tryon", "jobs", "versions", "review")))
    create(http, "theirs")
    for method, path in (
        ("GET", EXPERIMENTS), ("GET", f"{EXPERIMENTS}/theirs"),
        ("POST", f"{EXPERIMENTS}/theirs/start"), ("GET", f"{EXPERIMENTS}/theirs/assignment"),
    ):  # fmt: skip
        assert http.request(method, path, headers=key).status_code == 403
