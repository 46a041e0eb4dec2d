"""Sends a sampled share of what the control has answered to a challenger as well.

It never delays anybody: it has spare permits only (`serve.admission.gate`), and what cannot be
done now is not done at all. Where a challenger wants its inputs prepared otherwise, the shared
segmenter is asked once more; that is all it takes from others. Counts what it left out, and why.
"""

import asyncio
import contextvars
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from serve.catalog import Catalog, Choice
from serve.designs import ExperimentDesign
from serve.errors import Cancelled, CapacityError, DeadlineExceeded
from serve.evidence.repainting import Repainted, Repainter
from serve.experiments.book import RoutingTable
from serve.experiments.shadow import find_challenger
from serve.steps import Sighting

MAX_AT_ONCE = 2
# Each holds the pictures of its request: a 12-megapixel person is 36 MB.
MAX_WAITING = 2
# For the answer to be encoded and on its way before anything else is done.
HEAD_START_S = 0.1
SUMMARY_EVERY_S = 60.0

logger = logging.getLogger("ray.serve")


class ShadowBook(Protocol):
    """Measures and writes; on the event loop, must neither block nor raise."""

    def record_shadow(self, live: Sighting, shadow: Repainted, /) -> None: ...


class ShadowRunner:
    """A witness. Has at most four requests in hand, and drops what comes beyond them.

    What was taken back is not tried again: there are fewer shadows the busier the replicas are and
    the longer a version paints. Pairs are compared with each other, so that favours neither.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        repainter: Repainter,
        book: ShadowBook,
        head_start_s: float = HEAD_START_S,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._catalog = catalog
        self._repainter = repainter
        self._book = book
        self._head_start_s = head_start_s
        self._now_s = now_s
        self._designs: Mapping[str, ExperimentDesign] = {}
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_at_s = now_s()
        self.counts: Counter[str] = Counter()
        """`answered` and `failed`, or why there was none: `full`, `busy`, `taken_back`, `late`,
        `mistake`."""

    def follow(self, table: RoutingTable) -> None:
        """These are the experiments now."""
        live = (one for of_expert in table.experiments.values() for one in of_expert)
        self._designs = {one.design.id: one.design for one in live}

    def saw(self, sighting: Sighting, /) -> None:
        choice = self._choose(sighting)
        if choice is None:
            return
        if len(self._tasks) >= MAX_AT_ONCE + MAX_WAITING:
            self._count("full")
            return
        # A context of its own: in the request's, Serve would take its calls for the request's.
        task = asyncio.get_running_loop().create_task(
            self._run(sighting, choice), context=contextvars.Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Wait for what runs beside the requests."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """End what runs: nobody waits for it."""
        for task in self._tasks:
            task.cancel()
        await self.flush()

    def _choose(self, live: Sighting) -> Choice | None:
        """The challenger, where this request is one to be painted again."""
        assignment = live.choice.assignment
        if assignment is None or live.result is None or live.prepared is None or live.reply is None:
            return None
        design = self._designs.get(assignment.experiment)
        if design is None:
            return None
        arm = find_challenger(design, assignment.arm, live.work.request_id)
        bundle = None if arm is None else self._catalog.get(arm.version)
        if arm is None or bundle is None or not self._repainter.can_paint(bundle):
            return None
        return Choice(bundle, arm.name, replace(assignment, arm=arm.name, version=arm.version))

    async def _run(self, live: Sighting, choice: Choice) -> None:
        await asyncio.sleep(self._head_start_s)
        async with self._slots:
            try:
                # A version without a replica would keep it waiting for ever.
                async with asyncio.timeout(live.work.timeout_s):
                    shadow = await self._repainter.paint(live, choice)
            except (TimeoutError, DeadlineExceeded):
                # Behind other work on the replica, perhaps: no evidence against the version.
                self._count("late")
            except Cancelled:
                self._count("taken_back")
            except CapacityError:
                self._count("busy")
            except Exception:
                self._count("mistake")
                logger.exception("a shadow of %s ended badly", live.work.request_id)
            else:
                self._count("failed" if shadow.sighting.error else "answered")
                self._book.record_shadow(live, shadow)

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self._now_s() - self._told_at_s >= SUMMARY_EVERY_S:
            self._told_at_s = self._now_s()
            logger.info("shadows so far: %s", dict(self.counts))
