"""A key runs once: on one router or two, through crashes of either, and for a day."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serve.api.idempotency import Idempotency, hash_request
from serve.errors import Conflict, DeadlineExceeded
from serve.imaging.spool import SpooledBody
from serve.policy import SCOPES, TenantPolicy
from serve.settings import Settings
from serve.store.blobs import BlobKey, Blobs
from serve.store.engine import Database
from serve.store.idempotency import Standing
from serve.store.opening import open_blobs
from serve.tenancy.caller import Caller
from serve.tenancy.idempotency import (
    KEPT_S,
    Answer,
    FirstAnswers,
    Held,
    IdempotencyTimes,
    identity_of,
    work_item_of,
)
from tests.stores import FakeClock, add_tenant

pytestmark = pytest.mark.anyio

POLICY = TenantPolicy()
SHA = "a" * 64
OTHER_SHA = "b" * 64
TIMES = IdempotencyTimes(poll_s=0.001)
PATIENCE_S = 5.0
SMALL = Answer(
    status=201, headers=(("location", "/v1/x"),), media_type="application/json", body=b"{}"
)
PICTURE = Answer(status=200, headers=(), media_type="image/png", body=b"\x89PNG" * 1000)


class Crash(BaseException):
    """A process that ends here."""


class Dying(Blobs):
    """The real blobs, with a process that ends before or after it keeps an answer."""

    ends: str = ""

    async def put(
        self, tenant_id: str, kind: str, data: bytes, *, sha256: str | None = None
    ) -> BlobKey:
        if self.ends == "before":
            raise Crash
        key = await super().put(tenant_id, kind, data, sha256=sha256)
        if self.ends == "after":
            raise Crash
        return key


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def blobs(tmp_path: Path) -> Dying:
    return Dying(open_blobs(Settings(data_dir=tmp_path))._store)


@pytest.fixture
async def answers(database: Database, blobs: Dying, clock: FakeClock) -> FirstAnswers:
    async with database.transaction() as session:
        await add_tenant(session, "acme")
        await add_tenant(session, "other")
    return FirstAnswers(database, blobs, clock, TIMES)


async def run(answers: FirstAnswers, answer: Answer = SMALL, **about: Any) -> str:
    """One request from its start to its kept answer; says what it is charged as."""
    row = await answers.take("acme", "k", SHA)
    assert row.standing is Standing.OURS
    async with answers.holding(row) as held:
        await answers.keep(held, answer, about.get("policy", POLICY), about.get("refers", ()))
    return work_item_of(row)


@pytest.mark.parametrize("answer", [SMALL, PICTURE])
async def test_first_answer_is_given_again_also_after_a_restart(
    answers: FirstAnswers, database: Database, blobs: Dying, answer: Answer
) -> None:
    await run(answers, answer)
    restarted = FirstAnswers(database, blobs, FakeClock(), TIMES)
    row = await restarted.take("acme", "k", SHA)
    assert row.standing is Standing.ANSWERED
    assert await restarted.recall(row) == answer


async def test_same_key_with_another_body_is_a_conflict_before_and_after_the_answer(
    answers: FirstAnswers,
) -> None:
    row = await answers.take("acme", "k", SHA)
    with pytest.raises(Conflict):
        await answers.take("acme", "k", OTHER_SHA)
    async with answers.holding(row) as held:
        await answers.keep(held, SMALL, POLICY, ())
    with pytest.raises(Conflict):
        await answers.take("acme", "k", OTHER_SHA)


async def test_keys_are_a_tenants_own(answers: FirstAnswers) -> None:
    await run(answers)
    row = await answers.take("other", "k", OTHER_SHA)
    assert row.standing is Standing.OURS


async def test_second_waits_for_the_first(answers: FirstAnswers) -> None:
    row = await answers.take("acme", "k", SHA)
    second = asyncio.create_task(answers.take("acme", "k", SHA))
    async with answers.holding(row) as held:
        await answers.keep(held, SMALL, POLICY, ())
    assert (await second).standing is Standing.ANSWERED


async def test_second_runs_it_when_the_firsts_answer_was_not_kept(answers: FirstAnswers) -> None:
    row = await answers.take("acme", "k", SHA)
    second = asyncio.create_task(answers.take("acme", "k", SHA))
    async with answers.holding(row):
        pass
    taken = await second
    assert taken.standing is Standing.OURS
    assert identity_of(taken) == identity_of(row)


async def test_key_that_was_freed_takes_another_body_as_new_work(
    answers: FirstAnswers, clock: FakeClock
) -> None:
    row = await answers.take("acme", "k", SHA)
    async with answers.holding(row):
        pass
    clock.advance(1)
    other = await answers.take("acme", "k", OTHER_SHA)
    assert other.standing is Standing.OURS
    assert work_item_of(other) != work_item_of(row)


async def test_router_that_died_is_taken_over_as_the_same_work(
    answers: FirstAnswers, clock: FakeClock
) -> None:
    dead = await answers.take("acme", "k", SHA)
    clock.advance(TIMES.lock_s)
    with pytest.raises(Conflict):
        await answers.take("acme", "k", OTHER_SHA)
    taken = await answers.take("acme", "k", SHA)
    assert (taken.standing, work_item_of(taken)) == (Standing.OURS, work_item_of(dead))
    async with answers.holding(dead) as held:  # it was only slow, and comes back too late
        await answers.keep(held, PICTURE, POLICY, ())
    async with answers.holding(taken) as held:
        await answers.keep(held, SMALL, POLICY, ())
    assert await answers.recall(await answers.take("acme", "k", SHA)) == SMALL


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_crash_while_the_answer_is_kept_runs_again_as_the_same_work(
    answers: FirstAnswers, blobs: Dying, clock: FakeClock, moment: str
) -> None:
    dead = await answers.take("acme", "k", SHA)
    held_by_nobody = answers.holding(dead)
    held = await held_by_nobody.__aenter__()
    blobs.ends = moment
    with pytest.raises(Crash):
        await answers.keep(held, PICTURE, POLICY, ())
    blobs.ends = ""
    clock.advance(TIMES.lock_s)
    assert await run(answers, PICTURE) == work_item_of(dead)
    assert await answers.recall(await answers.take("acme", "k", SHA)) == PICTURE
    await held_by_nobody.__aexit__(None, None, None)
    assert await answers.recall(await answers.take("acme", "k", SHA)) == PICTURE


async def test_waiting_ends_some_time(answers: FirstAnswers, clock: FakeClock) -> None:
    await answers.take("acme", "k", SHA)
    patient = IdempotencyTimes(poll_s=0.001, max_wait_s=5, lock_s=30)
    waiting = asyncio.create_task(
        FirstAnswers(answers._database, answers._blobs, clock, patient).take("acme", "k", SHA)
    )
    while not waiting.done():
        clock.advance(1)
        await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await waiting


async def test_lock_is_renewed_while_it_runs(
    answers: FirstAnswers, database: Database, blobs: Dying, clock: FakeClock
) -> None:
    busy = FirstAnswers(database, blobs, clock, IdempotencyTimes(renew_s=0.001, poll_s=0.001))
    row = await busy.take("acme", "k", SHA)
    async with busy.holding(row) as held:
        clock.advance(TIMES.lock_s - 1)
        while held.row.locked_until == row.locked_until:
            await asyncio.sleep(0)
        assert row.locked_until is not None
        clock.advance(2)  # past the first lock
        second = asyncio.create_task(answers.take("acme", "k", SHA))
        await busy.keep(held, SMALL, POLICY, ())
    assert (await second).standing is Standing.ANSWERED


async def test_client_that_leaves_while_the_lock_is_renewed_leaves_the_key_free(
    answers: FirstAnswers,
) -> None:
    helds: list[Held] = []

    async def request() -> None:
        async with answers.holding(await answers.take("acme", "k", SHA)) as held:
            helds.append(held)
            await held.lock.acquire()  # as a renewal does that the database keeps waiting

    leaving = asyncio.create_task(request())
    while not (helds and helds[0].lock.locked()):
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    helds[0].lock.release()
    async with asyncio.timeout(PATIENCE_S):
        row = await answers.take("acme", "k", SHA)
    assert row.standing is Standing.OURS


async def test_after_a_day_the_key_is_new_work_and_its_body_is_gone(
    answers: FirstAnswers, blobs: Dying, clock: FakeClock
) -> None:
    first = await run(answers, PICTURE)
    clock.advance(KEPT_S)
    assert await answers.drop_expired("other") == 0
    assert await answers.drop_expired("acme") == 1
    assert [info async for info in blobs.list("acme")] == []
    assert await run(answers, PICTURE) != first


async def test_pictures_of_a_tenant_that_keeps_none_are_not_given_again(
    answers: FirstAnswers, blobs: Dying
) -> None:
    await run(answers, PICTURE, policy=TenantPolicy(result_retention_s=0))
    assert [info async for info in blobs.list("acme")] == []
    with pytest.raises(Conflict, match="kept too briefly"):
        await answers.recall(await answers.take("acme", "k", SHA))


async def test_small_json_of_such_a_tenant_is_given_again(answers: FirstAnswers) -> None:
    await run(answers, SMALL, policy=TenantPolicy(result_retention_s=0))
    assert await answers.recall(await answers.take("acme", "k", SHA)) == SMALL


@pytest.mark.parametrize("named", ["noted", "in the body"])
async def test_erased_answer_is_gone_and_does_not_run_again(
    answers: FirstAnswers, blobs: Dying, named: str
) -> None:
    asset_id = "ast_" + "0" * 26
    body = b'{"id": "%s"}' % asset_id.encode()
    by_body = Answer(status=201, headers=(), media_type="application/json", body=body)
    if named == "noted":
        await run(answers, PICTURE, refers={asset_id})
    else:
        await run(answers, by_body)
    assert await answers.forget("acme", {"ast_" + "1" * 26}) == 0
    assert await answers.forget("other", {asset_id}) == 0
    assert await answers.forget("acme", {asset_id}) == 1
    assert [info async for info in blobs.list("acme")] == []
    with pytest.raises(Conflict, match="erased"):
        await answers.recall(await answers.take("acme", "k", SHA))


# The middleware, around an application of a few lines.

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Counter:
    """Counts its runs; each waits for its turn to answer."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.num_runs = 0
        self.work_items: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        self.num_runs += 1
        self.work_items.append(scope["state"].get("work_item", ""))
        body = (await receive())["body"]
        await self.may_answer.wait()
        headers = [(b"content-type", b"text/plain"), (b"sm4ll-seed", b"7"), (b"x-request-id", b"r")]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"%d" % self.num_runs})


