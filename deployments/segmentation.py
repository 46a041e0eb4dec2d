"""The shared preprocessing deployment: finds regions, in batches, for every expert."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import serve as rayserve

from deployments.maskers import MaskerConfig
from deployments.pulse import Pulse, list_looks
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.config import SegmenterConfig, WeightsConfig
from serve.errors import GenerationFailed, Sm4llError
from serve.messages import SegmentReply, SegmentRequest
from serve.observing.logs import write_json_logs
from serve.observing.meter import Meter, NoMeter
from serve.observing.tracing import follow_callers, recorded


class SegmenterReplica:
    """Batches requests onto one thread; results are cached by content inside the segmenter."""

    def __init__(
        self,
        config: SegmenterConfig,
        masker: MaskerConfig,
        home: Path,
        weights: WeightsConfig,
        open_meter: Callable[[], Meter] = NoMeter,
    ):
        write_json_logs()
        follow_callers()
        self._meter = open_meter()
        self._masker_id = masker.id
        plan = SegmenterPlan(config.cache_mib * 2**20, home, weights, self._meter)
        self._segmenter = create_segmenter(masker, plan)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segmenter")
        self._batched.set_max_batch_size(config.max_batch_size)
        self._batched.set_batch_wait_timeout_s(config.batch_wait_s)
        self._segmenter.load()
        self._pulse = Pulse(list_looks(self._meter))

    async def segment(self, request: SegmentRequest) -> SegmentReply:
        """Find one region.

        Raises:
            SubjectNotFound: what the expert edits is not visible.
        """
        started_s = time.perf_counter()
        with recorded("segmenter", {"sm4ll.masker": request.masker}) as span:
            outcome: SegmentReply | Sm4llError = await self._batched(request)
            self._meter.observe(
                "sm4ll_segment_duration_seconds",
                time.perf_counter() - started_s,
                masker=self._masker_id,
            )
            if isinstance(outcome, Sm4llError):
                raise outcome
            span.note(
                {
                    "sm4ll.masker": outcome.masker,
                    "sm4ll.cached": outcome.cached,
                    "sm4ll.batch_size": outcome.batch_size,
                }
            )
        return outcome

    @rayserve.batch  # type: ignore[untyped-decorator]  # Ray ships no types that survive --strict
    async def _batched(self, batch: list[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._segment_batch, batch)

    def _segment_batch(self, batch: list[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        self._meter.observe("sm4ll_segment_batch_size", len(batch), masker=self._masker_id)
        return self._segment(batch)

    def _segment(self, batch: list[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        # Errors are values here: raised, one would fail every request of the batch.
        try:
            return self._segmenter.segment(batch)
        except Exception as exc:
            if len(batch) > 1:
                return [self._segment([request])[0] for request in batch]
            return [GenerationFailed(f"{self._segmenter.name}: {type(exc).__name__}: {exc}")]

    async def forget(self, content_hashes: frozenset[str]) -> int:
        """Drop what is remembered of these contents, after what is being read now."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._segmenter.forget, content_hashes)

    async def ping(self) -> str:
        """Answers once the segmenter is loaded."""
        return self._segmenter.name

    def __del__(self) -> None:
        # Serve calls this when the replica has drained; after a failed start there may be nothing.
        if hasattr(self, "_pulse"):
            self._pulse.close()
