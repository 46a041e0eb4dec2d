"""A tenant sees its own messages and no secret twice."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from standardwebhooks.webhooks import Webhook

from serve.fetching.post import Poster
from serve.jobs.deliveries import Deliverer
from serve.store.engine import Database
from serve.store.opening import database_url
from tests.fakes import build_local_api
from tests.tenants import add_key_to, bearer, run
from tests.test_webhooks import Receivers

URL = "https://shop.example.org/hook"


@pytest.fixture(scope="module")
def api(family: Path) -> FastAPI:
    return build_local_api(family)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@dataclass
class Shop:
    """A tenant's own program."""

    http: TestClient
    token: str

    def get(self, path: str, **parameters: str | int) -> Response:
        return self.http.get(path, params=parameters, headers=bearer(self.token))

    def post(self, path: str, body: Any = None) -> Response:
        return self.http.post(path, json=body, headers=bearer(self.token))


@pytest.fixture
def client(api: FastAPI, http: TestClient) -> Shop:
    return Shop(http, add_key_to(api, "acme"))


def deliver(api: FastAPI, post: Poster) -> int:
    async def send() -> int:
        database = Database(database_url(api.state.settings))
        try:
            return await Deliverer(database, post).run_once()
        finally:
            await database.close()

    return run(send())


def test_test_message_is_sent_signed_and_shown(api: FastAPI, client: Shop) -> None:
    secret = client.post("/v1/webhooks/secrets/rotate", {"overlap_s": 0}).json()["secret"]
    queued = client.post("/v1/webhooks/test", {"url": URL})
    assert queued.status_code == 202
    assert (queued.json()["status"], queued.json()["event"]) == ("pending", "webhook.test")
    post = Receivers()
    deliver(api, post)
    told = Webhook(secret).verify(post.bodies[0], dict(post.headers[0]))
    shown = client.get(f"/v1/webhooks/deliveries/{queued.json()['id']}").json()
    assert shown["payload"] == told
    assert (shown["status"], shown["attempts"], shown["last_status"]) == ("delivered", 1, 200)
    assert shown["next_attempt_at"] is None
    assert shown["delivered_at"] is not None
    again = client.post(f"/v1/webhooks/deliveries/{shown['id']}/redeliver")
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    deliver(api, post)
    assert post.headers[1]["webhook-id"] == shown["id"]


def test_secret_is_shown_once(client: Shop) -> None:
    made = client.post("/v1/webhooks/secrets/rotate", {})
    assert made.status_code == 201
    assert made.json()["expires_at"] is None
    listed = client.get("/v1/webhooks/secrets")
    assert listed.json()["items"][0]["id"] == made.json()["id"]
    assert "whsec_" not in listed.text
    newer = client.post("/v1/webhooks/secrets/rotate", {"overlap_s": 60}).json()
    first, second = client.get("/v1/webhooks/secrets").json()["items"][:2]
    assert (first["id"], first["expires_at"]) == (newer["id"], None)
    assert second["expires_at"] is not None


@pytest.mark.parametrize("overlap_s", [-1, 10**9, "soon", None])
def test_overlap_out_of_range_is_refused(client: Shop, overlap_s: object) -> None:
    answer = client.post("/v1/webhooks/secrets/rotate", {"overlap_s": overlap_s})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_list_is_paged_and_filtered(client: Shop) -> None:
    ids = [client.post("/v1/webhooks/test", {"url": f"{URL}/{n}"}).json()["id"] for n in range(3)]
    seen: list[str] = []
    after: str | None = None
    while True:
        more = {} if after is None else {"after": after}
        page = client.get("/v1/webhooks/deliveries", limit=2, state="pending", **more).json()
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == sorted(seen, reverse=True)
    assert set(ids) <= set(seen)
    assert client.get("/v1/webhooks/deliveries", state="failed").json()["items"] == []
    assert client.get("/v1/webhooks/deliveries", state="lost").status_code == 400


@pytest.mark.parametrize("url", ["http://shop.example.org/", "https://127.0.0.1/", "nowhere"])
def test_url_nobody_may_be_asked_at_is_refused(client: Shop, url: str) -> None:
    answer = client.post("/v1/webhooks/test", {"url": url})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["errors"][0]["field"] == "url"


def test_other_tenants_and_unknown_messages_are_the_same_404(
    api: FastAPI, http: TestClient, client: Shop
) -> None:
    mine = client.post("/v1/webhooks/test", {"url": URL}).json()["id"]
    other = Shop(http, add_key_to(api, "other"))
    answers = [
        other.get(f"/v1/webhooks/deliveries/{name}") for name in (mine, "whd_" + "0" * 26, "x")
    ]
    answers += [
        other.post(f"/v1/webhooks/deliveries/{name}/redeliver") for name in (mine, "whd_unknown")
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert other.get("/v1/webhooks/deliveries").json() == {"items": [], "next": None}
    assert other.get("/v1/webhooks/secrets").json() == {"items": []}


def test_key_without_the_scope_is_refused(api: FastAPI, http: TestClient) -> None:
    client = Shop(http, add_key_to(api, "acme", scopes=["tryon"]))
    assert client.get("/v1/webhooks/deliveries").status_code == 403
    assert client.post("/v1/webhooks/secrets/rotate", {}).status_code == 403
