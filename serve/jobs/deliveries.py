"""Sends the outbox: each message until its receiver takes it, over hours, at least once.

At least once: when this process dies between a receiver's answer and the note about it, the
message is sent again, under the same `webhook-id`, by which a receiver knows it.
"""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from serve.errors import FetchRefused, Sm4llError, StoreUnavailable
from serve.fetching.post import Poster, Reply
from serve.jobs.webhook_signature import signed_headers
from serve.observing.meter import NO_METER, Meter
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.webhook_secrets import ensure_secret, list_secrets
from serve.store.webhooks import DueDelivery, Receiver, claim_due, mark_delivered, mark_failed

GONE = 410
BUSY = (429, 503)
OURS = "the message could not be sent: a failure on our side"


@dataclass(frozen=True, kw_only=True)
class DeliveryPolicy:
    """How many messages are on their way at once, and when one is tried again."""

    delays_s: tuple[float, ...] = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800)
    """After the first, second, ... failed attempt; after the last of them it is given up."""
    jitter: float = 0.2
    """A delay is longer or shorter by up to this fraction: receivers come back to no crowd."""
    max_retry_after_s: float = 28_800
    """A receiver may ask for a later attempt, and not for one later than this."""
    concurrency: int = 32
    per_tenant: int = 8
    per_receiver: int = 4
    """Of one tenant's messages to one host: a slow one holds up no other."""
    lease_s: float = 60.0
    """After which another process takes an attempt for lost; longer than any timeout."""

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_s)

    def retry_after(self, attempt: int, asked_s: float, spread: float) -> timedelta | None:
        """How long to wait after a failed attempt; none when there is no further one.

        Args:
            attempt: from 1.
            asked_s: what the receiver asked for, 0 where nothing.
            spread: from -1 to 1, where in the jitter.
        """
        if attempt > len(self.delays_s):
            return None
        delay_s = self.delays_s[attempt - 1] * (1 + self.jitter * spread)
        return timedelta(seconds=max(delay_s, min(asked_s, self.max_retry_after_s)))


class Deliverer:
    """One per process, beside any number in others: a lease decides who sends what.

    Args:
        spread: where in the jitter a delay lies, from -1 to 1.
    """

    def __init__(
        self,
        database: Database,
        post: Poster,
        policy: DeliveryPolicy | None = None,
        now: Callable[[], datetime] = utc_now,
        logger: logging.Logger | None = None,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),
        meter: Meter = NO_METER,
    ):
        self._database = database
        self._post = post
        self._policy = policy or DeliveryPolicy()
        self._now = now
        self._logger = logger or logging.getLogger(__name__)
        self._spread = spread
        self._meter = meter
        self._sending: dict[asyncio.Task[None], Receiver] = {}

    async def run_once(self) -> int:
        """Send what is due, until nothing is; says how many attempts were made.

        Raises:
            StoreUnavailable: the database does not answer; what is on its way is finished first.
        """
        num_attempts = 0
        try:
            while True:
                # Before the claims: whom they found busy may be free by their end.
                was_sending = bool(self._sending)
                num_started = await self._start_due()
                if not num_started and not was_sending:
                    return num_attempts
                num_attempts += num_started
                await self._wait(None)
        finally:
            await self._finish()

    async def run_forever(self, poll_s: float = 1.0) -> None:
        """As above, until it is cancelled; what is on its way then is finished."""
        try:
            while True:
                try:
                    await self._start_due()
                except StoreUnavailable as exc:
                    self._logger.warning("webhooks wait: %s", exc.detail)
                await self._wait(poll_s)
        finally:
            await self._finish()

    async def _start_due(self) -> int:
        """One at a time, so that each claim sees whom the one before has made busy."""
        num_started = 0
        while len(self._sending) < self._policy.concurrency:
            due = await self._claim()
            if due is None:
                break
            task = asyncio.create_task(self._attempt(due))
            self._sending[task] = due.receiver
            task.add_done_callback(self._sending.pop)
            num_started += 1
        return num_started

    async def _claim(self) -> DueDelivery | None:
        of_tenant = Counter(receiver.tenant_id for receiver in self._sending.values())
        of_receiver = Counter(self._sending.values())
        policy = self._policy
        async with self._database.transaction() as session:
            claimed = await claim_due(
                session,
                self._now(),
                policy.lease,
                busy_tenants=[name for name, num in of_tenant.items() if num >= policy.per_tenant],
                busy_receivers=[
                    to for to, num in of_receiver.items() if num >= policy.per_receiver
                ],
            )
        return claimed[0] if claimed else None

    async def _wait(self, timeout_s: float | None) -> None:
        """For room: until a message has arrived or not, or it is time to look for new ones."""
        if self._sending:
            await asyncio.wait(
                set(self._sending), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        elif timeout_s is not None:
            await asyncio.sleep(timeout_s)

    async def _finish(self) -> None:
        if self._sending:
            await asyncio.wait(set(self._sending))

    async def _attempt(self, due: DueDelivery) -> None:
        """Whatever happens here is one message's failure; without a note its lease runs out."""
        try:
            try:
                reply = await self._send(due)
            except Sm4llError:
                raise
            except Exception:
                # Counted as a failure like any other, or it would be tried for ever.
                self._logger.exception("webhook %s, attempt %d", due.id, due.attempt)
                reply = FetchRefused(OURS)
            await self._note(due, reply)
        except Sm4llError as exc:
            self._logger.warning("webhook %s, attempt %d: %s", due.id, due.attempt, exc.detail)
        except Exception:
            self._logger.exception("webhook %s, attempt %d", due.id, due.attempt)

    async def _send(self, due: DueDelivery) -> Reply | FetchRefused:
        body = json.dumps(due.payload, separators=(",", ":")).encode()
        secrets = await self._secrets(due.tenant_id)
        headers = signed_headers(secrets, due.id, self._now(), body)
        try:
            return await self._post(due.url, headers, body)
        except FetchRefused as exc:
            return exc

    async def _secrets(self, tenant_id: str) -> list[str]:
        async with self._database.reading() as session:
            active = await list_secrets(session, tenant_id, self._now())
        if not active:
            async with self._database.transaction() as session:
                active = await ensure_secret(session, tenant_id, self._now())
        return [secret.secret for secret in active]

    async def _note(self, due: DueDelivery, reply: Reply | FetchRefused) -> None:
        now, outcome, retry_at = self._now(), "put_off", None
        async with self._database.transaction() as session:
            if isinstance(reply, FetchRefused):
                retry_at = self._retry_at(due, 0.0, now)
                await mark_failed(session, due, status=None, error=reply.detail, retry_at=retry_at)
            elif 200 <= reply.status < 300:
                await mark_delivered(session, due, reply.status, now)
                outcome = "delivered"
            else:
                asked_s = reply.retry_after_s or 0.0 if reply.status in BUSY else 0.0
                is_gone = reply.status == GONE
                retry_at = None if is_gone else self._retry_at(due, asked_s, now)
                await mark_failed(
                    session,
                    due,
                    status=reply.status,
                    error=f"the server answers {reply.status}",
                    retry_at=retry_at,
                )
        if retry_at is None and outcome != "delivered":
            outcome = "given_up"
        self._meter.add("sm4ll_webhooks_total", outcome=outcome)

    def _retry_at(self, due: DueDelivery, asked_s: float, now: datetime) -> datetime | None:
        delay = self._policy.retry_after(due.attempt, asked_s, self._spread())
        return None if delay is None else now + delay
