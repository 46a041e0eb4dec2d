"""Who calls: tokens looked up in the database, remembered for at most three seconds.

A key that is revoked, expires or gets another policy is what it is on every router within that
time and the one read that follows it; nothing has to be told to anybody.
"""

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from serve.errors import Sm4llError
from serve.policy import TenantPolicy
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.keys import touch_keys
from serve.store.tables import ApiKey, Tenant
from serve.tenancy.caller import Caller
from serve.tenancy.key_lookup import KeyLookup
from serve.tenancy.keys import is_token_of, parse_token, unauthenticated

MAX_AGE_S = 3.0
# From here on the next request asks for a fresh copy without waiting for it.
REFRESH_AGE_S = 1.5
MAX_KNOWN = 10_000
MAX_UNKNOWN = 10_000
TOUCH_EVERY = timedelta(minutes=1)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """One key as it was read; what it may do now is asked of it at every request."""

    caller: Caller
    secret_sha256: str
    expires_at: datetime | None
    is_usable: bool
    read_at_s: float
    last_used_at: datetime | None
    is_refreshing: bool = False


class KeyRing:
    """Turns tokens into callers. Used from one event loop."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = utc_now,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._database = database
        self._lookup = KeyLookup(database)
        self._now = now
        self._now_s = now_s
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        """Apart from the known, so that made-up ids push out no key."""
        self._used: dict[str, datetime] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def find_caller(self, token: str) -> Caller:
        """
        Raises:
            Unauthenticated: malformed, unknown, wrong, revoked, expired, or of a disabled tenant;
                in the same words.
            StoreUnavailable: it would have to be looked up and the database does not answer.
            Overloaded: more unknown keys are being looked up than anybody would send.
        """
        key_id = parse_token(token)
        known = await self._recall(key_id)
        now = self._now()
        if known is None or not is_token_of(token, known.secret_sha256):
            raise unauthenticated()
        if not known.is_usable or (known.expires_at is not None and known.expires_at <= now):
            raise unauthenticated()
        self._note_use(known, now)
        return known.caller

    async def flush(self) -> None:
        """Wait for what runs beside the requests."""
        while self._background:
            await asyncio.wait(set(self._background))

    async def _recall(self, key_id: str) -> _Known | None:
        now_s = self._now_s()
        known = self._known.get(key_id)
        if known is not None and now_s - known.read_at_s < MAX_AGE_S:
            self._known.move_to_end(key_id)
            if now_s - known.read_at_s >= REFRESH_AGE_S and not known.is_refreshing:
                known.is_refreshing = True
                self._start(self._refresh(key_id))
            return known
        missed_at_s = self._unknown.get(key_id)
        if missed_at_s is not None and now_s - missed_at_s < MAX_AGE_S:
            return None
        return await self._read(key_id)

    async def _read(self, key_id: str) -> _Known | None:
        asked_at_s = self._now_s()  # before the read: what changes meanwhile counts as not seen
        found = await self._lookup.find(key_id)
        if found is None:
            self._known.pop(key_id, None)
            _remember(self._unknown, key_id, asked_at_s, MAX_UNKNOWN)
            return None
        self._unknown.pop(key_id, None)
        known = _known(*found, asked_at_s)
        _remember(self._known, key_id, known, MAX_KNOWN)
        return known

    async def _refresh(self, key_id: str) -> None:
        try:
            await self._read(key_id)
        except Sm4llError as exc:
            # The copy still counts until it is too old; then a request waits and is told.
            logger.warning("a key could not be read again: %s", exc.detail)

    def _note_use(self, known: _Known, now: datetime) -> None:
        if known.last_used_at is not None and now - known.last_used_at < TOUCH_EVERY:
            return
        known.last_used_at = now
        is_writing = bool(self._used)
        self._used[known.caller.key_id] = now
        if not is_writing:
            self._start(self._write_uses())

    async def _write_uses(self) -> None:
        try:
            async with self._database.transaction() as session:
                used, self._used = self._used, {}
                await touch_keys(session, used, TOUCH_EVERY)
        except Sm4llError as exc:
            self._used = {}  # an hour of use shows again at the next one
            logger.warning("when keys were used could not be noted: %s", exc.detail)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # A context of its own: nothing of the request that happened to come first belongs here.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _known(key: ApiKey, tenant: Tenant, read_at_s: float) -> _Known:
    return _Known(
        caller=Caller(
            tenant_id=tenant.id,
            key_id=key.id,
            scopes=frozenset(key.scopes),  # type: ignore[arg-type]
            policy=TenantPolicy.model_validate(tenant.policy),
        ),
        secret_sha256=key.secret_sha256,
        expires_at=key.expires_at,
        is_usable=key.revoked_at is None and tenant.disabled_at is None,
        read_at_s=read_at_s,
        last_used_at=key.last_used_at,
    )


V = TypeVar("V")


def _remember(cache: OrderedDict[str, V], key_id: str, value: V, most: int) -> None:
    cache[key_id] = value
    cache.move_to_end(key_id)
    while len(cache) > most:
        cache.popitem(last=False)
