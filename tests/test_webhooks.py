"""A message is sent at least once, by one sender at a time, signed so that anybody can check it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from serve.config import FetchConfig
from serve.errors import FetchRefused, NotFound
from serve.fetching.post import Poster, Reply
from serve.jobs.deliveries import Deliverer, DeliveryPolicy
from serve.jobs.webhook_signature import signed_headers
from serve.observing.meter import MemoryMeter
from serve.store.batch_tables import DeliveryState, WebhookDelivery, WebhookSecret
from serve.store.engine import Database
from serve.store.webhook_secrets import (
    MAX_ACTIVE,
    create_secret,
    ensure_secret,
    list_secrets,
    rotate_secret,
)
from serve.store.webhooks import (
    Receiver,
    claim_due,
    enqueue,
    get_delivery,
    list_deliveries,
    mark_delivered,
    mark_failed,
    redeliver,
)
from tests.stores import START, FakeClock, add_tenant, opened

pytestmark = pytest.mark.anyio

URL = "https://shop.example.org/hook"
LEASE = timedelta(seconds=60)
DATA = {"id": "job_1", "status": "succeeded"}

Answer = Callable[[str], Awaitable[Reply]]


class Receivers(Poster):
    """Every server on the internet: remembers what it was sent, and answers as a test says."""

    def __init__(self, *replies: Reply | FetchRefused, answer: Answer | None = None):
        super().__init__(FetchConfig())
        self._replies = list(replies)
        self._answer = answer
        self.urls: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.bodies: list[bytes] = []
        self.num_open = 0
        self.most_open = 0

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.urls.append(url)
        self.headers.append(headers)
        self.bodies.append(body)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            if self._answer is not None:
                return await self._answer(url)
            reply = self._replies.pop(0) if self._replies else Reply(200, None)
            if isinstance(reply, FetchRefused):
                raise reply
            return reply
        finally:
            self.num_open -= 1


@dataclass
class Desk:
    database: Database
    clock: FakeClock = field(default_factory=FakeClock)
    meter: MemoryMeter = field(default_factory=MemoryMeter)

    def deliverer(self, post: Poster, policy: DeliveryPolicy | None = None) -> Deliverer:
        return Deliverer(
            self.database, post, policy, self.clock, spread=lambda: 0.0, meter=self.meter
        )

    async def put(self, url: str = URL, tenant_id: str = "acme") -> str:
        async with self.database.transaction() as session:
            delivery = await enqueue(
                session,
                tenant_id=tenant_id,
                event="job.succeeded",
                subject_id="job_1",
                url=url,
                payload=DATA,
                now=self.clock.now,
            )
        return delivery.id

    async def get(self, delivery_id: str, tenant_id: str = "acme") -> WebhookDelivery:
        async with self.database.reading() as session:
            return await get_delivery(session, tenant_id, delivery_id)

    async def redeliver(self, delivery_id: str) -> None:
        async with self.database.transaction() as session:
            await redeliver(session, "acme", delivery_id, self.clock.now, LEASE)

    async def rotate(self, overlap_s: float) -> str:
        async with self.database.transaction() as session:
            overlap = timedelta(seconds=overlap_s)
            return (await rotate_secret(session, "acme", overlap, self.clock.now)).secret


@pytest.fixture
async def desk(database: Database) -> Desk:
    async with database.transaction() as session:
        await add_tenant(session, "acme")
        await add_tenant(session, "other")
    return Desk(database)


def test_signature_is_verified_by_the_library() -> None:
    secret, body = create_secret(), b'{"type":"job.succeeded"}'
    headers = signed_headers([secret], "whd_1", datetime.now(UTC), body)
    assert Webhook(secret).verify(body, headers) == {"type": "job.succeeded"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(b'{"type":"job.failed"}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(create_secret()).verify(body, headers)
    for name, value in (("webhook-id", "whd_2"), ("webhook-timestamp", "1")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, {**headers, name: value})


def test_secret_is_as_long_as_the_standard_wants() -> None:
    assert create_secret().startswith("whsec_")
    assert create_secret() != create_secret()


async def test_message_carries_what_a_poll_would_say(desk: Desk) -> None:
    delivery_id = await desk.put()
    post = Receivers()
    assert await desk.deliverer(post).run_once() == 1
    assert post.urls == [URL]
    (headers,) = post.headers
    assert headers["webhook-id"] == delivery_id
    assert headers["webhook-timestamp"] == str(int(START.timestamp()))
    assert json.loads(post.bodies[0]) == {
        "type": "job.succeeded",
        "timestamp": "2026-01-31T12:00:00+00:00",
        "data": DATA,
    }
    row = await desk.get(delivery_id)
    assert (row.state, row.attempts, row.last_status) == (DeliveryState.DELIVERED, 1, 200)
    assert row.delivered_at == START
    assert await desk.deliverer(post).run_once() == 0


async def test_message_of_a_transaction_that_is_undone_is_never_sent(desk: Desk) -> None:
    async with desk.database.transaction() as session:
        await enqueue(
            session,
            tenant_id="acme",
            event="job.failed",
            subject_id="job_1",
            url=URL,
            payload=DATA,
            now=START,
        )
        await session.rollback()
    assert await desk.deliverer(Receivers()).run_once() == 0


async def test_first_secret_is_made_on_demand_and_stays(desk: Desk) -> None:
    for _ in range(2):
        await desk.put()
    await desk.deliverer(Receivers(), DeliveryPolicy(per_receiver=1)).run_once()
    async with desk.database.reading() as session:
        (secret,) = await list_secrets(session, "acme", START)
        assert secret.expires_at is None
        assert await list_secrets(session, "other", START) == []


async def test_crowd_makes_one_first_secret(desk: Desk) -> None:
    async def ensure() -> str:
        async with desk.database.transaction() as session:
            (secret,) = await ensure_secret(session, "acme", START)
            return secret.id

    assert len(set(await asyncio.gather(*(ensure() for _ in range(8))))) == 1


async def test_both_secrets_verify_while_they_overlap_and_only_the_new_one_afterwards(
    desk: Desk,
) -> None:
    desk.clock.now = datetime.now(UTC)  # the library goes by the wall clock
    old, new = await desk.rotate(0), await desk.rotate(3600)
    post = Receivers()
    await desk.put()
    await desk.deliverer(post).run_once()
    for secret in (old, new):
        Webhook(secret).verify(post.bodies[0], dict(post.headers[0]))
    async with desk.database.transaction() as session:
        row = await session.scalar(select(WebhookSecret).where(WebhookSecret.secret == old))
        assert row is not None
        row.expires_at = desk.clock.now
    await desk.put()
    await desk.deliverer(post).run_once()
    Webhook(new).verify(post.bodies[1], dict(post.headers[1]))
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(post.bodies[1], dict(post.headers[1]))


async def test_rotation_ends_the_others_after_the_overlap_and_never_later_than_before(
    desk: Desk,
) -> None:
    first = await desk.rotate(0)
    second = await desk.rotate(60)
    third = await desk.rotate(3600)
    async with desk.database.reading() as session:
        active = await list_secrets(session, "acme", START)
    assert [secret.secret for secret in active] == [third, second, first]
    assert [secret.expires_at for secret in active] == [
        None,
        START + timedelta(seconds=3600),
        START + timedelta(seconds=60),
    ]
    desk.clock.advance(60)
    fourth = await desk.rotate(0)
    async with desk.database.reading() as session:
        assert [s.secret for s in await list_secrets(session, "acme", desk.clock.now)] == [fourth]


async def test_rotations_in_a_row_keep_few_signatures(desk: Desk) -> None:
    newest = [await desk.rotate(3600) for _ in range(MAX_ACTIVE + 3)][::-1]
    async with desk.database.reading() as session:
        active = await list_secrets(session, "acme", START)
    assert len(active) == MAX_ACTIVE
    assert active[0].secret == newest[0]


async def test_rotation_of_an_unknown_tenant_is_not_found(desk: Desk) -> None:
    async with desk.database.transaction() as session:
        with pytest.raises(NotFound):
            await rotate_secret(session, "nobody", timedelta(0), START)


async def test_failed_message_is_tried_over_hours_and_then_given_up(desk: Desk) -> None:
    delivery_id = await desk.put()
    post = Receivers(answer=refuse_all)
    deliverer = desk.deliverer(post)
    waits_s = []
    while (await desk.get(delivery_id)).state is DeliveryState.PENDING:
        assert await deliverer.run_once() == 1
        row = await desk.get(delivery_id)
        assert row.last_error == "the server cannot be reached"
        wait_s = (row.next_attempt_at - desk.clock.now).total_seconds()
        waits_s.append(wait_s)
        desk.clock.advance(wait_s - 0.001)
        if row.state is DeliveryState.PENDING:
            assert await deliverer.run_once() == 0
        desk.clock.advance(0.001)
    assert waits_s[:-1] == [5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800]
    assert len(post.urls) == 10
    assert len({headers["webhook-id"] for headers in post.headers}) == 1
    assert len({headers["webhook-timestamp"] for headers in post.headers}) == 10
    assert (await desk.get(delivery_id)).state is DeliveryState.FAILED
    desk.clock.advance(10**6)
    assert await deliverer.run_once() == 0


async def refuse_all(url: str) -> Reply:
    raise FetchRefused("the server cannot be reached")


def test_delay_is_spread_and_a_receivers_wish_only_makes_it_longer() -> None:
    policy = DeliveryPolicy()

    def delay_s(attempt: int, asked_s: float = 0, spread: float = 0) -> float:
        delay = policy.retry_after(attempt, asked_s, spread)
        assert delay is not None
        return delay.total_seconds()

    assert (delay_s(1, spread=-1), delay_s(1, spread=1)) == (4, 6)
    assert delay_s(1, asked_s=100) == 100
    assert delay_s(5, asked_s=100) == 1800
    assert delay_s(1, asked_s=10**9) == 28_800
    assert policy.retry_after(10, 0, 0) is None
    assert policy.retry_after(10, 100, 0) is None


@pytest.mark.parametrize("status", [429, 503])
async def test_receiver_may_ask_for_a_later_attempt(desk: Desk, status: int) -> None:
    delivery_id = await desk.put()
    await desk.deliverer(Receivers(Reply(status, 900.0))).run_once()
    row = await desk.get(delivery_id)
    assert row.next_attempt_at == START + timedelta(seconds=900)
    assert (row.last_status, row.last_error) == (status, f"the server answers {status}")


async def test_other_answers_do_not_set_the_time(desk: Desk) -> None:
    delivery_id = await desk.put()
    await desk.deliverer(Receivers(Reply(500, 900.0))).run_once()
    assert (await desk.get(delivery_id)).next_attempt_at == START + timedelta(seconds=5)


async def test_gone_stops_at_once_and_a_redirect_is_a_failure(desk: Desk) -> None:
    gone, moved = await desk.put(), await desk.put("https://cdn.example.net/hook")
    replies = {URL: Reply(410, None), "https://cdn.example.net/hook": Reply(302, None)}

    async def answer(url: str) -> Reply:
        return replies[url]

    await desk.deliverer(Receivers(answer=answer)).run_once()
    assert (await desk.get(gone)).state is DeliveryState.FAILED
    row = await desk.get(moved)
    assert (row.state, row.last_status) == (DeliveryState.PENDING, 302)


async def test_redelivery_is_a_new_attempt_of_the_same_message(desk: Desk) -> None:
    delivery_id = await desk.put()
    post = Receivers(Reply(410, None), Reply(204, None), Reply(204, None))
    deliverer = desk.deliverer(post)
    for _ in range(3):
        await deliverer.run_once()
        await desk.redeliver(delivery_id)
    assert [headers["webhook-id"] for headers in post.headers] == [delivery_id] * 3
    row = await desk.get(delivery_id)
    assert (row.state, row.attempts, row.delivered_at) == (DeliveryState.PENDING, 3, None)


async def test_redelivery_of_what_was_given_up_is_one_more_attempt(desk: Desk) -> None:
    policy = DeliveryPolicy(delays_s=())
    delivery_id = await desk.put()
    post = Receivers(Reply(500, None), Reply(500, None))
    await desk.deliverer(post, policy).run_once()
    await desk.redeliver(delivery_id)
    assert await desk.deliverer(post, policy).run_once() == 1
    row = await desk.get(delivery_id)
    assert (row.state, row.attempts) == (DeliveryState.FAILED, 2)


async def test_waiting_message_is_brought_forward_but_never_beside_an_attempt(desk: Desk) -> None:
    delivery_id = await desk.put()
    await desk.deliverer(Receivers(Reply(503, 3600.0))).run_once()
    await desk.redeliver(delivery_id)
    assert (await desk.get(delivery_id)).next_attempt_at == START + LEASE


async def test_what_another_tenant_has_is_not_found(desk: Desk) -> None:
    delivery_id = await desk.put()
    async with desk.database.transaction() as session:
        with pytest.raises(NotFound) as theirs:
            await get_delivery(session, "other", delivery_id)
        with pytest.raises(NotFound) as unknown:
            await redeliver(session, "other", "whd_unknown", START, LEASE)
        assert theirs.value.detail == unknown.value.detail
        assert await list_deliveries(session, "other") == []


async def test_crash_between_the_answer_and_its_note_sends_the_message_again(desk: Desk) -> None:
    """At least once, with the same id: the receiver knows it has it."""
    delivery_id = await desk.put()
    async with desk.database.transaction() as session:
        (lost,) = await claim_due(session, START, LEASE)  # sent, and then the process died
    post = Receivers()
    desk.clock.advance(59)
    assert await desk.deliverer(post).run_once() == 0
    desk.clock.advance(1)
    assert await desk.deliverer(post).run_once() == 1
    assert post.headers[0]["webhook-id"] == lost.id == delivery_id
    async with desk.database.transaction() as session:
        retry_at = START + timedelta(days=1)
        assert not await mark_failed(session, lost, status=500, error="", retry_at=retry_at)
    assert (await desk.get(delivery_id)).state is DeliveryState.DELIVERED


async def test_note_of_an_attempt_that_lapsed_changes_nothing(desk: Desk) -> None:
    delivery_id = await desk.put()
    async with desk.database.transaction() as session:
        (late,) = await claim_due(session, START, LEASE)
    async with desk.database.transaction() as session:
        (current,) = await claim_due(session, START + LEASE, LEASE)
    async with desk.database.transaction() as session:
        assert not await mark_delivered(session, late, 200, START)
        assert not await mark_failed(session, late, status=None, error="", retry_at=None)
    row = await desk.get(delivery_id)
    assert (row.state, row.next_attempt_at) == (DeliveryState.PENDING, current.lease_expires_at)


async def test_deliverers_side_by_side_send_every_attempt_once(store_url: str) -> None:
    """Connections of their own, so that nothing but the rows keeps them apart."""
    async with opened(store_url) as first, opened(store_url) as second:
        desk = Desk(first)
        async with first.transaction() as session:
            await add_tenant(session)
        ids = [await desk.put(f"https://h{n % 7}.example.org/") for n in range(40)]

        async def answer(url: str) -> Reply:
            await asyncio.sleep(0)
            return Reply(200, None)

        post = Receivers(answer=answer)
        others = Desk(second, desk.clock)
        sent = await asyncio.gather(
            desk.deliverer(post).run_once(),
            others.deliverer(post).run_once(),
            others.deliverer(post).run_once(),
        )
        assert sum(sent) == 40
        assert sorted(headers["webhook-id"] for headers in post.headers) == sorted(ids)


async def test_slow_receiver_holds_up_neither_its_tenants_others_nor_other_tenants(
    desk: Desk,
) -> None:
    slow, policy = "https://slow.example.org/", DeliveryPolicy(per_receiver=2, per_tenant=4)
    for n in range(20):
        await desk.put(f"{slow}{n}")
    await desk.put(URL)
    await desk.put(URL, "other")
    is_free, arrived = asyncio.Event(), asyncio.Event()
    fast: list[str] = []

    async def answer(url: str) -> Reply:
        if url.startswith(slow):
            await is_free.wait()
        else:
            fast.append(url)
            if len(fast) == 2:
                arrived.set()
        return Reply(200, None)

    post = Receivers(answer=answer)
    running = asyncio.create_task(desk.deliverer(post, policy).run_once())
    await arrived.wait()
    assert len([url for url in post.urls if url.startswith(slow)]) <= policy.per_receiver
    is_free.set()
    assert await running == 22
    assert post.most_open <= 4


async def test_tenant_with_many_slow_hosts_leaves_room_for_others(desk: Desk) -> None:
    for n in range(20):
        await desk.put(f"https://slow{n}.example.org/")
    await desk.put(URL, "other")
    is_free, arrived = asyncio.Event(), asyncio.Event()

    async def answer(url: str) -> Reply:
        if url == URL:
            arrived.set()
        else:
            await is_free.wait()
        return Reply(200, None)

    post = Receivers(answer=answer)
    running = asyncio.create_task(
        desk.deliverer(post, DeliveryPolicy(per_tenant=4, concurrency=8)).run_once()
    )
    await arrived.wait()
    assert post.most_open <= 5
    is_free.set()
    assert await running == 21


async def test_no_more_are_on_their_way_than_allowed(desk: Desk) -> None:
    for n in range(30):
        await desk.put(f"https://h{n}.example.org/", ("acme", "other")[n % 2])
    is_full = asyncio.Event()

    async def answer(url: str) -> Reply:
        if post.num_open == 3:
            is_full.set()
        await is_full.wait()
        return Reply(200, None)

    post = Receivers(answer=answer)
    assert await desk.deliverer(post, DeliveryPolicy(concurrency=3)).run_once() == 30
    assert post.most_open == 3


async def test_url_that_looks_like_a_pattern_makes_only_itself_busy(desk: Desk) -> None:
    await desk.put("https://a.example.org/")
    async with desk.database.transaction() as session:
        busy = [Receiver("acme", "https://%.example.org/"), Receiver("acme", "https://_")]
        assert len(await claim_due(session, START, LEASE, busy_receivers=busy)) == 1


async def test_run_forever_sends_what_comes_later_and_finishes_when_it_is_stopped(
    desk: Desk,
) -> None:
    arrived = asyncio.Event()

    async def answer(url: str) -> Reply:
        arrived.set()
        return Reply(200, None)

    running = asyncio.create_task(
        desk.deliverer(Receivers(answer=answer)).run_forever(poll_s=0.001)
    )
    delivery_id = await desk.put()
    await arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await desk.get(delivery_id)).state is DeliveryState.DELIVERED


async def test_failure_of_ours_with_one_message_stops_no_other(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    await desk.put("https://bad.example.org/")
    await desk.put()

    async def answer(url: str) -> Reply:
        if url != URL:
            raise ZeroDivisionError
        return Reply(200, None)

    assert await desk.deliverer(Receivers(answer=answer)).run_once() == 2
    async with desk.database.reading() as session:
        states = {row.url: row.state for row in await list_deliveries(session, "acme")}
    assert states[URL] is DeliveryState.DELIVERED
    assert "ZeroDivisionError" in caplog.text


async def test_failure_of_ours_is_given_up_as_any_other(desk: Desk) -> None:
    delivery_id = await desk.put()

    async def answer(url: str) -> Reply:
        raise ZeroDivisionError

    deliverer = desk.deliverer(Receivers(answer=answer))
    for _ in range(len(DeliveryPolicy().delays_s) + 1):
        assert await deliverer.run_once() == 1
        desk.clock.advance(40_000)  # later than the longest delay
    assert await deliverer.run_once() == 0
    delivery = await desk.get(delivery_id)
    assert delivery.state is DeliveryState.FAILED
    assert delivery.last_error == "the message could not be sent: a failure on our side"


async def test_log_is_listed_newest_first_and_by_state(desk: Desk) -> None:
    ids = [await desk.put() for _ in range(5)]
    await desk.deliverer(Receivers(Reply(410, None)), DeliveryPolicy(per_receiver=1)).run_once()
    async with desk.database.reading() as session:
        everything = await list_deliveries(session, "acme")
        newest = await list_deliveries(session, "acme", limit=2)
        older = await list_deliveries(session, "acme", after=newest[-1].id)
        failed = await list_deliveries(session, "acme", state=DeliveryState.FAILED)
    listed = [row.id for row in everything]
    assert listed == sorted(ids, reverse=True)
    assert [row.id for row in (*newest, *older)] == listed
    assert len(failed) == 1
