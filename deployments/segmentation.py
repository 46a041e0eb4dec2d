"""The shared preprocessing deployment: finds regions, in batches, for every expert."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import serve as rayserve

from deployments.maskers import MaskerConfig
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.config import SegmenterConfig, WeightsConfig
from serve.errors import GenerationFailed, Sm4llError
from serve.messages import SegmentReply, SegmentRequest
from serve.observing.logs import write_json_logs
from serve.observing.meter import Meter, NoMeter


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
        self._meter = open_meter()
        plan = SegmenterPlan(config.cache_mib * 2**20, home, weights, self._meter)
        self._segmenter = create_segmenter(masker, plan)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segmenter")
        self._batched.set_max_batch_size(config.max_batch_size)
        self._batched.set_batch_wait_timeout_s(config.batch_wait_s)
        self._segmenter.load()

    async def segment(self, request: SegmentRequest) -> SegmentReply:
        """Find one region.

        Raises:
            SubjectNotFound: what the expert edits is not visible.
        """
        outcome: SegmentReply | Sm4llError = await self._batched(request)
        if isinstance(outcome, Sm4llError):
            raise outcome
        return outcome

    @rayserve.batch  # type: ignore[untyped-decorator]  # Ray ships no types that survive --strict
    async def _batched(self, batch: list[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._segment, batch)

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
