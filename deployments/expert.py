"""The deployment of one expert version, or of several on one base: owns one backend."""

import asyncio
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from deployments.backends.base import Backend, OnDevice, OnStep, Remembering
from deployments.backends.registry import create_backend
from deployments.batcher import Batcher, Member
from deployments.bundle import Bundle
from deployments.golden import check_golden
from deployments.guard import build_guards
from deployments.pulse import Look, Pulse, list_looks
from deployments.replica_meter import ReplicaMeter
from deployments.warmup import warm_up
from serve.config import ReplicaPlan
from serve.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    OutOfDeviceMemory,
    RequestError,
    Sm4llError,
)
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.logs import log_as, log_fields, write_json_logs
from serve.observing.meter import Meter, NoMeter
from serve.observing.tracing import follow_callers

# Failures in a row, with nothing working between them, after which the replica is replaced.
MAX_FAILURES_IN_A_ROW = 5
# How often a caller is told of steps: four times a second.
STEP_INTERVAL_S = 0.25
# A pass that nobody stops may take longer than a process should take to exit.
EXIT_WAIT_S = 10.0


class DeviceThread:
    """The one thread that touches the backend.

    A destructor may feed it, unlike an executor: it can interrupt the very code that holds the
    executor's lock, and wait for itself.
    """

    def __init__(self, name: str):
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        thread = threading.Thread(target=_work_off, args=(self._jobs,), name=name, daemon=True)
        thread.start()
        # The interpreter's end would tear a daemon out of whatever library it is in, and abort.
        atexit.register(_end, self._jobs, thread)

    def submit(self, job: Callable[[], None]) -> None:
        """Run it there, after everything before it."""
        self._jobs.put(job)

    def run(self, job: Callable[[], object]) -> None:
        """Run it there and wait; what it raises is raised here."""
        done: Future[None] = Future()

        def work() -> None:
            try:
                job()
            except BaseException as exc:
                done.set_exception(exc)
            else:
                done.set_result(None)

        self.submit(work)
        done.result()

    def close(self) -> None:
        """End the thread when everything before is done."""
        self._jobs.put(None)


