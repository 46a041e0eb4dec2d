"""First answers to requests with a key: run once, kept for a day, given again.

Bodies are kept as blobs, encrypted by nothing and shared with nobody: each begins with the
identity of its row, so that no two rows have the same blob and one goes with the other.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from serve.errors import Conflict, DeadlineExceeded, Forbidden, NotFound, Sm4llError
from serve.policy import DAY_S, SCOPES, Scope, TenantPolicy
from serve.store.blobs import BlobKey, Blobs
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.idempotency import (
    Row,
    Standing,
    answer_key,
    forget_answers,
    free_key,
    is_running,
    keep_lock,
    remove_expired_keys,
    take_key,
)

KEPT_S = DAY_S
ANSWER_KIND = "answer"
MAX_INLINE_BYTES = 16 * 1024
OBJECT_ID = re.compile(r"\b(?:ast|job|bat|whs|whd|key)_[0-9a-z]{26}\b")
JSON_TYPES = ("application/json", "application/problem+json")
GONE: dict[str, Any] = {"gone": "erased"}
PAGE = 200


@dataclass(frozen=True, kw_only=True)
class IdempotencyTimes:
    """How long a router is trusted that is silent, and how patient the others are."""

    lock_s: float = 30.0
    renew_s: float = 10.0
    poll_s: float = 0.1
    max_wait_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer, as it is sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    media_type: str
    body: bytes


class FirstAnswers:
    """Gives every key one run, whichever routers its requests reach."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        now: Callable[[], datetime] = utc_now,
        times: IdempotencyTimes | None = None,
    ):
        self._database = database
        self._blobs = blobs
        self._now = now
        self._times = times or IdempotencyTimes()

    async def take(self, tenant_id: str, key: str, request_sha256: str) -> Row:
        """Ours to run, or answered already; waits while another runs it.

        Raises:
            Conflict: the key belongs to another request.
            DeadlineExceeded: the other one takes longer than anybody waits.
        """
        started_at = self._now()
        while True:
            now = self._now()
            async with self._database.transaction() as session:
                row = await take_key(
                    session,
                    tenant_id,
                    key,
                    request_sha256,
                    now=now,
                    locked_until=self._lock_end(now),
                    kept_s=KEPT_S,
                )
            if row.standing is Standing.CONFLICT:
                raise Conflict(
                    "this Idempotency-Key was used for another request",
                    remedy="a new key for every new request; the same key only to repeat one",
                )
            if row.standing is not Standing.RUNNING:
                return row
            await self._wait_while_running(row, started_at)

    async def _wait_while_running(self, row: Row, started_at: datetime) -> None:
        """By looking, because the other one may run on another router, or die there."""
        is_waiting = True
        while is_waiting:
            await asyncio.sleep(self._times.poll_s)
            now = self._now()
            if (now - started_at).total_seconds() >= self._times.max_wait_s:
                raise DeadlineExceeded(
                    "the first request with this Idempotency-Key still runs",
                    retry_after_s=self._times.lock_s,
                )
            async with self._database.reading() as session:
                is_waiting = await is_running(session, row.tenant_id, row.key, now)

    @asynccontextmanager
    async def holding(self, row: Row) -> AsyncIterator["Held"]:
        """Keeps the row ours while the block runs; frees it when no answer was kept."""
        held = Held(row)
        renewing = asyncio.get_running_loop().create_task(self._renew(held))
        try:
            yield held
        finally:
            # Also when the client leaves in this moment: a lock that is renewed for ever would
            # keep the key from everybody. What ran is charged to the same row next time.
            await asyncio.shield(self._let_go(held, renewing))

    async def keep(
        self,
        held: "Held",
        answer: Answer | None,
        policy: TenantPolicy,
        refers: Collection[str],
        scopes: Collection[Scope] = (),
    ) -> None:
        """Before its last byte is sent: who repeats the request from now on finds this.

        Args:
            answer: None when it is too large to be kept.
            scopes: of the key that asked; no lesser key is given the answer again.
        """
        response: dict[str, Any] = {"gone": "too large"}
        if answer is not None:
            response = await self._describe(held.row, answer, policy, refers)
            response["scopes"] = sorted(scopes)
        async with held.lock, self._database.transaction() as session:
            await answer_key(session, held.row, response)
        held.is_closed = True

    async def recall(self, row: Row, scopes: Collection[Scope] = SCOPES) -> Answer:
        """The first answer.

        Args:
            scopes: of the key that asks now.

        Raises:
            Conflict: it was given, and is not kept.
            Forbidden: it was given to a key that may more.
        """
        response: dict[str, Any] = row.response or GONE
        if not set(response.get("scopes", ())) <= set(scopes):
            # Which of them the route needs is known to the route alone, and that is not asked.
            raise Forbidden(
                "the first request with this Idempotency-Key was sent with a key that may more",
                remedy="repeat it with that key, or use a new Idempotency-Key",
            )
        if "gone" in response:
            raise Conflict(_WHY_GONE[response["gone"]], remedy="use a new Idempotency-Key")
        body = response.get("text", "").encode()
        if "body" in response:
            try:
                data = await self._blobs.get(_blob(row.tenant_id, response["body"]))
            except NotFound:
                raise Conflict(_WHY_GONE["erased"], remedy="use a new Idempotency-Key") from None
            body = data[len(identity_of(row)) :]
        return Answer(
            status=response["status"],
            headers=tuple((name, value) for name, value in response["headers"]),
            media_type=response["media_type"],
            body=body,
        )

    async def forget(self, tenant_id: str, references: Collection[str]) -> int:
        """Erase the answers that were about any of these ids or content hashes; says how many."""
        num_forgotten, after = 0, ""
        while after is not None:
            async with self._database.transaction() as session:
                last, gone = await forget_answers(session, tenant_id, after, references, GONE, PAGE)
            await self._drop_bodies(tenant_id, gone)
            num_forgotten += len(gone)
            if last is None:
                break
            after = last
        return num_forgotten

    async def drop_expired(self, tenant_id: str, limit: int = PAGE) -> int:
        """Up to `limit` keys whose day is over, with what was kept for them."""
        async with self._database.transaction() as session:
            gone = await remove_expired_keys(session, tenant_id, self._now(), limit)
        await self._drop_bodies(tenant_id, gone)
        return len(gone)

    async def _describe(
        self, row: Row, answer: Answer, policy: TenantPolicy, refers: Collection[str]
    ) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "status": answer.status,
            "headers": [list(header) for header in answer.headers],
            "media_type": answer.media_type,
            "refers": sorted(refers),
        }
        text = _as_text(answer)
        if text is not None:
            named = OBJECT_ID.findall(f"{text} {json.dumps(kept['headers'])}")
            return {**kept, "text": text, "refers": sorted({*refers, *named})}
        if policy.result_retention_s < KEPT_S:
            return {"gone": "retention", "refers": kept["refers"]}
        data = identity_of(row).encode() + answer.body
        key = await self._blobs.put(row.tenant_id, ANSWER_KIND, data)
        return {**kept, "body": key.sha256}

    async def _renew(self, held: "Held") -> None:
        while True:
            await asyncio.sleep(self._times.renew_s)
            async with held.lock:
                if held.is_closed:
                    return
                with suppress(Sm4llError):  # the next one may reach the database
                    async with self._database.transaction() as session:
                        row = await keep_lock(session, held.row, self._lock_end(self._now()))
                    held.row = row or held.row

    async def _let_go(self, held: "Held", renewing: "asyncio.Task[None]") -> None:
        async with held.lock:
            renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        if not held.is_closed:
            await self._free(held)

    async def _free(self, held: "Held") -> None:
        with suppress(Sm4llError):  # then the lock runs out by itself
            async with self._database.transaction() as session:
                await free_key(session, held.row)
        held.is_closed = True

    async def _drop_bodies(self, tenant_id: str, responses: Sequence[dict[str, Any]]) -> None:
        for response in responses:
            if "body" in response:
                await self._blobs.delete(_blob(tenant_id, response["body"]))

    def _lock_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._times.lock_s)


