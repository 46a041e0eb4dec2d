"""What somebody tries who has a valid key of one tenant, and wants more than that is for."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.api.job_events import Follower
from serve.api.middleware import MAX_BATCH_BODY_BYTES, MAX_TEXT_BODY_BYTES
from serve.errors import InvalidRequest, NotFound
from serve.policy import TenantPolicy
from serve.schemas.keys import KeyMinted
from serve.schemas.problems import Problem
from serve.store.engine import Database
from serve.store.keys import get_key, revoke
from serve.store.tables import Tenant
from serve.store.tenants import set_disabled
from serve.store.webhooks import claim_due, enqueue, get_delivery
from serve.tenancy.caller import Caller
from serve.tenancy.memory import remembered_as
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.stores import START, add_job, add_tenant
from tests.tenants import add_key, add_key_to, bearer, key_id_of

PICTURES = {"person": encoded(photo()), "product": encoded(photo(64, 64, seed=1))}
MASKED = {**PICTURES, "mask": encoded(box_mask())}
NOOP = {"expert": "top", "version": "noop"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(family: Path) -> FastAPI:
    return build_local_api(family, is_key_added=False)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def mine(api: FastAPI, http: TestClient) -> dict[str, str]:
    return bearer(add_key_to(api, "mine", ("tryon", "jobs", "versions")))


@pytest.fixture(scope="module")
def theirs(api: FastAPI, http: TestClient) -> dict[str, str]:
    return bearer(add_key_to(api, "theirs", ("tryon", "jobs", "versions")))


def refused(answer: httpx2.Response, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    return Problem.model_validate(answer.json())


def test_no_answer_tells_that_another_tenant_has_sent_the_same_picture(
    api: FastAPI, http: TestClient, mine: dict[str, str], theirs: dict[str, str]
) -> None:
    """Neither `segmentation_cached` of the receipt, nor how fast it came."""
    person = encoded(photo(seed=7))
    sha256 = hashlib.sha256(person).hexdigest()
    for key in (theirs, mine):
        files = {"person": person, "product": PICTURES["product"]}
        http.post("/v1/tryon", headers=key, files=files, data={"expert": "bg"})

    def forget(name: str) -> int:
        return sum(one.forget({name}) for one in api.state.segmenters.values())

    assert forget(sha256) == 0
    assert [forget(remembered_as(tenant, sha256)) for tenant in ("theirs", "mine")] == [1, 1]


def test_a_webhook_secret_is_shown_once(http: TestClient, mine: dict[str, str]) -> None:
    def rotate() -> httpx2.Response:
        return http.post(
            "/v1/webhooks/secrets/rotate", headers={**mine, "Idempotency-Key": "one"}, json={}
        )

    first, second = rotate(), rotate()
    assert first.headers["cache-control"] == "no-store"
    assert "idempotent-replayed" not in second.headers
    assert first.json()["secret"] != second.json()["secret"]


def test_an_answer_is_not_given_again_to_a_lesser_key(
    api: FastAPI, http: TestClient, mine: dict[str, str]
) -> None:
    lesser = bearer(add_key_to(api, "mine", ("review",)))
    wider = bearer(add_key_to(api, "mine", ("jobs", "review", "tryon", "versions")))
    body = {"subject": "customer 1"}

    def erase(key: dict[str, str]) -> httpx2.Response:
        return http.post("/v1/erasures", headers={**key, "Idempotency-Key": "e"}, json=body)

    first = erase(mine)
    assert first.status_code == 200, first.text
    problem = refused(erase(lesser), 403)
    assert problem.remedy is not None
    assert "Idempotency-Key" in problem.remedy
    for key in (mine, wider):
        again = erase(key)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()


@pytest.mark.parametrize(
    "number", [b"0" * 5000, b"9" * 5000, b"2147483648", b"-1", b"1e3", b"\xb2"]
)
def test_no_event_id_breaks_a_stream(http: TestClient, mine: dict[str, str], number: bytes) -> None:
    answer = http.get(
        f"/v1/jobs/job_{'0' * 26}/events",
        headers=[(b"Authorization", mine["Authorization"].encode()), (b"Last-Event-ID", number)],
    )
    assert refused(answer, 400).detail == "Last-Event-ID: not the number of an event"


@pytest.mark.parametrize(
    ("path", "max_bytes"),
    [
        ("/v1/batches", MAX_BATCH_BODY_BYTES),
        ("/v1/erasures", MAX_TEXT_BODY_BYTES),
        ("/v1/webhooks/test", MAX_TEXT_BODY_BYTES),
        ("/v1/webhooks/secrets/rotate", MAX_TEXT_BODY_BYTES),
    ],
)
def test_a_body_without_a_declared_length_is_cut_off_at_the_limit_of_its_route(
    http: TestClient, mine: dict[str, str], path: str, max_bytes: int
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"subject":['
        for _ in range(max_bytes // 2**20 + 1):
            yield b"[]," * (2**20 // 3)

    problem = refused(http.post(path, headers={**mine, **JSON}, content=pieces()), 413)
    assert problem.detail == f"the request body is larger than {max_bytes // 2**20} MiB"
    declared = {**mine, **JSON, "Content-Length": str(max_bytes + 1)}
    assert refused(http.post(path, headers=declared, content=b"{}"), 413) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"subject":' + b"1" * 6000 + b"}",
        b'{"subject":"\xff"}',
        b'{"subject":"\\ud800"}',
        b'{"subject":"a\\u0000"}',
        b'{"subject":NaN}',
        b"",
        b"\x1f\x8b not unpacked",
    ],
)
def test_no_json_breaks_anything_and_every_refusal_says_what_to_send(
    http: TestClient, mine: dict[str, str], body: bytes
) -> None:
    problem = refused(http.post("/v1/erasures", headers={**mine, **JSON}, content=body), 400)
    assert (problem.code, bool(problem.remedy)) == ("invalid_request", True)


@pytest.mark.parametrize("path", ["/v1/tryon", "/v1/jobs"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"[]," * 10**6 + b"[]]}",
        b'{"x":' + b'{"a":' * 10**6,
        b"{" + b",".join(b'"k%d":1' % number for number in range(10**5)) + b"}",
    ],
    ids=["wide", "deep", "many"],
)
def test_json_beside_pictures_is_refused_before_it_is_taken_apart(
    http: TestClient, mine: dict[str, str], path: str, body: bytes
) -> None:
    problem = refused(http.post(path, headers={**mine, **JSON}, content=body), 400)
    assert problem.detail == "body: far more fields than there are"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/outcomes", b'{"outcomes":[' + b"1," * 500_000 + b"1]}"),
        ("/v1/outcomes", b"{" + b",".join(b'"k%d":1' % at for at in range(90_000)) + b"}"),
        ("/v1/batches", b'{"expert":"top","products":[' + b"1," * 2_000_000 + b"1]}"),
    ],
    ids=["outcomes", "fields", "batch"],
)
def test_a_text_with_more_fields_than_any_is_not_told_of_each(
    http: TestClient, mine: dict[str, str], path: str, body: bytes
) -> None:
    """That took 12 s for 1 MiB, in which a router did nothing else."""
    problem = refused(http.post(path, headers={**mine, **JSON}, content=body), 400)
    assert problem.detail == "body: far more fields than there are"


def test_a_refusal_is_short_however_much_is_wrong(http: TestClient, mine: dict[str, str]) -> None:
    body = {f"{number}{'x' * 1000}": 1 for number in range(500)}
    answer = http.post("/v1/erasures", headers=mine, json=body)
    problem = refused(answer, 400)
    assert problem.errors is not None
    assert len(problem.errors) == 20
    assert "and 481 more" in problem.detail
    assert len(answer.content) < 20_000


def test_damaged_json_is_told_by_its_place(http: TestClient, mine: dict[str, str]) -> None:
    answer = http.post("/v1/erasures", headers={**mine, **JSON}, content=b'{"subject": no}')
    problem = refused(answer, 400)
    assert problem.detail == "body: not JSON: Expecting value at character 12"
    assert problem.remedy is not None
    assert "Content-Type: application/json" in problem.remedy


def test_a_control_character_in_an_option_is_refused(
    http: TestClient, mine: dict[str, str]
) -> None:
    options = json.dumps({**NOOP, "person": "ast_x", "product": "ast_x", "unit": "a\0"})
    answer = http.post("/v1/jobs", headers={**mine, **JSON}, content=options)
    problem = refused(answer, 400)
    assert problem.errors is not None
    assert problem.errors[0].field == "unit"


def test_a_path_that_ends_with_a_slash_sends_nobody_elsewhere(
    http: TestClient, mine: dict[str, str]
) -> None:
    """Behind a balancer the redirect would name http://, and clients send their key there."""
    answer = http.post("/v1/jobs/", headers=mine, files=MASKED, data=NOOP)
    problem = refused(answer, 404)
    assert problem.remedy is not None
    assert "slash" in problem.remedy


