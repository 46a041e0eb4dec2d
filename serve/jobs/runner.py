"""Claims jobs in fair order, has routers run them, and ends each of them once.

Holds nothing that must survive: whatever moment it dies in, its leases lapse and another runner
goes on. Knows neither Ray nor pictures.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from serve.config import JobsConfig
from serve.errors import Conflict, DeadlineExceeded, Sm4llError, StoreUnavailable
from serve.jobs.census import CLASSES
from serve.jobs.fate import Fate, Step, decide_fate
from serve.jobs.run import JobOutcome, JobRun
from serve.jobs.turns import Turn, Turns
from serve.jobs.windows import Windows
from serve.observing.logs import log_as
from serve.observing.meter import NO_METER, Meter
from serve.policy import TenantPolicy
from serve.store.claims import Claims
from serve.store.columns import utc_now
from serve.store.endings import Usage
from serve.store.engine import Database, Session
from serve.store.jobs import sum_runnable_ms
from serve.store.leases import Claim, LeasePolicy
from serve.store.picking import Waiting, count_running, find_waiting, lock_tenant
from serve.store.tables import JobClass

Dispatch = Callable[[JobRun], Awaitable[JobOutcome]]
"""Has one attempt made; when it is cancelled, so is what it started."""

Forget = Callable[[Claim], Awaitable[object]]
"""Drops the pictures of a job that nothing needs any more; those it still needs stay."""

Reason = Literal["cancelled", "lost", "stopping"]
Write = Callable[[Session], Awaitable[object]]

# The router stops at the job's deadline by itself; one that does not answer is not waited for.
GRACE_S = 5.0
RETRY_WRITE_S = 0.5
# So many times as long as counting took, nothing is counted again.
COUNTING_PAUSE = 20.0
TOLD: Mapping[Step, str] = {"fail": "failed", "postpone": "postponed", "retry": "retried"}


@dataclass(slots=True, eq=False)
class Held:
    """A job that is ours, and what runs it."""

    claim: Claim
    policy: TenantPolicy
    attempt: asyncio.Task[JobOutcome]
    reason: Reason | None = None
    """Why it was stopped; none while it runs, and none once it had an answer."""


def lease_policy(config: JobsConfig) -> LeasePolicy:
    return LeasePolicy(lease_s=config.lease_s, max_attempts=config.max_attempts)


class Runner:
    """Every job that it claims it ends, gives back, or loses together with its lease."""

    def __init__(
        self,
        *,
        database: Database,
        config: JobsConfig,
        windows: Windows,
        dispatch: Dispatch,
        owner: str,
        batch_floor: float = 0.1,
        lease: LeasePolicy | None = None,
        forget: Forget | None = None,
        now: Callable[[], datetime] = utc_now,
        logger: logging.Logger | None = None,
        meter: Meter = NO_METER,
    ):
        """
        Args:
            forget: told of jobs that ended whose tenant keeps no inputs.
        """
        self._database = database
        self._config = config
        self._windows = windows
        self._dispatch = dispatch
        self._forget = forget
        self._owner = owner
        self._meter = meter
        self._now = now
        self._claims = Claims(lease or lease_policy(config), now)
        self._turns = Turns(batch_floor)
        self._logger = logger or logging.getLogger(__name__)
        self._held: dict[tuple[str, str], Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._queued_s: Mapping[str, float] = {}
        self._count_again_s = 0.0
        self._is_stopping = False

    @property
    def num_held(self) -> int:
        return len(self._held)

    async def fill(self) -> int:
        """Claim and start what may start now; says how many."""
        self._freed.clear()
        if self._is_stopping or self._windows.num_free <= 0:
            return 0
        async with self._database.reading() as session:
            waiting = await find_waiting(session, self._now())
            running = await count_running(session) if waiting else {}
        policies = self._read_policies(waiting)
        turns = {
            _turn(each, policies[each.tenant_id]) for each in waiting if each.tenant_id in policies
        }
        num_started = 0
        while turns and self._windows.num_free > 0 and not self._is_stopping:
            turn = self._turns.choose(turns)
            assert turn is not None, "there is one to choose"
            policy = policies[turn.tenant_id]
            limit = policy.concurrency
            if limit is not None and running.get(turn.tenant_id, 0) >= limit:
                turns.discard(turn)
                continue
            claim = await self._claim(turn, limit)
            if claim is None:
                turns.discard(turn)
                continue
            running[turn.tenant_id] = running.get(turn.tenant_id, 0) + 1
            self._turns.charge(turn, max(claim.predicted_gpu_ms, 1) / 1e3)
            self._start(claim, policy)
            num_started += 1
        return num_started

    async def watch(self) -> None:
        """Stop what its caller wants cancelled, and what is no longer ours."""
        held = self._running()
        if not held:
            return
        async with self._database.reading() as session:
            seen = await self._claims.look(session, [each.claim for each in held])
        self._stop_unwanted(held, seen)

    async def beat(self) -> None:
        """Keep every lease."""
        held = self._running()
        if not held:
            return
        async with self._database.transaction() as session:
            beats = await self._claims.keep(session, [each.claim for each in held])
        seen = {job_id: beat.is_cancel_requested for job_id, beat in beats.items()}
        self._stop_unwanted(held, seen)

    async def tidy(self) -> int:
        """Take back what silent runners held, end what came too late; says how many."""
        # First what is ours: a database that was away for longer than a lease made us silent too.
        await self.beat()
        async with self._database.transaction() as session:
            num_reaped = await self._claims.reap(session)
        async with self._database.transaction() as session:
            return num_reaped + await self._claims.expire(session)

    async def queued_s(self) -> Mapping[str, float]:
        """Predicted GPU-seconds of jobs that could run and wait here, per version."""
        started_s = time.monotonic()
        if started_s >= self._count_again_s:
            async with self._database.reading() as session:
                sums = await sum_runnable_ms(session, self._now())
            self._queued_s = {version: gpu_ms / 1e3 for version, gpu_ms in sums.items()}
            # Among 100,000 jobs it takes 0.1 s, and is asked for twice a second.
            ended_s = time.monotonic()
            self._count_again_s = ended_s + COUNTING_PAUSE * (ended_s - started_s)
        return self._queued_s

    async def wait(self, timeout_s: float) -> None:
        """Until a job has ended since the last `fill` began, or so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._freed.wait()
        except TimeoutError:
            return

    async def settled(self) -> None:
        """Until nothing is held any more."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def stop(self) -> None:
        """Give everything back at once, and claim nothing more."""
        self._is_stopping = True
        for held in self._running():
            self._interrupt(held, "stopping")
        await self.settled()

    def _read_policies(self, waiting: Sequence[Waiting]) -> dict[str, TenantPolicy]:
        """One tenant's that cannot be read holds up nobody else."""
        policies = {}
        for each in waiting:
            try:
                policies[each.tenant_id] = TenantPolicy.model_validate(each.policy)
            except ValueError:
                self._logger.exception("jobs of %s wait: its policy is unreadable", each.tenant_id)
        return policies

    async def _claim(self, turn: Turn, limit: int | None) -> Claim | None:
        priority = JobClass.BATCH if turn.priority == "batch" else JobClass.INTERACTIVE
        async with self._database.transaction() as session:
            if limit is not None:
                # Two runners that counted the same would both start the last one.
                if await lock_tenant(session, turn.tenant_id) >= limit:
                    return None
            claims = await self._claims.claim(
                session,
                self._owner,
                tenant_id=turn.tenant_id,
                priority=priority,
                full_versions=self._windows.list_full(),
            )
        return claims[0] if claims else None

    def _start(self, claim: Claim, policy: TenantPolicy) -> None:
        attempt = asyncio.create_task(self._dispatch_in_time(claim, policy), name=claim.job_id)
        held = Held(claim, policy, attempt)
        self._windows.enter(claim.version)
        self._held[claim.tenant_id, claim.job_id] = held
        task = asyncio.create_task(self._follow(held), name=f"{claim.job_id} end")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._is_stopping:
            self._interrupt(held, "stopping")

    def _running(self) -> list[Held]:
        return [held for held in self._held.values() if not held.attempt.done()]

    def _stop_unwanted(self, held: list[Held], seen: Mapping[str, bool]) -> None:
        for each in held:
            is_cancelled = seen.get(each.claim.job_id)
            if is_cancelled is None:
                self._interrupt(each, "lost")
            elif is_cancelled:
                self._interrupt(each, "cancelled")

    def _interrupt(self, held: Held, reason: Reason) -> None:
        """Nothing where the answer is there already: that is what will be written."""
        if held.reason is None and held.attempt.cancel():
            held.reason = reason

    async def _follow(self, held: Held) -> None:
        """Write down how an attempt ended, whatever way it did."""
        claim = held.claim
        log_as(job=claim.job_id, tenant=claim.tenant_id)
        try:
            await asyncio.wait([held.attempt])
            write = self._judge(held)
            if write is not None:
                await self._write(claim, write)
                if self._forget is not None and held.policy.input_retention_s == 0:
                    await self._forget(claim)
        except Exception:
            self._logger.exception("%s: its end could not be written", claim.job_id)
        finally:
            held.attempt.cancel()
            self._windows.leave(claim.version)
            del self._held[claim.tenant_id, claim.job_id]
            self._freed.set()

    def _judge(self, held: Held) -> Write | None:
        """What is to be written about an attempt that is over."""
        claim, claims = held.claim, self._claims
        if held.attempt.cancelled():
            return self._stopped(held)
        exc = held.attempt.exception()
        if isinstance(exc, Exception):
            if not isinstance(exc, Sm4llError):
                self._logger.error("%s failed unexpectedly", claim.job_id, exc_info=exc)
            return self._failed(claim, decide_fate(exc, self._is_late(claim)))
        self._count("succeeded")
        outcome = held.attempt.result()
        usage = Usage(
            gpu_ms=outcome.gpu_ms,
            images=outcome.images,
            upstream_microusd=outcome.upstream_microusd,
        )
        return lambda session: claims.succeed(session, claim, outcome.result, usage)

    async def _dispatch_in_time(self, claim: Claim, policy: TenantPolicy) -> JobOutcome:
        timeout_s = self._config.run_timeout_s
        if claim.deadline_at is not None:
            timeout_s = min(timeout_s, (claim.deadline_at - self._now()).total_seconds())
        if timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed while the job waited")
        run = JobRun(
            tenant_id=claim.tenant_id,
            job_id=claim.job_id,
            lease_token=claim.token,
            version=claim.version,
            priority=CLASSES[claim.priority],
            request=claim.request,
            subject=claim.subject,
            policy=policy,
            timeout_s=timeout_s,
        )
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await self._dispatch(run)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no answer within {timeout_s:.0f} s") from exc

    def _is_late(self, claim: Claim) -> bool:
        return claim.deadline_at is not None and self._now() >= claim.deadline_at

    def _stopped(self, held: Held) -> Write | None:
        claim = held.claim
        self._count(held.reason or "stopping")
        if held.reason == "cancelled":
            return lambda session: self._claims.confirm_cancelled(session, claim)
        if held.reason == "lost":
            return None
        # Stopping, or somebody below us was cancelled and we were not: nobody's fault.
        return lambda session: self._claims.release(session, claim)

    def _failed(self, claim: Claim, fate: Fate) -> Write:
        claims = self._claims
        self._count(TOLD[fate.step])
        if fate.step == "postpone":
            return lambda session: claims.postpone(session, claim, fate.problem, fate.delay_s)
        is_final = fate.step == "fail"
        return lambda session: claims.fail(session, claim, fate.problem, is_final=is_final)

    def _count(self, outcome: str) -> None:
        self._meter.add("sm4ll_job_attempts_total", outcome=outcome)

    async def _write(self, claim: Claim, write: Write) -> None:
        """Once, however often it takes: what was written unseen is refused as no longer ours."""
        while True:
            try:
                async with self._database.transaction() as session:
                    await write(session)
                return
            except Conflict:
                self._logger.warning("%s is no longer ours: nothing written", claim.job_id)
                return
            except StoreUnavailable:
                # When the database is back after the lease, it may be somebody else's to end.
                await asyncio.sleep(RETRY_WRITE_S)


def _turn(waiting: Waiting, policy: TenantPolicy) -> Turn:
    return Turn(waiting.tenant_id, CLASSES[waiting.priority], policy.weight)
