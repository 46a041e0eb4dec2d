"""Limits hold over all routers while Redis lives, and the service lives without it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from serve.errors import RateLimited
from serve.tenancy.limits import RETRY_SHARED_S, TenantLimits, open_limits
from serve.tenancy.redis_counts import RedisCounts
from tests.redis_server import RedisServer, redis_server  # noqa: F401

pytestmark = pytest.mark.anyio


class Seconds:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def limits(clock: Seconds) -> TenantLimits:
    return TenantLimits(clock_s=clock)


@pytest.fixture
async def pair(
    redis_server: RedisServer,  # noqa: F811
    clock: Seconds,
    anyio_backend: str,
) -> AsyncIterator[tuple[TenantLimits, TenantLimits]]:
    """Two routers at one Redis."""
    routers = tuple(TenantLimits(RedisCounts(redis_server.url), clock) for _ in range(2))
    yield routers[0], routers[1]
    for router in routers:
        await router.close()


async def count_hits(limits: TenantLimits, per_minute: int, tries: int, tenant: str = "a") -> int:
    passed = 0
    for _ in range(tries):
        try:
            await limits.hit(tenant, per_minute)
            passed += 1
        except RateLimited:
            pass
    return passed


async def test_more_than_the_limit_in_any_minute_is_refused(
    limits: TenantLimits, clock: Seconds
) -> None:
    await limits.hit("a", 2)
    clock.now_s += 40
    await limits.hit("a", 2)
    with pytest.raises(RateLimited) as refused:
        await limits.hit("a", 2)
    assert refused.value.retry_after_s == 20
    await limits.hit("other", 2)
    clock.now_s += 19.9
    with pytest.raises(RateLimited):
        await limits.hit("a", 2)
    clock.now_s += 0.1
    await limits.hit("a", 2)
    with pytest.raises(RateLimited) as refused:
        await limits.hit("a", 2)
    assert refused.value.retry_after_s == pytest.approx(40)


async def test_retry_after_is_true_when_the_limit_was_lowered(
    limits: TenantLimits, clock: Seconds
) -> None:
    for _ in range(5):
        await limits.hit("a", 10)
        clock.now_s += 10
    with pytest.raises(RateLimited) as refused:
        await limits.hit("a", 2)
    clock.now_s += refused.value.retry_after_s or 0
    await limits.hit("a", 2)


async def test_without_a_limit_nothing_is_counted(limits: TenantLimits) -> None:
    for _ in range(1000):
        await limits.hit("a", None)
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(limits.hold("a", None, 60))


async def test_one_more_at_once_is_refused_until_one_ends(
    limits: TenantLimits, clock: Seconds
) -> None:
    async with limits.hold("a", 2, 60):
        async with limits.hold("a", 2, 60):
            with pytest.raises(RateLimited):
                async with limits.hold("a", 2, 60):
                    pass
            async with limits.hold("other", 2, 60):
                pass
        async with limits.hold("a", 2, 60):
            pass


async def test_busy_says_when_the_oldest_should_be_done(
    limits: TenantLimits, clock: Seconds
) -> None:
    async with limits.hold("a", 1, 60):
        clock.now_s += 8
    async with limits.hold("a", 1, 60):
        clock.now_s += 3
        with pytest.raises(RateLimited) as refused:
            async with limits.hold("a", 1, 60):
                pass
    assert refused.value.retry_after_s == pytest.approx(5)


async def test_place_comes_back_however_the_work_ends(limits: TenantLimits) -> None:
    for error in (ValueError(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            async with limits.hold("a", 1, 60):
                raise error
    async with limits.hold("a", 1, 60):
        pass


async def test_two_routers_count_together(pair: tuple[TenantLimits, TenantLimits]) -> None:
    one, two = pair
    assert await count_hits(one, 5, 3) == 3
    assert await count_hits(two, 5, 4) == 2
    with pytest.raises(RateLimited) as refused:
        await one.hit("a", 5)
    assert 50 < (refused.value.retry_after_s or 0) <= 60
    assert await count_hits(two, 5, 1, tenant="other") == 1


async def test_two_routers_share_the_places(pair: tuple[TenantLimits, TenantLimits]) -> None:
    one, two = pair
    async with one.hold("a", 2, 60), two.hold("a", 2, 60):
        for router in pair:
            with pytest.raises(RateLimited):
                async with router.hold("a", 2, 60):
                    pass
    await one.close()  # waits for what is told to Redis in the background
    await two.close()
    async with one.hold("a", 2, 60), one.hold("a", 2, 60):
        pass


async def test_places_of_a_router_that_died_come_back(
    redis_server: RedisServer,  # noqa: F811
) -> None:
    counts = RedisCounts(redis_server.url)
    assert await counts.enter("a", "dead", 1, 0.001)
    await asyncio.to_thread(redis_server.wait_ms, 2)
    assert await counts.enter("a", "alive", 1, 60)
    assert not await counts.enter("a", "third", 1, 60)
    await counts.close()


async def test_crowd_gets_exactly_the_limit(pair: tuple[TenantLimits, TenantLimits]) -> None:
    passed = await asyncio.gather(*(count_hits(pair[i % 2], 10, 4) for i in range(8)))
    assert sum(passed) == 10


async def test_redis_dying_in_the_middle_takes_nothing_down(
    pair: tuple[TenantLimits, TenantLimits],
    redis_server: RedisServer,  # noqa: F811
    clock: Seconds,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = pair
    assert await count_hits(one, 3, 2) == 2
    async with one.hold("a", 2, 60):
        redis_server.kill()
        with caplog.at_level(logging.ERROR, "ray.serve"):
            # Each counts for itself now, and remembers what it let through itself.
            assert await count_hits(one, 3, 5) == 1
            assert await count_hits(two, 3, 5) == 3
            for _ in range(3):
                clock.now_s += RETRY_SHARED_S
                with pytest.raises(RateLimited):
                    await one.hit("a", 3)
            async with one.hold("a", 2, 60):
                with pytest.raises(RateLimited):
                    async with one.hold("a", 2, 60):
                        pass
        assert len(caplog.records) == 2  # one a router and minute
    redis_server.start()
    clock.now_s += 60
    assert await count_hits(one, 3, 2) == 2
    assert await count_hits(two, 3, 2) == 1  # together again


async def test_limits_without_a_url_need_no_redis() -> None:
    limits = open_limits(None)
    await limits.hit("a", 1)
    await limits.close()