def test_a_picture_is_served_as_a_file_and_never_as_a_page(
    http: TestClient, mine: dict[str, str]
) -> None:
    page = b"<script>alert(document.domain)</script>"
    answer = http.post(
        "/v1/assets",
        headers=mine,
        files={"file": ("x.html", PICTURES["person"] + page, "text/html")},
    )
    assert answer.status_code == 201, answer.text
    asset_id = answer.json()["id"]
    served = http.get(f"/v1/assets/{asset_id}/content", headers=mine)
    assert served.content.endswith(page)
    assert served.headers["content-type"] == "image/png"
    assert served.headers["x-content-type-options"] == "nosniff"
    assert served.headers["content-disposition"] == f'attachment; filename="{asset_id}.png"'
    assert served.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("content", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>"])
def test_what_is_no_picture_is_not_kept(
    http: TestClient, mine: dict[str, str], content: bytes
) -> None:
    answer = http.post("/v1/assets", headers=mine, files={"file": ("x.png", content, "image/png")})
    assert refused(answer, 422).code == "invalid_image"


def test_every_answer_forbids_guessing_its_type(http: TestClient, mine: dict[str, str]) -> None:
    tried = http.post("/v1/tryon", headers=mine, files=MASKED, data=NOOP)
    assert tried.status_code == 200, tried.text
    for answer in (tried, http.get("/v1/jobs"), http.get("/v1/models", headers=mine)):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_draft_keeps_neither_an_old_price_nor_an_old_priority(
    api: FastAPI, http: TestClient
) -> None:
    first = bearer(add_key_to(api, "hoarder"))
    picture = http.post("/v1/assets", headers=first, files={"file": PICTURES["person"]}).json()[
        "id"
    ]
    wanted = {
        "expert": "eye",
        "priority": "interactive",
        "products": [{"sku": "A1", "image": picture}],
        "persons": [{"name": "one", "image": picture}],
    }

    def draft(key: dict[str, str]) -> dict[str, Any]:
        made: dict[str, Any] = http.post("/v1/batches", headers=key, json=wanted).json()
        return made

    old = draft(first)
    tried = http.post("/v1/tryon", headers=first, files=MASKED, data={"expert": "eye"})
    assert tried.status_code == 200, tried.text
    lowered = TenantPolicy(max_priority="batch")
    now = bearer(add_key_to(api, "hoarder", policy=lowered))
    new = draft(now)
    assert old["estimate"]["gpu_s"] != new["estimate"]["gpu_s"]
    started = http.post(f"{old['links']['self']}/start", headers=now).json()
    assert started["estimate"]["gpu_s"] == new["estimate"]["gpu_s"]
    assert (old["priority"], started["priority"]) == ("interactive", "batch")
    (job,) = http.get("/v1/jobs", headers=now).json()["items"]
    assert (job["quote_gpu_s"], job["priority"]) == (new["estimate"]["gpu_s"], "batch")


def test_no_log_of_an_answer_holds_a_token(api: FastAPI, http: TestClient) -> None:
    admin = bearer(add_key_to(api, "house", ("admin",)))
    made = http.post("/v1/tenants/house/keys", headers=admin, json={"name": "one"})
    key = KeyMinted.model_validate(made.json())
    assert key.token not in f"{key!r} {key}"
    told = http.get("/v1/audit", headers=admin).text
    assert key.id in told
    assert key.token.rpartition("_")[2] not in told


class TestStore:
    """On both databases: what one of them refuses is a 4xx on both."""

    pytestmark = pytest.mark.anyio

    async def test_no_text_that_cannot_be_kept_is_our_mistake(self, database: Database) -> None:
        async with database.reading() as session:
            with pytest.raises(NotFound):
                await get_delivery(session, "acme", "whd_\0")
        if not database.is_sqlite:
            with pytest.raises(InvalidRequest, match=r"U\+0000"):
                async with database.transaction() as session:
                    session.add(_tenant("a\0"))
            with pytest.raises(InvalidRequest, match=r"U\+0000"):
                async with database.transaction() as session:
                    session.add(_tenant("acme", {"note": "\0"}))

    async def test_nobody_is_asked_on_behalf_of_a_tenant_that_was_shut_out(
        self, database: Database
    ) -> None:
        async with database.transaction() as session:
            for tenant_id in ("acme", "other"):
                await add_tenant(session, tenant_id)
                await enqueue(
                    session,
                    tenant_id=tenant_id,
                    event="webhook.test",
                    subject_id="whd_x",
                    url="https://victim.example/",
                    payload={},
                    now=START,
                )
        await self._disable(database, True)
        assert [due.tenant_id for due in await self._claim(database)] == ["other"]
        await self._disable(database, False)
        assert [due.tenant_id for due in await self._claim(database)] == ["acme"]

    async def test_a_stream_ends_with_the_key_it_was_opened_with(self, database: Database) -> None:
        token = await add_key(database)
        async with database.transaction() as session:
            job_id = await add_job(session)
        caller = Caller("acme", key_id_of(token), frozenset({"jobs"}), TenantPolicy())
        ticks = itertools.count()
        follower = Follower(
            database, caller, job_id, 0, poll_s=0, max_stream_s=1000, now_s=lambda: next(ticks)
        )
        stream = follower.stream()
        for _ in range(5):
            await anext(stream)  # it opens, and goes on while the key works
        async with database.transaction() as session:
            revoke(await get_key(session, "acme", key_id_of(token)), START)
        # Whoever revoked it waits for no more than a few looks.
        assert len([piece async for piece in stream]) <= 1

    async def _disable(self, database: Database, is_disabled: bool) -> None:
        async with database.transaction() as session:
            tenant = await session.get(Tenant, "acme")
            assert tenant is not None
            set_disabled(tenant, is_disabled, START)

    async def _claim(self, database: Database) -> list[Any]:
        async with database.transaction() as session:
            return await claim_due(session, START, timedelta(seconds=60), limit=10)


def _tenant(tenant_id: str, policy: dict[str, Any] | None = None) -> Tenant:
    return Tenant(
        id=tenant_id, name=tenant_id, policy=policy or {}, created_at=START, updated_at=START
    )


def test_the_tenant_asked_about_is_a_tenant_id(api: FastAPI, http: TestClient) -> None:
    admin = bearer(add_key_to(api, "house", ("admin",)))
    assert refused(http.get("/v1/usage?tenant=%00", headers=admin), 400).errors is not None
    assert refused(http.get("/v1/usage?tenant=nobody", headers=admin), 404).code == "not_found"
