"""Administrators over HTTP: tenants, keys and the log of what they did."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.policy import Scope
from tests.fakes import build_local_api
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer, key_id_of

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
LOCAL_KEY_ID = key_id_of(LOCAL_TOKEN)


@pytest.fixture
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@pytest.fixture(scope="module")
def refusing() -> Iterator[TestClient]:
    """For requests that change nothing."""
    with TestClient(build_local_api(FAMILY)) as client:
        yield client


def create(http: TestClient, tenant_id: str = "acme", **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/tenants", json={"id": tenant_id, "name": "Acme", **body})
    assert answer.status_code == 201, answer.text
    card: dict[str, Any] = answer.json()
    return card


def create_key(http: TestClient, tenant_id: str = "acme", **body: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/tenants/{tenant_id}/keys", json={"name": "shop", **body})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    key: dict[str, Any] = answer.json()
    return key


def acts(http: TestClient) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = http.get("/v1/audit").json()["items"]
    return items


def test_tenant_is_made_read_changed_and_disabled(http: TestClient) -> None:
    made = create(http, policy={"weight": 2, "requests_per_minute": 60})
    assert made["policy"]["experts"] is None
    assert http.get("/v1/tenants/acme").json() == made
    change = {"policy": {"requests_per_minute": None, "experts": ["eye"]}, "disabled": True}
    changed = http.patch("/v1/tenants/acme", json=change).json()
    assert changed["policy"] == {
        **made["policy"],
        "requests_per_minute": None,
        "experts": ["eye"],
    }
    assert changed["disabled_at"]
    again = http.patch("/v1/tenants/acme", json={"name": "Acme 2", "disabled": False}).json()
    assert (again["name"], again["disabled_at"]) == ("Acme 2", None)
    assert again["policy"] == changed["policy"]


def test_id_is_made_when_there_is_none_and_never_taken_twice(http: TestClient) -> None:
    made = http.post("/v1/tenants", json={"name": "Acme"}).json()
    assert made["id"].startswith("tnt_")
    assert http.post("/v1/tenants", json={"name": "B", "id": made["id"]}).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "a\u0000b"},
        {"name": "a", "id": "A"},
        {"name": "a", "id": "x" * 41},
        {"name": "a", "policy": {"weight": 0}},
        {"name": "a", "policy": {"weight": 1e400}},
        {"name": "a", "policy": {"monthly_gpu_seconds": 1e300}},
        {"name": "a", "policy": {"input_retention_s": 1e300}},
        {"name": "a", "policy": {"versions": ["\u0000"]}},
        {"name": "a", "policy": {"experts": ["hat"]}},
        {"name": "a", "policy": {"nonsense": 1}},
        {"name": "a", "more": 1},
        {},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(refusing: TestClient, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    answer = refusing.post("/v1/tenants", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400, answer.text


def test_lists_come_in_pages_newest_first(http: TestClient) -> None:
    for number in range(5):
        create(http, f"t{number}")
    seen, after = [], None
    while True:
        params = {"limit": "2", **({"after": after} if after else {})}
        page = http.get("/v1/tenants", params=params).json()
        seen += [tenant["id"] for tenant in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == ["t4", "t3", "t2", "t1", "t0", "local"]
    assert http.get("/v1/tenants", params={"after": "nobody"}).status_code == 404


def test_token_is_shown_once_and_works(api: FastAPI, http: TestClient) -> None:
    create(http)
    key = create_key(http, scopes=["tryon"], expires_in_s=3600)
    assert http.get("/v1/models", headers=bearer(key["token"])).status_code == 200
    (listed,) = http.get("/v1/tenants/acme/keys").json()["items"]
    assert "token" not in listed
    assert {name: listed[name] for name in ("id", "scopes", "expires_at", "revoked_at")} == {
        name: key[name] for name in ("id", "scopes", "expires_at", "revoked_at")
    }
    secret = key["token"].split("_")[2]
    assert secret not in http.get("/v1/audit").text
    for file in Path(api.state.folder.name).rglob("sm4ll.db*"):
        assert secret.encode() not in file.read_bytes()


def test_token_is_not_kept_for_a_replay(api: FastAPI, http: TestClient) -> None:
    create(http)
    headers = {"Idempotency-Key": "again"}
    path = "/v1/tenants/acme/keys"
    tokens = [http.post(path, json={"name": "a"}, headers=headers).json()["token"] for _ in "ab"]
    assert tokens[0] != tokens[1]
    secrets = [token.split("_")[2].encode() for token in tokens]
    for file in Path(api.state.folder.name).rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert not any(secret in data for secret in secrets), file


def test_key_without_scopes_said_may_try_on_and_make_jobs(http: TestClient) -> None:
    create(http)
    assert create_key(http)["scopes"] == ["tryon", "jobs", "versions"]
    for scopes in ([], ["everything"]):
        body = {"name": "x", "scopes": scopes}
        assert http.post("/v1/tenants/acme/keys", json=body).status_code == 400


def test_rotation_gives_another_key_and_ends_the_old_one(http: TestClient) -> None:
    create(http)
    old = create_key(http)
    path = f"/v1/tenants/acme/keys/{old['id']}"
    new = http.post(f"{path}/rotate", json={"overlap_s": 60}).json()
    assert new["token"] != old["token"]
    assert new["scopes"] == old["scopes"]
    keys = {key["id"]: key for key in http.get("/v1/tenants/acme/keys").json()["items"]}
    assert keys[old["id"]]["expires_at"]
    assert keys[new["id"]]["expires_at"] is None
    assert http.post(f"{path}/rotate").status_code == 201  # the body may be left out
    assert http.delete(path).json()["revoked_at"]
    assert http.post(f"{path}/rotate").status_code == 409


def test_revoking_twice_changes_nothing_more(http: TestClient) -> None:
    create(http)
    path = f"/v1/tenants/acme/keys/{create_key(http)['id']}"
    assert http.delete(path).json()["revoked_at"] == http.delete(path).json()["revoked_at"]


def test_last_admin_key_cannot_go(http: TestClient) -> None:
    path = f"/v1/tenants/local/keys/{LOCAL_KEY_ID}"
    assert http.delete(path).status_code == 409
    assert http.patch("/v1/tenants/local", json={"disabled": True}).status_code == 409
    assert http.get("/v1/tenants/local").json()["disabled_at"] is None
    create(http)
    create_key(http, scopes=["admin"], expires_in_s=3600)
    assert http.delete(path).status_code == 200


def test_key_of_another_tenant_is_not_found_here(http: TestClient) -> None:
    for tenant_id in ("acme", "bolt"):
        create(http, tenant_id)
    key = create_key(http, "acme")
    elsewhere = f"/v1/tenants/bolt/keys/{key['id']}"
    unknown = f"/v1/tenants/bolt/keys/key_{'0' * 25}1"
    assert http.delete(elsewhere).status_code == http.delete(unknown).status_code == 404
    assert http.post(f"{elsewhere}/rotate").status_code == 404
    assert http.get("/v1/tenants/nobody/keys").status_code == 404
    assert http.post("/v1/tenants/nobody/keys", json={"name": "x"}).status_code == 404


def test_keys_without_admin_see_nothing_of_it(api: FastAPI, http: TestClient) -> None:
    create(http)
    scopes: tuple[Scope, ...] = ("tryon", "jobs", "review")
    key = bearer(add_key_to(api, "acme", scopes))
    paths = [
        *(("GET", path) for path in ("/v1/tenants", "/v1/tenants/acme", "/v1/tenants/nobody")),
        *(("GET", path) for path in ("/v1/tenants/acme/keys", "/v1/audit", "/v1/audit/verify")),
        *(("POST", path) for path in ("/v1/tenants", "/v1/tenants/acme/keys")),
        *(("PATCH", "/v1/tenants/acme"), ("DELETE", f"/v1/tenants/local/keys/{LOCAL_KEY_ID}")),
        ("POST", f"/v1/tenants/acme/keys/{LOCAL_KEY_ID}/rotate"),
    ]
    for method, path in paths:
        body = {} if method in ("GET", "DELETE") else {"json": {"name": "x"}}
        if path.endswith("rotate"):
            body = {}
        assert http.request(method, path, headers=key, **body).status_code == 403, path
    assert len(http.get("/v1/tenants").json()["items"]) == 2


def test_every_act_is_in_the_log_with_who_did_it(http: TestClient) -> None:
    create(http)
    key = create_key(http)
    http.patch("/v1/tenants/acme", json={"policy": {"weight": 3}})
    new = http.post(f"/v1/tenants/acme/keys/{key['id']}/rotate").json()
    http.delete(f"/v1/tenants/acme/keys/{key['id']}")
    log = acts(http)
    assert [(act["action"], act["target"]) for act in reversed(log)] == [
        ("tenant.create", "acme"),
        ("key.create", key["id"]),
        ("tenant.change", "acme"),
        ("key.rotate", new["id"]),
        ("key.revoke", key["id"]),
    ]
    assert {act["actor"] for act in log} == {LOCAL_KEY_ID}
    assert {act["tenant"] for act in log} == {"acme"}
    assert log[2]["detail"] == {"policy": {"weight": 3.0}}
    page = http.get("/v1/audit", params={"limit": 2, "after": log[0]["sequence"]}).json()
    assert [act["sequence"] for act in page["items"]] == [4, 3]
    assert page["next"] == "3"


def test_what_was_refused_is_not_in_the_log(http: TestClient) -> None:
    create(http)
    before = acts(http)
    http.post("/v1/tenants", json={"name": "again", "id": "acme"})
    http.delete(f"/v1/tenants/local/keys/{LOCAL_KEY_ID}")
    http.patch("/v1/tenants/nobody", json={"name": "x"})
    assert acts(http) == before


def test_log_is_verified(http: TestClient) -> None:
    create(http)
    create_key(http)
    verdict = http.get("/v1/audit/verify").json()
    assert verdict == {
        "intact": True,
        "num_records": 2,
        "head_sha256": acts(http)[0]["sha256"],
        "broken_sequence": None,
        "reason": None,
    }
    cut = http.get("/v1/audit/verify", params={"head": "f" * 64}).json()
    assert (cut["intact"], cut["broken_sequence"]) == (False, 3)
