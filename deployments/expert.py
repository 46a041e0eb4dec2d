"""The deployment of one expert version: owns one backend, one request on the device at a time."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from deployments.backends.registry import create_backend
from deployments.bundle import Bundle
from serve.config import ReplicaPlan
from serve.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    RequestError,
    Sm4llError,
)
from serve.messages import ExpertReply, ExpertRequest

# Failures in a row, with nothing working between them, after which the replica is replaced.
MAX_FAILURES_IN_A_ROW = 5


class ExpertReplica:
    """Runs one backend on one thread; a caller who leaves frees it within one step."""

    def __init__(self, bundles: tuple[Bundle, ...], plan: ReplicaPlan):
        self._plan = plan
        self._backend = create_backend(bundles, plan)
        # One thread: backends are not thread-safe, and the loop stays free for health checks.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=plan.name)
        self._failures_in_a_row = 0
        self._backend.load()

    async def generate(self, request: ExpertRequest) -> ExpertReply:
        """Paint one request.

        Raises:
            Cancelled, DeadlineExceeded: stopped at a step.
            GenerationFailed: the backend raised something of its own.
        """
        stop = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._generate, request, stop
        )
        try:
            return await work
        except asyncio.CancelledError:
            # Not started: it never will. Running: it ends at its next step.
            stop.set()
            raise

    def _generate(self, request: ExpertRequest, stop: threading.Event) -> ExpertReply:
        def on_step(step: int, num_steps: int) -> None:
            if stop.is_set():
                raise Cancelled(f"stopped at step {step} of {num_steps}")
            if request.deadline_unix_s is not None and time.time() > request.deadline_unix_s:
                raise DeadlineExceeded(f"stopped at step {step} of {num_steps}")

        on_step(0, request.num_steps)
        try:
            (reply,) = self._backend.generate([request], on_step)
        except (RequestError, Cancelled, DeadlineExceeded):
            raise
        except Exception as exc:
            self._fail(exc)
        self._failures_in_a_row = 0
        return reply

    def _fail(self, exc: Exception) -> NoReturn:
        self._failures_in_a_row += 1
        if isinstance(exc, Sm4llError):
            raise exc
        # The cause's own type may not unpickle at the caller: its words travel, not it.
        raise GenerationFailed(f"{self._plan.name}: {type(exc).__name__}: {exc}") from exc

    async def ping(self) -> str:
        """Answers once the backend is loaded."""
        return self._plan.name

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises three times."""
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RuntimeError(f"{self._failures_in_a_row} generations failed in a row")

    def __del__(self) -> None:
        # Serve calls this when the replica has drained.
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._backend.unload()