async def post(
    app: Any, body: bytes = b"hello", key: str | None = "k", boundary: str = "", **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    headers = [(b"idempotency-key", key.encode("latin-1"))] if key is not None else []
    kind = f"multipart/form-data; boundary={boundary}" if boundary else "image/png"
    caller = Caller("acme", "key_1", frozenset(SCOPES), scope.pop("policy", POLICY))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/x",
        "query_string": b"",
        "headers": [*headers, (b"content-type", kind.encode())],
        "state": {"caller": caller, "request_id": "req_1"},
        **scope,
    }
    pieces = [{"type": "http.request", "body": body[:2], "more_body": True}]
    pieces.append({"type": "http.request", "body": body[2:], "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if pieces:
            return pieces.pop(0)
        return await asyncio.Future()  # the client stays

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], got, b"".join(each.get("body", b"") for each in sent[1:])


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def app(answers: FirstAnswers, counter: Counter) -> Idempotency:
    import logging

    return Idempotency(counter, answers, logging.getLogger("tests"))


async def test_double_click_is_one_run_and_two_equal_answers(
    app: Idempotency, counter: Counter, database: Database, blobs: Dying, clock: FakeClock
) -> None:
    other_router = Idempotency(counter, FirstAnswers(database, blobs, clock, TIMES), app._logger)
    counter.may_answer.clear()
    clicks = [asyncio.create_task(post(each)) for each in (app, other_router)]
    while not counter.num_runs:
        await asyncio.sleep(0)
    counter.may_answer.set()
    one, two = await asyncio.gather(*clicks)
    assert counter.num_runs == 1
    assert (one[0], one[2]) == (two[0], two[2]) == (200, b"hello1")
    assert one[1]["sm4ll-seed"] == two[1]["sm4ll-seed"] == "7"
    assert one[1]["content-type"] == two[1]["content-type"]
    assert [one[1].get("idempotent-replayed"), two[1].get("idempotent-replayed")].count("true") == 1


async def test_without_a_key_or_with_get_nothing_is_kept(
    app: Idempotency, counter: Counter
) -> None:
    await post(app, key=None)
    await post(app, key=None)
    await post(app, method="GET")
    await post(app, method="GET")
    assert counter.num_runs == 4
    assert counter.work_items == [""] * 4


async def test_another_body_path_or_query_is_409(app: Idempotency, counter: Counter) -> None:
    await post(app)
    for change in ({"body": b"other"}, {"path": "/v1/y"}, {"query_string": b"a=1"}):
        status, _, problem = await post(app, **change)  # type: ignore[arg-type]
        assert (status, b'"conflict"' in problem) == (409, True)
    assert counter.num_runs == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "gr\xfc\xdfe", "a\tb"])
