"""Which waiting requests share the next pass, and who of them is still waiting for it.

Nobody waits for company: what is compatible when the device comes free runs together, oldest first.
Spare requests, for which nobody waits, run while there is nothing else: what comes meanwhile stops
them at their next step.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from functools import partial

from deployments.backends.base import OnStep
from deployments.replica_meter import ReplicaMeter
from serve.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    OutOfDeviceMemory,
    Overloaded,
    Sm4llError,
)
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.tracing import open_span

Generate = Callable[[Sequence[ExpertRequest], OnStep], list[ExpertReply]]
"""`Backend.generate`, or what wraps it. Only ever called on the batcher's thread."""

RunLater = Callable[[Callable[[], None]], object]
"""Hands work to the one thread; takes no lock, so that a destructor may do it."""

SHUTTING_DOWN = "the replica is shutting down"


def batch_key(request: ExpertRequest) -> Hashable:
    """Requests with equal keys may share a pass."""
    shapes = request.crop_hwc.shape, request.product_hwc.shape
    return request.version, *shapes, request.num_steps, request.guidance, request.is_spare


class Member:
    """One request of the batcher. Answered once: by its pass, its deadline or its caller's leaving,
    whichever comes first."""

    def __init__(self, request: ExpertRequest, max_rows: int):
        self.request = request
        self.key = batch_key(request)
        self.max_rows = max_rows
        self.num_rows = request.num_images
        self.progress = (0, request.num_steps)
        self.answer: Future[ExpertReply] = Future()
        self.arrived_s: float | None = time.perf_counter()
        # Here, where its caller's trace is known: the thread that paints knows of none.
        self.span = open_span("painter", {"sm4ll.version": request.version})
        self.answer.add_done_callback(self._end_span)

    def _end_span(self, answer: Future[ExpertReply]) -> None:
        if answer.cancelled():
            self.span.fail(Cancelled.code, is_ours=False)
        elif error := answer.exception():
            self.span.fail_with(error)
        else:
            self.span.note({"sm4ll.batch_size": answer.result().batch_size})
        self.span.end()

    @property
    def is_waiting(self) -> bool:
        return not self.answer.done()

    def resolve(self, reply: ExpertReply) -> None:
        try:
            self.answer.set_result(reply)
        except InvalidStateError:
            return  # it left, or ran out of time, a moment ago

    def reject(self, error: Exception) -> None:
        try:
            self.answer.set_exception(error)
        except InvalidStateError:
            return

    def leave(self) -> None:
        """Its caller went away."""
        self.reject(Cancelled(f"stopped at {self._place}"))

    def give_way(self) -> None:
        """Somebody waits for what else there is to do."""
        self.reject(Cancelled(f"stopped at {self._place}: the replica has other work"))

    def expire(self) -> None:
        """Its deadline has passed."""
        self.reject(DeadlineExceeded(f"stopped at {self._place}"))

    def is_late(self, now_unix_s: float) -> bool:
        deadline_unix_s = self.request.deadline_unix_s
        return deadline_unix_s is not None and now_unix_s > deadline_unix_s

    @property
    def _place(self) -> str:
        step, num_steps = self.progress
        return f"step {step} of {num_steps}"


