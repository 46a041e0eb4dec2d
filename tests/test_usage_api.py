"""`GET /v1/usage` adds up what was settled, and only the tenant's own."""

import asyncio
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from rich.console import Console
from starlette.testclient import TestClient

from serve.commands.usage import draw_usage
from serve.policy import TenantPolicy
from serve.schemas.usage import UsageReport
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.ledger import Budget, Reservation, reserve, settle
from serve.store.opening import database_url
from serve.store.usage import sum_usage
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.stores import START, add_tenant
from tests.tenants import add_key_to, bearer, key_id_of, run

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop"}


@pytest.fixture(scope="module")
def http(family: Path) -> Iterator[TestClient]:
    """Each test that uses something is a tenant of its own; `local` uses nothing."""
    with TestClient(build_local_api(family), raise_server_exceptions=False) as client:
        yield client


def read(http: TestClient, token: str | None = None, **query: object) -> UsageReport:
    headers = {} if token is None else bearer(token)
    response = http.get("/v1/usage", params=query, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return UsageReport.model_validate_json(response.content)


def flush(http: TestClient) -> None:
    assert http.portal is not None
    http.portal.call(http.app.state.services.ledger.flush)  # type: ignore[attr-defined]


def test_try_on_is_in_the_receipt_and_in_the_usage(http: TestClient) -> None:
    token = add_key_to(http.app, "counted")  # type: ignore[arg-type]
    options = {**NOOP, "num_images": "2"}
    headers = {"accept": "application/json", **bearer(token)}
    answer = http.post("/v1/tryon", data=options, files=FILES, headers=headers).json()
    flush(http)
    report = read(http, token, by=["day", "version"])
    (item,) = report.items
    assert (item.day, item.version, item.requests, item.images) == (
        utc_now().date(),
        "top@noop",
        1,
        2,
    )
    assert item.gpu_seconds == answer["receipt"]["usage"]["gpu_s"]
    assert answer["receipt"]["usage"]["images"] == 2
    assert item.usd is None
    assert report.total.images == 2
    assert report.budget.images.used == 2
    assert report.budget.images.reserved == 0
    assert report.budget.images.left is None


def test_refused_and_failed_try_ons_cost_nothing(http: TestClient) -> None:
    token = add_key_to(http.app, "refused")  # type: ignore[arg-type]
    for wrong in ({"person": b"no"}, {"mask": encoded(box_mask() * 0)}):
        files = {**FILES, **wrong}
        answer = http.post("/v1/tryon", data=NOOP, files=files, headers=bearer(token))
        assert answer.status_code == 422
    flush(http)
    report = read(http, token)
    assert (report.items, report.total.requests) == ((), 0)
    assert report.budget.gpu_seconds.reserved == 0


def test_budget_says_what_is_left_and_refuses_beyond_it(http: TestClient) -> None:
    token = add_key_to(http.app, "small", policy=TenantPolicy(monthly_images=1))  # type: ignore[arg-type]
    assert read(http, token).budget.images.left == 1
    assert http.post("/v1/tryon", data=NOOP, files=FILES, headers=bearer(token)).status_code == 200
    refused = http.post("/v1/tryon", data=NOOP, files=FILES, headers=bearer(token))
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exhausted")
    assert int(refused.headers["retry-after"]) > 0
    flush(http)
    assert read(http, token).budget.images.left == 0


def test_requests_of_a_minute_are_limited_before_the_body_is_read(http: TestClient) -> None:
    token = add_key_to(http.app, "slow", policy=TenantPolicy(requests_per_minute=2))  # type: ignore[arg-type]
    for _ in range(2):
        assert http.get("/v1/models", headers=bearer(token)).status_code == 200
    refused = http.post("/v1/tryon", content=b"never read", headers=bearer(token))
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 55 <= int(refused.headers["retry-after"]) <= 60
    assert http.get("/healthz").status_code == 200
    assert http.get("/v1/models").status_code == 200  # of another tenant


def test_more_try_ons_at_once_than_allowed_are_refused(http: TestClient) -> None:
    app = http.app
    token = add_key_to(app, "one", policy=TenantPolicy(concurrency=1))  # type: ignore[arg-type]

    async def send_two() -> list[int]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            sent = [
                client.post("/v1/tryon", data=NOOP, files=FILES, headers=bearer(token))
                for _ in range(2)
            ]
            answers = await asyncio.gather(*sent)
            sent_after = await client.post(
                "/v1/tryon", data=NOOP, files=FILES, headers=bearer(token)
            )
        return [*sorted(answer.status_code for answer in answers), sent_after.status_code]

    assert http.portal is not None
    assert http.portal.call(send_two) == [200, 429, 200]


def test_each_tenant_sees_its_own_and_an_administrator_all(http: TestClient) -> None:
    token = add_key_to(http.app, "acme", ["tryon", "versions"])  # type: ignore[arg-type]
    http.post("/v1/tryon", data=NOOP, files=FILES, headers=bearer(token))
    flush(http)
    assert read(http).total.requests == 0
    mine = read(http, token, by="key")
    assert [item.key_id for item in mine.items] == [key_id_of(token)]
    assert read(http, tenant="acme", by="key") == mine
    assert read(http, token, tenant="acme").total == mine.total
    refused = http.get("/v1/usage?tenant=local", headers=bearer(token))
    assert refused.status_code == 403
    assert http.get("/v1/usage?tenant=nobody", headers=bearer(token)).status_code == 403
    assert http.get("/v1/usage?tenant=nobody").status_code == 404


@pytest.mark.parametrize(
    "query",
    ["from=2026-02-01&to=2026-01-01", "from=2020-01-01&to=2026-01-01", "by=color", "from=soon"],
)
def test_questions_that_make_no_sense_are_refused(http: TestClient, query: str) -> None:
    assert http.get(f"/v1/usage?{query}").status_code == 400


def test_price_turns_gpu_seconds_into_money(family: Path, tmp_path: Path) -> None:
    priced = tmp_path / "family.yaml"
    lines = family.read_text().replace("bundles_dir: experts\n", "")
    folder = f"bundles_dir: {family.parent / 'experts'}\n"
    priced.write_text(f"{folder}pricing: {{usd_per_gpu_second: 0.5}}\n{lines}")
    api = build_local_api(priced)

    async def use() -> None:
        database = Database(database_url(api.state.settings))
        now = utc_now()
        async with database.transaction() as session:
            await spend(session, "local", "a", now, gpu_ms=3000, images=2, upstream=100_000)
        await database.close()

    run(use())
    with TestClient(api) as client:
        report = read(client)
    assert report.total.usd == pytest.approx(1.6)
    assert report.total.usd_per_image == pytest.approx(0.8)
    assert report.total.gpu_seconds_per_image == pytest.approx(1.5)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(draw_usage(report))
    shown = console.export_text()
    assert "1.6000" in shown
    assert "total" in shown


async def spend(
    session: Session,
    tenant: str,
    item: str,
    now: datetime,
    *,
    gpu_ms: int,
    images: int,
    upstream: int | None = None,
    version: str = "eye@1",
) -> None:
    reservation = Reservation(
        tenant_id=tenant,
        work_item=item,
        key_id=None,
        expert=version.split("@")[0],
        version=version,
        gpu_ms=gpu_ms,
        images=images,
    )
    await reserve(session, [reservation], Budget(), now)
    await settle(
        session,
        tenant,
        item,
        gpu_ms=gpu_ms,
        images=images,
        upstream_microusd=upstream,
        now=now,
    )


@pytest.mark.anyio
async def test_sums_by_any_columns_on_both_databases(database: Database) -> None:
    async with database.transaction() as session:
        for tenant in ("acme", "other"):
            await add_tenant(session, tenant)
        for index in range(6):
            version = ("eye@1", "eye@2", "top@1")[index % 3]
            at = START + timedelta(days=index // 3)
            await spend(
                session, "acme", f"i{index}", at, gpu_ms=100 * index, images=1, version=version
            )
        await spend(session, "other", "i", START, gpu_ms=7, images=1)
        open_one = Reservation(
            tenant_id="acme",
            work_item="open",
            key_id=None,
            expert="eye",
            version="eye@1",
            gpu_ms=9,
            images=1,
        )
        await reserve(session, [open_one], Budget(), START)
    first, last = START.date(), START.date() + timedelta(days=1)
    async with database.reading() as session:
        by_expert = await sum_usage(session, "acme", first, last, ["expert"])
        by_both = await sum_usage(session, "acme", first, first, ["day", "version"])
        everything = await sum_usage(session, "acme", first, last, [])
    assert [(s.group["expert"], s.requests, s.gpu_ms) for s in by_expert] == [
        ("eye", 4, 800),
        ("top", 2, 700),
    ]
    assert [(s.group["day"], s.group["version"]) for s in by_both] == [
        (date(2026, 1, 31), version) for version in ("eye@1", "eye@2", "top@1")
    ]
    assert [s.gpu_ms for s in everything] == [1500]