def _work_off(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        try:
            job()
        except BaseException:
            logging.getLogger(__name__).exception("the device's thread goes on after this")
        del job  # it would keep its replica alive until the next one comes


def _end(jobs: SimpleQueue[Callable[[], None] | None], thread: threading.Thread) -> None:
    jobs.put(None)
    thread.join(EXIT_WAIT_S)


class Painter:
    """One backend; translates what it raises and keeps count of it."""

    def __init__(self, backend: Backend, name: str):
        self._backend = backend
        self._name = name
        self._largest_pass_px = 0
        self.num_failures_in_a_row = 0

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        """One pass.

        Raises:
            GenerationFailed: the backend raised something of its own.
        """
        try:
            with log_fields(request_id=",".join(request.request_id for request in batch)):
                replies = self._backend.generate(batch, on_step)
            if len(replies) != len(batch):
                raise GenerationFailed(f"{self._name} answered {len(replies)} of {len(batch)}")
        except (RequestError, Cancelled, DeadlineExceeded):
            raise
        except OutOfDeviceMemory:
            # What is larger than all before it is to blame itself; what fitted before is not.
            self._count_failure(batch, is_ours=_pass_px(batch) <= self._largest_pass_px)
            raise
        except Sm4llError:
            self._count_failure(batch)
            raise
        except Exception as exc:
            self._count_failure(batch)
            # The cause's own type may not unpickle at the caller: its words travel, not it.
            raise GenerationFailed(f"{self._name}: {type(exc).__name__}: {exc}") from exc
        self.num_failures_in_a_row = 0
        self._largest_pass_px = max(self._largest_pass_px, _pass_px(batch))
        return replies

    def _count_failure(self, batch: Sequence[ExpertRequest], is_ours: bool = True) -> None:
        # A batch of several is tried again in parts, and those count.
        if len(batch) == 1 and is_ours:
            self.num_failures_in_a_row += 1


def _pass_px(batch: Sequence[ExpertRequest]) -> int:
    return sum(request.num_images * request.region_hw.size for request in batch)


class ExpertReplica:
    """Runs one backend on one thread; a caller who leaves frees it within one step."""

    def __init__(
        self,
        bundles: tuple[Bundle, ...],
        plan: ReplicaPlan,
        create: Callable[[tuple[Bundle, ...], ReplicaPlan], Backend] = create_backend,
        open_meter: Callable[[], Meter] = NoMeter,
    ):
        write_json_logs()
        follow_callers()
        started_s = time.perf_counter()
        self._plan = plan
        meter = open_meter()
        self._meter = ReplicaMeter(meter, [bundle.version for bundle in bundles])
        self._backend = create(bundles, plan)
        if isinstance(self._backend, Remembering):
            self._backend.use_meter(meter)
        self._painter = Painter(self._backend, plan.name)
        # One thread: backends are not thread-safe, and the loop stays free for health checks.
        self._thread = DeviceThread(plan.name)
        self._batcher = Batcher(self._thread.submit, self._painter.generate, meter=self._meter)
        try:
            # On that thread too: what a compiler records belongs to the thread that recorded it.
            self._thread.run(lambda: self._start(bundles))
        except Sm4llError as exc:
            if exc.remedy:
                # Serve keeps the text of a failed start, and nothing else of it.
                exc.add_note(f"What helps: {exc.remedy}")
            raise
        self._meter.started(time.perf_counter() - started_s, plan.num_gpus)
        self._pulse = Pulse(_list_looks(meter, self._meter, self._backend))

    def _start(self, bundles: tuple[Bundle, ...]) -> None:
        """Raises whatever must keep Serve from calling this replica ready."""
        self._backend.load()
        warm_up(bundles, self._backend)
        self._guards = build_guards(bundles, self._backend.memory())
        for bundle in bundles:
            check_golden(bundle, self._backend)

    async def generate(self, request: ExpertRequest) -> ExpertReply:
        """Paint one request, together with whatever compatible waits when the device is free.

        Raises:
            Cancelled, DeadlineExceeded: stopped at a step.
            GenerationFailed: the backend raised something of its own.
            OutOfDeviceMemory: it cannot fit, or did not.
        """
        member = self._submit(request)
        with _expiring(member):
            try:
                return await asyncio.wrap_future(member.answer)
            except asyncio.CancelledError:
                member.leave()
                raise

    async def generate_steps(
        self, request: ExpertRequest
    ) -> AsyncIterator[tuple[int, int] | ExpertReply]:
        """As `generate`, for a caller who wants to see it happen.

        Yields:
            (step, num_steps), the last of them always and the others no faster than a person
            can watch; at the end the reply. Whoever stops listening stops it at its next step.
        """
        member = self._submit(request)
        told = (0, request.num_steps)
        try:
            with _expiring(member):
                answer = asyncio.wrap_future(member.answer)
                # Whoever stops listening does not ask for it.
                answer.add_done_callback(lambda done: done.cancelled() or done.exception())
                while not answer.done():
                    await asyncio.wait([answer], timeout=STEP_INTERVAL_S)
                    if member.progress != told:
                        told = member.progress
                        yield told
                yield await answer
        finally:
            member.leave()  # nothing, where it was answered

    def _submit(self, request: ExpertRequest) -> Member:
        log_as(request_id=request.request_id)
        max_rows = 1
        if guard := self._guards.get(request.version):
            guard.check(request)
            max_rows = guard.best_rows(request)
        return self._batcher.submit(request, max_rows)

    async def progress(self, request_id: str) -> tuple[int, int] | None:
        """Steps done and to do of a request that waits or runs here; None when it does not."""
        return self._batcher.progress(request_id)

    async def forget(self, content_hashes: frozenset[str]) -> None:
        """Drop what is remembered of these contents, after the pass that runs now."""
        backend = self._backend
        if isinstance(backend, Remembering):
            await asyncio.to_thread(self._thread.run, lambda: backend.forget(content_hashes))

    async def ping(self) -> str:
        """Answers once the backend is loaded."""
        return self._plan.name

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises three times."""
        if self._painter.num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._painter.num_failures_in_a_row} generations failed in a row")

    def __del__(self) -> None:
        # Serve calls this when the replica has drained; after a failed start there may be nothing.
        if hasattr(self, "_batcher"):
            self._batcher.close()
            self._thread.submit(self._backend.unload)
            self._thread.close()
        if hasattr(self, "_pulse"):
            self._pulse.close()


def _list_looks(meter: Meter, replica: ReplicaMeter, backend: Backend) -> list[Look]:
    def look_at_device() -> None:
        replica.holds(backend.held_bytes() if isinstance(backend, OnDevice) else 0)

    common = list_looks(meter)
    return [*common, replica.look, look_at_device] if common else []


@contextlib.contextmanager
def _expiring(member: Member) -> Iterator[None]:
    """Answer at the deadline itself, also between two steps and behind another pass."""
    deadline_unix_s = member.request.deadline_unix_s
    if deadline_unix_s is None:
        yield
        return
    left_s = max(0.0, deadline_unix_s - time.time())
    timer = asyncio.get_running_loop().call_later(left_s, member.expire)
    try:
        yield
    finally:
        timer.cancel()