class Batcher:
    """Runs every pass on one thread; a pass stops at its next step once nobody waits for it."""

    def __init__(
        self,
        run_later: RunLater,
        generate: Generate,
        unix_time_s: Callable[[], float] = time.time,
        meter: ReplicaMeter | None = None,
    ):
        self._run_later = run_later
        self._generate = generate
        self._unix_time_s = unix_time_s
        self._meter = meter or ReplicaMeter()
        # Reentrant: `close` runs in a destructor, which may interrupt whoever holds it.
        self._lock = threading.RLock()
        self._queue: deque[Member] = deque()
        self._members: set[Member] = set()
        self._rows_that_fit: dict[Hashable, int] = {}
        self._is_closed = False

    def submit(self, request: ExpertRequest, max_rows: int = 1) -> Member:
        """Queue one request; it runs even where it alone has more rows than that.

        Args:
            max_rows: pictures that may share its pass when it is the oldest in it.

        Raises:
            Overloaded: the replica is shutting down.
        """
        member = Member(request, max_rows)
        with self._lock:
            if self._is_closed:
                raise Overloaded(SHUTTING_DOWN)
            running = () if request.is_spare else self._members.difference(self._queue)
            self._queue.append(member)
            self._members.add(member)
            self._meter.arrived(request.version)
        for other in running:
            if other.request.is_spare:
                other.give_way()
        member.answer.add_done_callback(lambda _: self._forget(member))
        member.answer.add_done_callback(partial(self._count_failure, request.version))
        # One call per member: most find that an earlier one took theirs along.
        self._run_later(self._run_oldest)
        return member

    def progress(self, request_id: str) -> tuple[int, int] | None:
        """Steps done and to do; None when no such request is here."""
        with self._lock:
            found = (m for m in self._members if m.request.request_id == request_id)
            return next((member.progress for member in found), None)

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_members(self) -> int:
        """Queued or running."""
        return len(self._members)

    def close(self) -> None:
        """Answer everybody that the replica goes away; a running pass stops at its next step."""
        with self._lock:
            self._is_closed = True
            members = list(self._members)
        for member in members:
            member.reject(Overloaded(SHUTTING_DOWN))

    def _forget(self, member: Member) -> None:
        """Drop its pictures at once, not when the pass before it ends."""
        with self._lock:
            if member in self._queue:
                self._queue.remove(member)
                self._meter.left(member.request.version)
            self._members.discard(member)

    def _count_failure(self, version: str, answer: Future[ExpertReply]) -> None:
        error = None if answer.cancelled() else answer.exception()
        # Whoever left has not failed, nor who had to make room.
        if error is not None and not isinstance(error, Cancelled):
            code = error.code if isinstance(error, Sm4llError) else Sm4llError.code
            self._meter.failed(version, code)

    def _run_oldest(self) -> None:
        batch = self._take()
        try:
            self._paint(batch)
        finally:
            # A caller without an answer would wait for ever.
            for member in batch:
                member.reject(GenerationFailed("its pass ended without an answer"))

    def _take(self) -> list[Member]:
        """The oldest, and in their order those after it that fit beside it; the spare ones last."""
        with self._lock:
            if not self._queue:
                return []
            first = min(self._queue, key=lambda member: member.request.is_spare)
            self._queue.remove(first)
            max_rows = min(first.max_rows, self._rows_that_fit.get(first.key, first.max_rows))
            batch, others, num_rows = [first], deque[Member](), first.num_rows
            for member in self._queue:
                if member.key == first.key and num_rows + member.num_rows <= max_rows:
                    batch.append(member)
                    num_rows += member.num_rows
                else:
                    others.append(member)
            self._queue = others
            for member in batch:
                self._meter.left(member.request.version)
        return batch

    def _paint(self, members: Sequence[Member]) -> None:
        batch = self._waiting(members)
        if not batch:
            return
        error = self._try(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].reject(error)
            return
        parts = [[member] for member in batch]
        if isinstance(error, OutOfDeviceMemory):
            self._note_too_many(batch)
            parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        del error  # through its traceback the failed pass would keep what it had on the device
        for part in parts:
            self._paint(part)

    def _note_too_many(self, batch: Sequence[Member]) -> None:
        """Never again as many of these in one pass: it would fail as late."""
        key, num_rows = batch[0].key, sum(member.num_rows for member in batch)
        self._rows_that_fit[key] = min(num_rows // 2, self._rows_that_fit.get(key, num_rows))

    def _try(self, batch: Sequence[Member]) -> Exception | None:
        def on_step(step: int, num_steps: int) -> None:
            if step:
                running.stepped()
            for member in batch:
                member.progress = (step, num_steps)
                member.span.event("step", {"sm4ll.step": step, "sm4ll.num_steps": num_steps})
            if not self._waiting(batch):
                raise Cancelled(f"stopped at step {step} of {num_steps}: nobody waits for it")

        for member in batch:
            member.span.event("pass", {"sm4ll.batch_size": len(batch)})
        version, requests = batch[0].request.version, [member.request for member in batch]
        try:
            with self._meter.running(version, _take_waits(batch), len(batch)) as running:
                replies = self._generate(requests, on_step)
            answers = list(zip(batch, replies, strict=True))
        except Exception as exc:
            return exc
        batch_id = secrets.token_hex(8) if len(batch) > 1 else ""
        for index, (member, reply) in enumerate(answers):
            member.resolve(
                replace(reply, batch_id=batch_id, batch_index=index, batch_size=len(batch))
            )
        return None

    def _waiting(self, members: Sequence[Member]) -> list[Member]:
        """Those still to be answered; who is late is answered now."""
        now_unix_s = self._unix_time_s()
        for member in members:
            if member.is_late(now_unix_s):
                member.expire()
        return [member for member in members if member.is_waiting]


def _take_waits(batch: Sequence[Member]) -> list[float]:
    """How long they waited for their first pass, in s: a second one of the same is none more."""
    now_s, waits_s = time.perf_counter(), []
    for member in batch:
        if member.arrived_s is not None:
            waits_s.append(now_s - member.arrived_s)
            member.arrived_s = None
    return waits_s