async def test_key_that_is_none_is_400(app: Idempotency, counter: Counter, key: str) -> None:
    assert (await post(app, key=key))[0] == 400
    assert counter.num_runs == 0


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503, 504])
async def test_answers_that_may_pass_are_not_kept(
    app: Idempotency, counter: Counter, status: int
) -> None:
    counter.status = status
    assert (await post(app))[0] == status
    counter.status = 200
    assert (await post(app))[2] == b"hello2"
    assert counter.work_items[0] == counter.work_items[1] != ""
    assert (await post(app))[2] == b"hello2"


@pytest.mark.parametrize("status", [200, 202, 400, 404, 409, 422])
async def test_answers_about_the_request_are_kept(
    app: Idempotency, counter: Counter, status: int
) -> None:
    counter.status = status
    await post(app)
    assert ((await post(app))[0], counter.num_runs) == (status, 1)


async def test_run_whose_client_left_is_repeated_as_the_same_work(
    app: Idempotency, counter: Counter
) -> None:
    counter.may_answer.clear()
    left = asyncio.create_task(post(app))
    while not counter.num_runs:
        await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    counter.may_answer.set()
    assert (await post(app))[2] == b"hello2"
    assert counter.work_items[0] == counter.work_items[1]


async def test_answer_is_kept_before_its_last_byte_goes_out(
    app: Idempotency, answers: FirstAnswers, counter: Counter
) -> None:
    class Lost(Exception):
        """The connection, with the last piece on it."""

    async def send_and_lose(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            raise Lost

    class Losing:
        async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
            await app(scope, receive, send_and_lose)

    with pytest.raises(Lost):
        await post(Losing())
    status, headers, body = await post(app)
    assert (status, body, headers["idempotent-replayed"]) == (200, b"hello1", "true")


def form(boundary: str, content: bytes = b"bytes", name: str = "person") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return head + content + f"\r\n--{boundary}--\r\n".encode()


async def test_retry_with_another_boundary_is_the_same_request(
    app: Idempotency, counter: Counter
) -> None:
    first = await post(app, form("one"), boundary="one")
    second = await post(app, form("two"), boundary="two")
    assert (first[2], counter.num_runs) == (second[2], 1)
    for other in (form("two", b"other"), form("two", name="product")):
        assert (await post(app, other, boundary="two"))[0] == 409


def test_parts_cannot_trade_letters_and_damage_counts_by_its_bytes() -> None:
    def hashed(body: bytes, boundary: str = "b") -> str:
        kind = f"multipart/form-data; boundary={boundary}".encode()
        scope = {"method": "POST", "path": "/", "headers": [(b"content-type", kind)]}
        spooled = SpooledBody()
        spooled.write(body)
        return hash_request(scope, spooled)

    assert hashed(form("b")) != hashed(form("b", b"byte"))
    assert hashed(form("b")[:-6]) != hashed(form("b", b"byteS")[:-6])
    two = form("b")[:-8] + b"\r\n" + form("b", b"", "x")
    assert hashed(two) != hashed(form("b"))


async def test_body_above_the_limit_is_refused_as_without_a_key(answers: FirstAnswers) -> None:
    import logging

    from serve.api.middleware import BodyLimit

    limited = BodyLimit(Idempotency(Counter(), answers, logging.getLogger("tests")), 4)
    assert (await post(limited))[0] == 413