@dataclass(slots=True)
class Held:
    """A row that is ours until it is answered or freed."""

    row: Row
    is_closed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Renewing and answering change the same row, one after the other."""


def identity_of(row: Row) -> str:
    """The same for every router that takes the row over, and never again for another."""
    made = f"{row.tenant_id}\n{row.key}\n{row.created_at.isoformat(timespec='microseconds')}"
    return hashlib.sha256(made.encode()).hexdigest()


def work_item_of(row: Row) -> str:
    """What a run of this row is charged as."""
    return f"idm_{identity_of(row)}"


_WHY_GONE = {
    "retention": "this request was answered; pictures of this tenant are kept too briefly to "
    "give the answer again",
    "erased": "this request was answered; what it was about has been erased",
    "too large": "this request was answered; the answer was too large to be kept",
}


def _as_text(answer: Answer) -> str | None:
    """JSON that is small and holds no picture lies in the row itself."""
    media_type = answer.media_type.partition(";")[0].strip()
    is_small = len(answer.body) <= MAX_INLINE_BYTES and b"data:" not in answer.body
    if not answer.body:
        return ""
    if media_type not in JSON_TYPES or not is_small:
        return None
    return answer.body.decode()


def _blob(tenant_id: str, sha256: str) -> BlobKey:
    return BlobKey(tenant_id, ANSWER_KIND, sha256)
