"""A key is what it is within three seconds; what is none costs nothing; secrets stay secret."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from serve.errors import Conflict, Overloaded, StoreUnavailable, Unauthenticated
from serve.policy import TenantPolicy
from serve.store.engine import Database
from serve.store.keys import get_key
from serve.tenancy import key_lookup, key_ring
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.keys import hash_token, mint_key, parse_token
from serve.tenancy.registry import NewKey, Registry
from tests.stores import FakeClock
from tests.tenants import add_key

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def ring(database: Database, clock: FakeClock) -> AsyncIterator[KeyRing]:
    ring = build_ring(database, clock)
    yield ring
    await ring.flush()


def build_ring(database: Database, clock: FakeClock) -> KeyRing:
    return KeyRing(database, clock, lambda: clock.now.timestamp())


@pytest.fixture
async def registry(database: Database, clock: FakeClock) -> Registry:
    registry = Registry(database, clock)
    await registry.create_tenant("test", tenant_id="acme", name="Acme", policy=TenantPolicy())
    return registry


async def create(registry: Registry, lifetime_s: float | None = None) -> NewKey:
    lifetime = None if lifetime_s is None else timedelta(seconds=lifetime_s)
    return await registry.create_key(
        "test", "acme", name="shop", scopes=("tryon",), lifetime=lifetime
    )


async def refusal(ring: KeyRing, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await ring.find_caller(token)
    return f"{caught.value.detail} | {caught.value.remedy}"


async def works(ring: KeyRing, token: str) -> bool:
    try:
        await ring.find_caller(token)
    except Unauthenticated:
        return False
    return True


def num_queries(ring: KeyRing) -> int:
    return ring._lookup.num_queries


async def test_token_has_its_shape_and_only_its_hash_is_kept(
    database: Database, registry: Registry
) -> None:
    key = await create(registry)
    prefix, symbols, secret = key.token.split("_")
    assert (prefix, f"key_{symbols}", len(secret)) == ("sk", key.row.id, 64)
    assert len({mint_key().token.split("_")[2] for _ in range(100)}) == 100
    async with database.reading() as session:
        row = await get_key(session, "acme", key.row.id)
    assert row.secret_sha256 == hash_token(key.token)
    assert secret not in repr(key)
    assert secret not in str(vars(row))


async def test_key_says_who_calls(ring: KeyRing, registry: Registry) -> None:
    key = await create(registry)
    caller = await ring.find_caller(key.token)
    assert (caller.tenant_id, caller.key_id, caller.scopes) == ("acme", key.row.id, {"tryon"})


async def test_revoked_key_is_refused_within_five_seconds_on_every_router(
    database: Database, clock: FakeClock, registry: Registry
) -> None:
    key = await create(registry)
    rings = [build_ring(database, clock) for _ in range(3)]
    for ring in rings:
        assert await works(ring, key.token)
    await registry.revoke_key("test", "acme", key.row.id)
    assert await works(rings[0], key.token)  # it is remembered, which is what the 5 s are for
    clock.advance(5)
    assert [await works(ring, key.token) for ring in rings] == [False] * 3
    for ring in rings:
        await ring.flush()


async def test_busy_key_is_refused_in_time_too(
    ring: KeyRing, clock: FakeClock, registry: Registry
) -> None:
    """Asked for again and again, an entry must not stay young by being used."""
    key = await create(registry)
    assert await works(ring, key.token)
    await registry.revoke_key("test", "acme", key.row.id)
    for _ in range(10):
        clock.advance(0.5)
        last = await works(ring, key.token)
        await ring.flush()
    assert not last


async def test_disabled_tenant_and_changed_policy_count_within_five_seconds(
    ring: KeyRing, clock: FakeClock, registry: Registry
) -> None:
    key = await create(registry)
    assert (await ring.find_caller(key.token)).policy.weight == 1
    await registry.change_tenant("test", "acme", policy=TenantPolicy(weight=3))
    clock.advance(5)
    assert (await ring.find_caller(key.token)).policy.weight == 3
    await registry.change_tenant("test", "acme", is_disabled=True)
    clock.advance(5)
    assert not await works(ring, key.token)
    await registry.change_tenant("test", "acme", is_disabled=False)
    clock.advance(5)
    assert await works(ring, key.token)


async def test_expiry_needs_no_reading(ring: KeyRing, clock: FakeClock, registry: Registry) -> None:
    key = await create(registry, lifetime_s=1.0)
    assert await works(ring, key.token)
    clock.advance(0.999)
    assert await works(ring, key.token)
    clock.advance(0.001)
    assert not await works(ring, key.token)
    assert num_queries(ring) == 1


async def test_rotation_overlaps(ring: KeyRing, clock: FakeClock, registry: Registry) -> None:
    old = await create(registry)
    new = await registry.rotate_key("test", "acme", old.row.id, overlap_s=60)
    assert (new.row.name, new.row.scopes, new.row.expires_at) == ("shop", ["tryon"], None)
    assert await works(ring, old.token)
    assert await works(ring, new.token)
    clock.advance(60)
    assert not await works(ring, old.token)
    assert await works(ring, new.token)
    with pytest.raises(Conflict):
        await registry.rotate_key("test", "acme", old.row.id, overlap_s=60)


async def test_rotation_prolongs_nothing(clock: FakeClock, registry: Registry) -> None:
    old = await create(registry, lifetime_s=100)
    clock.advance(90)
    new = await registry.rotate_key("test", "acme", old.row.id, overlap_s=1000)
    assert new.row.expires_at == clock.now + timedelta(seconds=100)
    clock.advance(10)
    with pytest.raises(Conflict):
        await registry.rotate_key("test", "acme", old.row.id, overlap_s=0)


async def test_same_words_whatever_is_wrong(
    ring: KeyRing, clock: FakeClock, registry: Registry
) -> None:
    revoked, expired, good = [await create(registry, age) for age in (None, 1.0, None)]
    await registry.revoke_key("test", "acme", revoked.row.id)
    clock.advance(2)
    wrong = good.token[:-1] + ("0" if good.token[-1] != "0" else "1")
    tokens = (revoked.token, expired.token, wrong, mint_key().token, "", "sk_", "x" * 10_000)
    assert len({await refusal(ring, token) for token in tokens}) == 1
    assert await works(ring, good.token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "sk_",
        f"sk_{'0' * 26}_{'0' * 63}",
        f"sk_{'0' * 26}_{'0' * 65}",
        f"sk_{'0' * 26}_{'A' * 64}",
        f"sk_{'i' * 26}_{'0' * 64}",
        f"SK_{'0' * 26}_{'0' * 64}",
        f"sk_{'0' * 26}_{'0' * 64}\n",
        f"sk_{'٠' * 26}_{'0' * 64}",
    ],
)
async def test_malformed_token_never_reaches_the_database(ring: KeyRing, token: str) -> None:
    await refusal(ring, token)
    assert num_queries(ring) == 0


async def test_unknown_key_is_asked_for_once_in_three_seconds(
    ring: KeyRing, clock: FakeClock, database: Database
) -> None:
    token = mint_key().token
    for _ in range(20):
        await refusal(ring, token)
    assert num_queries(ring) == 1
    await add_key(database, token=token)
    clock.advance(3)
    assert await works(ring, token)


async def test_flood_of_made_up_keys_is_few_queries_and_little_memory(
    ring: KeyRing, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "MAX_UNKNOWN", 100)
    good = await create(registry)
    assert await works(ring, good.token)
    answers = await asyncio.gather(*(works(ring, mint_key().token) for _ in range(1500)))
    assert not any(answers)
    assert num_queries(ring) <= 2 + 1500 / key_lookup.MAX_IDS
    assert len(ring._unknown) == 100
    before = num_queries(ring)
    assert await works(ring, good.token)  # it was not pushed out
    assert num_queries(ring) == before


async def test_more_than_anybody_would_send_is_refused_with_a_time(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_lookup, "MAX_WAITING", 10)
    calls = (ring.find_caller(mint_key().token) for _ in range(30))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(refused) == 20
    assert all(refusal.retry_after_s for refusal in refused)


async def test_many_requests_with_one_key_read_it_once(ring: KeyRing, registry: Registry) -> None:
    key = await create(registry)
    assert all(await asyncio.gather(*(works(ring, key.token) for _ in range(200))))
    assert num_queries(ring) == 1


async def test_caller_who_leaves_takes_nothing_from_the_others(
    ring: KeyRing, registry: Registry
) -> None:
    key = await create(registry)
    left = asyncio.ensure_future(works(ring, key.token))
    stays = asyncio.ensure_future(works(ring, key.token))
    await asyncio.sleep(0)
    left.cancel()
    assert await stays


async def test_use_is_noted_once_a_minute(
    ring: KeyRing, clock: FakeClock, database: Database, registry: Registry
) -> None:
    key = await create(registry)
    noted = []
    for _ in range(5):
        await ring.find_caller(key.token)
        await ring.flush()
        async with database.reading() as session:
            noted.append((await get_key(session, "acme", key.row.id)).last_used_at)
        clock.advance(20)
    start = noted[0]
    assert start is not None
    assert noted == [start, start, start, start + timedelta(minutes=1), noted[3]]


async def test_noting_use_holds_nobody_up(
    ring: KeyRing, database: Database, registry: Registry
) -> None:
    """The request is answered while somebody else holds the database's writing turn."""
    key = await create(registry)
    async with database.transaction():
        async with asyncio.timeout(2):
            assert await works(ring, key.token)
    await ring.flush()
    async with database.reading() as session:
        assert (await get_key(session, "acme", key.row.id)).last_used_at is not None


async def test_database_that_is_away_is_said_and_a_fresh_entry_still_counts(
    clock: FakeClock, database: Database, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    key = await create(registry)
    ring = build_ring(database, clock)
    assert await works(ring, key.token)
    await ring.flush()

    class Away(Database):
        def reading(self) -> object:  # type: ignore[override]
            raise StoreUnavailable("away", retry_after_s=2)

    ring._lookup._database = Away("sqlite:////nowhere/sm4ll.db")
    clock.advance(2)
    with caplog.at_level(logging.DEBUG):
        assert await works(ring, key.token)
        await ring.flush()
        clock.advance(1)
        with pytest.raises(StoreUnavailable):
            await ring.find_caller(key.token)
    assert "could not be read again" in caplog.text
    assert key.token not in caplog.text


async def test_secret_is_in_no_log(
    ring: KeyRing, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        key = await create(registry)
        await ring.find_caller(key.token)
        await refusal(ring, key.token[:-1] + "0" if key.token[-1] != "0" else mint_key().token)
        await ring.flush()
    assert key.token.split("_")[2] not in caplog.text
    assert parse_token(key.token) == key.row.id
