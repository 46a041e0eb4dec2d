"""Counts that all routers share: requests in the last minute, try-ons under way. Kept in Redis."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serve.errors import StoreUnavailable

TIMEOUT_S = 0.25
"""Every request waits for it; without an answer each router counts for itself."""
PREFIX = "sm4ll"
# What a router that died has left behind goes when its request would have ended. By the clock of
# Redis: that of the routers may differ.
ENTER = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now_ms + ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2], redis.call('PTTL', KEYS[1])))
return 1
"""


class RedisCounts:
    """One router's connection to the counts; answers within a fraction of a second or not at all.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, url: str):
        # One more attempt at once, for a connection that a restart of Redis has closed.
        self._connections = ConnectionPool.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )
        options: dict[str, Any] = {"connection_pool": self._connections}
        storage = RedisStorage(
            url, wrap_exceptions=True, implementation="redispy", key_prefix=PREFIX, **options
        )
        self._rates = MovingWindowRateLimiter(storage)
        self._redis = Redis(connection_pool=self._connections)
        self._enter = self._redis.register_script(ENTER)

    async def hit(self, tenant_id: str, per_minute: int) -> float | None:
        """Count one request; the seconds until there is room for it, where there is none now."""
        limit = RateLimitItemPerMinute(per_minute)
        with map_redis_errors():
            if await self._rates.hit(limit, tenant_id):
                return None
            stats = await self._rates.get_window_stats(limit, tenant_id)
        return max(0.0, stats.reset_time - time.time())

    async def enter(self, tenant_id: str, work_item: str, limit: int, expires_s: float) -> bool:
        """Count one try-on under way; False when there are `limit` of them already."""
        arguments: list[int | str] = [limit, math.ceil(expires_s * 1e3), work_item]
        with map_redis_errors():
            return bool(await self._enter(keys=[_running_key(tenant_id)], args=arguments))

    async def leave(self, tenant_id: str, work_item: str) -> None:
        with map_redis_errors():
            await self._redis.zrem(_running_key(tenant_id), work_item)

    async def close(self) -> None:
        await self._connections.disconnect()


def _running_key(tenant_id: str) -> str:
    return f"{PREFIX}:running:{tenant_id}"


@contextmanager
def map_redis_errors() -> Iterator[None]:
    """
    Raises:
        StoreUnavailable: Redis is down, slow, full or refuses us.
    """
    try:
        yield
    except (StorageError, RedisError, OSError, TimeoutError) as exc:
        raise StoreUnavailable(f"Redis does not answer: {exc}") from exc
