"""Sees requests in experiments end, measures their pictures where nobody waits, and writes it down.

An exposure is written whether its picture was measured or not: what is lost under load is a
measure, never a request, and the same on every arm.
"""

import asyncio
import contextvars
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from serve.designs import MetricName
from serve.evidence.background import open_background_thread
from serve.evidence.counts import ExposureCounts
from serve.evidence.exposure import describe_exposure, name_exposure
from serve.evidence.repainting import Repainted
from serve.evidence.writer import ExposureWriter
from serve.imaging.measures import measure_result
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.meter import NO_METER, Meter
from serve.steps import Sighting, Witness
from serve.store.columns import utc_now
from serve.store.exposures import NewExposure

MAX_WAITING = 16
"""To be measured: crop and answer of 768 px are 4 MB each."""
JUDGE_TIMEOUT_S = 10.0
SUMMARY_EVERY_S = 60.0

Judge = Callable[[ExpertRequest, ExpertReply], Awaitable[Mapping[MetricName, float]]]
"""What a model says of the first picture of a reply."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class _Unmeasured:
    """Only what is measured: the person's picture may go."""

    exposure: NewExposure
    request: ExpertRequest
    reply: ExpertReply


class Witnesses:
    """Several as one."""

    def __init__(self, *witnesses: Witness):
        self._witnesses = witnesses

    def saw(self, sighting: Sighting, /) -> None:
        for witness in self._witnesses:
            witness.saw(sighting)


class Recorder:
    """A witness, and the book of shadows. Of one process, used from its one event loop."""

    def __init__(
        self,
        writer: ExposureWriter,
        now: Callable[[], datetime] = utc_now,
        *,
        now_s: Callable[[], float] = time.monotonic,
        meter: Meter = NO_METER,
    ):
        self._writer = writer
        self._exposures = ExposureCounts(meter)
        self._now = now
        self._now_s = now_s
        self._judge: Judge | None = None
        self._usd_per_gpu_second: float | None = None
        self._waiting: deque[_Unmeasured] = deque()
        self._task: asyncio.Task[None] | None = None
        self._thread = open_background_thread("measuring")
        self._told_at_s = now_s()
        self.counts: Counter[str] = Counter()
        """`measured`, `unmeasured` for lack of time, `failed` to be measured, `unjudged`."""

    def use_judge(self, judge: Judge) -> None:
        """Ask it as well from now on."""
        self._judge = judge

    def use_price(self, usd_per_gpu_second: float | None) -> None:
        """Of passes in this cluster, so that they are compared with what others charge."""
        self._usd_per_gpu_second = usd_per_gpu_second

    def saw(self, sighting: Sighting, /) -> None:
        try:
            described = self._describe(sighting)
            self._exposures.count(described)
            self._record(sighting, described)
        except Exception:
            logger.exception("%s left no exposure", sighting.work.request_id)

    def record_shadow(self, live: Sighting, shadow: Repainted, /) -> None:
        """Beside the row of the request whose inputs it had."""
        try:
            exposure_id, request_id = name_exposure(live)
            described = self._describe(shadow.sighting)
            self._record(
                shadow.sighting,
                replace(
                    described,
                    id=exposure_id,
                    request_id=request_id,
                    is_shadow=True,
                    pictures=shadow.pictures,
                ),
            )
        except Exception:
            logger.exception("a shadow of %s left no exposure", live.work.request_id)

    async def flush(self) -> None:
        """Wait until all that was seen is measured and written, or cannot be."""
        while self._task is not None:
            await asyncio.shield(self._task)
        await self._writer.flush()

    async def shut_down(self) -> None:
        await self.flush()
        await self._writer.shut_down()
        self._thread.shutdown(wait=False)

    def _describe(self, sighting: Sighting) -> NewExposure:
        return describe_exposure(sighting, self._now(), self._usd_per_gpu_second)

    def _record(self, sighting: Sighting, exposure: NewExposure) -> None:
        if sighting.error is not None or sighting.prepared is None or sighting.reply is None:
            self._writer.add(exposure)
            return
        if len(self._waiting) >= MAX_WAITING:
            self._count("unmeasured")
            self._writer.add(exposure)
            return
        self._waiting.append(_Unmeasured(exposure, sighting.prepared.crop.request, sighting.reply))
        if self._task is None:
            # A context of its own: nothing of this request belongs to those that come after it.
            self._task = asyncio.get_running_loop().create_task(
                self._measure_all(), context=contextvars.Context()
            )

    async def _measure_all(self) -> None:
        try:
            while self._waiting:
                one = self._waiting.popleft()
                metrics: dict[str, float] = dict(one.exposure.metrics)
                found = await self._measure(one)
                # PostgreSQL's JSON has no other numbers.
                metrics.update((name, x) for name, x in found.items() if math.isfinite(x))
                self._writer.add(replace(one.exposure, metrics=metrics))
        finally:
            self._task = None
            while self._waiting:  # cancelled: nothing that was seen is forgotten
                self._count("unmeasured")
                self._writer.add(self._waiting.popleft().exposure)

    async def _measure(self, one: _Unmeasured) -> Mapping[MetricName, float]:
        metrics: dict[MetricName, float] = {}
        loop = asyncio.get_running_loop()
        try:
            metrics |= await loop.run_in_executor(self._thread, measure, one.request, one.reply)
            self._count("measured")
        except Exception:
            self._count("failed")
            logger.exception("a picture of %s could not be measured", one.exposure.version)
        if self._judge is not None:
            try:
                async with asyncio.timeout(JUDGE_TIMEOUT_S):
                    metrics |= await self._judge(one.request, one.reply)
            except Exception as exc:
                self._count("unjudged")
                logger.warning("a picture of %s was not judged: %r", one.exposure.version, exc)
        return metrics

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self._now_s() - self._told_at_s >= SUMMARY_EVERY_S:
            self._told_at_s = self._now_s()
            logger.info("pictures in experiments so far: %s", dict(self.counts))


def measure(request: ExpertRequest, reply: ExpertReply) -> dict[MetricName, float]:
    """Of the first picture of a reply, at the expert's size."""
    return measure_result(
        request.crop_hwc,
        reply.images_nhwc[0],
        None if reply.alpha_nhw is None else reply.alpha_nhw[0],
        request.region_hw,
        request.product_hwc,
    )
