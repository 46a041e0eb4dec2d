"""Rollouts over HTTP and on the command line, up to the version that a try-on gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import Client
from serve.commands import rollouts
from serve.designs import RolloutPlan
from serve.errors import Conflict
from serve.experiments.controller import RolloutController
from serve.experiments.defaults import Defaults
from serve.experiments.rollout import READY, Readiness
from serve.experiments.steering import Steering
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer
from tests.test_tenants_command import Through

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
ROLLOUTS = "/v1/rollouts"
UNKNOWN = "rol_" + "0" * 26
FILES = {
    "person": encoded(photo(64, 64)),
    "product": encoded(photo(32, 32, seed=1)),
    "mask": encoded(box_mask(64, 64)),
}
HALF = {"share": 5_000, "min_exposures": 5}
PLAN: dict[str, Any] = {
    "expert": "top",
    "version": "top@passthrough",
    "stages": [HALF, {"share": 10_000, "min_exposures": 0}],
    "guardrails": [{"metric": "errors"}, {"metric": "outside"}],
}


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@pytest.fixture
def begun(http: TestClient) -> Iterator[dict[str, Any]]:
    answer = http.post(ROLLOUTS, json=PLAN)
    assert answer.status_code == 201, answer.text
    card: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"{ROLLOUTS}/{card['id']}"
    yield card
    if http.get(f"{ROLLOUTS}/{card['id']}").json()["finished_at"] is None:
        assert act(http, card, "abort")["status"] == "aborted"


def act(http: TestClient, card: dict[str, Any], name: str, status: int = 200) -> dict[str, Any]:
    answer = http.post(f"{ROLLOUTS}/{card['id']}/{name}")
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    return told


def turn(api: FastAPI, http: TestClient, readiness: Readiness = READY) -> None:
    """One look of a controller that nobody saw before or sees again."""

    async def probe(version: str) -> Readiness:
        assert version == "top@passthrough"
        return readiness

    async def look() -> None:
        controller = RolloutController(api.state.services.database, probe)
        await controller.turn()
        await controller.stop()
        await api.state.services.routing.renew()

    assert http.portal is not None
    http.portal.call(look)


def try_on(http: TestClient, unit: str) -> tuple[str, str]:
    fields = {"expert": "top", "format": "png", "unit": unit}
    answer = http.post("/v1/tryon", data=fields, files=FILES)
    assert answer.status_code == 200, answer.text
    return answer.headers["sm4ll-version"], answer.headers["sm4ll-arm"]


def test_none_begins_against_a_default_that_was_changed_a_moment_ago(
    api: FastAPI, http: TestClient
) -> None:
    """It would move everybody back to the old one: by another router, or between look and begin."""
    assert http.get("/v1/experts").status_code == 200  # this router knows the defaults
    database = api.state.services.database

    async def change() -> None:
        await Defaults(database).set("another", "top", "top@passthrough", "top@noop")

    async def begin() -> None:
        plan = RolloutPlan.model_validate({**PLAN, "against": "top@noop"})
        await Steering(database).begin("admin", "local", plan)

    assert http.portal is not None
    http.portal.call(change)
    try:
        assert http.post(ROLLOUTS, json=PLAN).status_code == 409
        with pytest.raises(Conflict, match="changed just now"):
            http.portal.call(begin)
    finally:
        assert http.delete("/v1/experts/top/default").status_code == 200


def test_a_version_becomes_the_default_of_real_requests(api: FastAPI, http: TestClient) -> None:
    before = try_on(http, "anna")
    assert before == ("top@noop", "default")
    card = http.post(ROLLOUTS, json=PLAN).json()
    assert (card["against"], card["stage"], card["share"]) == ("top@noop", None, 0)
    assert try_on(http, "anna") == before
    turn(api, http, Readiness(is_ready=False, reason="golden samples drift"))
    assert "golden samples drift" in http.get(f"{ROLLOUTS}/{card['id']}").json()["reason"]
    turn(api, http)
    assert http.get(f"{ROLLOUTS}/{card['id']}").json()["share"] == 5_000
    arms = [try_on(http, f"unit-{number}")[1] for number in range(24)]
    assert set(arms) == {"control", "challenger"}
    http.portal.call(api.state.services.recorder.flush)  # type: ignore[union-attr]
    turn(api, http)
    assert try_on(http, "anna") == ("top@passthrough", "challenger")
    turn(api, http)
    assert try_on(http, "anna") == ("top@passthrough", "default")
    ended = http.get(f"{ROLLOUTS}/{card['id']}").json()
    assert (ended["status"], ended["share"]) == ("promoted", 10_000)
    page = http.get(f"{ROLLOUTS}/{card['id']}/decisions", params={"limit": 2}).json()
    assert [one["action"] for one in page["items"]] == ["finish", "promote"]
    assert page["items"][1]["numbers"]["exposures"] == arms.count("challenger")
    rest = http.get(f"{ROLLOUTS}/{card['id']}/decisions", params={"after": page["next"]}).json()
    assert [one["action"] for one in rest["items"]] == ["start", "hold", "create"]
    assert rest["next"] is None
    back = http.delete("/v1/experts/top/default")
    assert back.status_code == 200, back.text


def test_what_cannot_be_is_refused_with_what_helps(http: TestClient, begun: dict[str, Any]) -> None:
    def refuse(status: int, **changes: Any) -> dict[str, Any]:
        answer = http.post(ROLLOUTS, json={**PLAN, **changes})
        assert answer.status_code == status, answer.text
        problem: dict[str, Any] = answer.json()
        return problem

    assert begun["id"] in refuse(409)["detail"]
    missing = refuse(404, version="top@9")
    assert "sm4ll experts deploy top@9" in missing["remedy"]
    assert "already" in refuse(409, version="top@noop")["detail"]
    assert "default" in refuse(409, against="top@other")["detail"]
    assert refuse(400, webhook_url="http://127.0.0.1/hook")["code"] == "invalid_request"
    assert refuse(400, stages=[HALF])["code"] == "invalid_request"
    blind = refuse(400, stages=[{"share": 0, "min_exposures": 1}, PLAN["stages"][-1]])
    assert "sees nothing" in blind["detail"]
    assert act(http, begun, "approve", 409)["code"] == "conflict"
    for path in ("", "/decisions"):
        assert http.get(f"{ROLLOUTS}/{UNKNOWN}{path}").status_code == 404
    for name in ("pause", "resume", "abort", "approve"):
        assert http.post(f"{ROLLOUTS}/{UNKNOWN}/{name}").status_code == 404
    assert http.get(ROLLOUTS, params={"after": UNKNOWN}).status_code == 404


def test_what_is_clicked_twice_is_done_once(http: TestClient, begun: dict[str, Any]) -> None:
    for name, status in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        first, second = act(http, begun, name), act(http, begun, name)
        assert first == second
        assert first["status"] == status
    assert act(http, begun, "pause", 409)["code"] == "conflict"
    audited = http.get("/v1/audit", params={"limit": 4}).json()["items"]
    actions = [one["action"] for one in audited[::-1]]
    assert actions == [f"rollout.{name}" for name in ("create", "pause", "resume", "abort")]


def test_an_experiment_of_the_expert_comes_first(http: TestClient) -> None:
    arms = [
        {"name": "control", "version": "top@noop", "weight": 5_000},
        {"name": "new", "version": "top@passthrough", "weight": 5_000},
    ]
    design = {"id": "ours", "expert": "top", "arms": arms, "start": True}
    assert http.post("/v1/experiments", json=design).status_code == 201
    refused = http.post(ROLLOUTS, json=PLAN)
    assert refused.status_code == 409
    assert "sm4ll experiments end ours" in refused.json()["remedy"]
    assert http.post("/v1/experiments/ours/pause").status_code == 200
    assert http.post("/v1/experiments/ours/end").status_code == 200


def test_no_experiment_of_the_expert_starts_beside_a_rollout(
    http: TestClient, begun: dict[str, Any]
) -> None:
    arms = [
        {"name": "control", "version": "top@noop", "weight": 5_000},
        {"name": "new", "version": "top@passthrough", "weight": 5_000},
    ]
    design = {"id": "beside", "expert": "top", "arms": arms}
    assert http.post("/v1/experiments", json=design).status_code == 201
    refused = http.post("/v1/experiments/beside/start")
    assert refused.status_code == 409
    assert begun["id"] in refused.json()["remedy"]
    owned = http.post(f"/v1/experiments/{begun['experiment']}/end")
    assert owned.status_code == 409


def test_the_same_key_again_is_the_same_rollout(http: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = http.post(ROLLOUTS, json=PLAN, headers=headers)
    second = http.post(ROLLOUTS, json=PLAN, headers=headers)
    assert first.status_code == second.status_code == 201
    assert first.json()["id"] == second.json()["id"]
    act(http, first.json(), "abort")


def test_only_administrators_see_rollouts(api: FastAPI, http: TestClient) -> None:
    token = add_key_to(api, "acme", ("tryon", "jobs", "versions", "review"))
    for method, path in (("GET", ROLLOUTS), ("POST", ROLLOUTS), ("GET", f"{ROLLOUTS}/{UNKNOWN}")):
        answer = http.request(method, path, headers=bearer(token), json=PLAN)
        assert answer.status_code == 403, (method, path)


def test_an_id_that_is_none_is_told_in_words(http: TestClient) -> None:
    answer = http.get(f"{ROLLOUTS}/x")
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("path.rollout_id: this is not what such an id looks")


def test_the_command_line_begins_watches_and_steers(
    api: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def connect(url: str | None) -> Client:
        return Client("http://testserver", LOCAL_TOKEN, Through(http))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["rollouts", *arguments])

    monkeypatch.setattr(rollouts, "connect", connect)
    monkeypatch.setattr(rollouts, "sleep", lambda _: act(http, {"id": rollout_id}, "abort"))
    (tmp_path / "plan.yaml").write_text("guardrails: [{metric: errors}]\nunit: sku\n")
    begun = run(
        *("start", "top@passthrough", "--stages", "0,2,100", "--approve-at", "2", "--shadow", "5"),
        *("--min-exposures", "7", "--dry-run", "--plan", str(tmp_path / "plan.yaml")),
    )
    assert begun.exit_code == 0, begun.output
    rollout_id = begun.stdout.split()[0]
    plan = http.get(f"{ROLLOUTS}/{rollout_id}").json()["plan"]
    assert [
        (s["share"], s["shadow"], s["min_exposures"], s["approval"]) for s in plan["stages"]
    ] == [*((0, 500, 7, False), (200, 0, 7, True), (10_000, 0, 0, False))]
    assert (plan["unit"], plan["is_dry_run"]) == ("sku", True)
    turn(api, http)
    shown = run("show", rollout_id).stdout
    assert "● shadow ── 2 % ── 100 %" in shown
    assert "(dry run)" in shown
    assert "sm4ll experiments report rollout-top-" in shown
    assert " of 7)" in shown
    assert "is ready: shadow" in run("decisions", rollout_id).stdout
    assert rollout_id in run("list").stdout
    assert "paused" in run("pause", rollout_id).stdout
    assert "running" in run("resume", rollout_id).stdout
    followed = run("show", rollout_id, "--follow")
    assert followed.exit_code == 1
    assert "aborted" in followed.stdout
    assert " of 7)" not in run("show", rollout_id).stdout
    wrong = run("start", "top@passthrough", "--stages", "0,2,100", "--approve-at", "3")
    assert wrong.exit_code == 2
    assert "no stage has 3 %" in wrong.output
    for words, helps in (
        ((), "say which version"),
        (("top2",), "write expert@name"),
        (("top@2", "--stages", "0,50"), "the last must be 100"),
        (("hat@2",), "expert: Input should be"),
    ):
        refused = run("start", *words)
        assert (refused.exit_code, helps in refused.output) == (2, True), refused.output
