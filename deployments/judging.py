"""The deployment that judges painted pictures with models, for the evidence of experiments.

Nobody waits for it: what it says is written down beside what was measured without it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import serve as rayserve

from deployments.judge_models import JudgeModels
from deployments.judges.base import Judge
from deployments.judges.registry import create_judges
from serve.config import JudgeConfig, WeightsConfig
from serve.errors import GenerationFailed, Sm4llError
from serve.messages import JudgedBy, JudgeReply, JudgeRequest
from serve.observing.logs import write_json_logs
from serve.observing.tracing import follow_callers


class JudgeReplica:
    """Batches requests onto one thread; keeps nothing of any picture."""

    def __init__(
        self,
        config: JudgeConfig,
        models: JudgeModels,
        home: Path,
        weights: WeightsConfig,
        create: Callable[[JudgeModels, Path, WeightsConfig], tuple[Judge, ...]] = create_judges,
    ):
        write_json_logs()
        follow_callers()
        self._judges = create(models, home, weights)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._batched.set_max_batch_size(config.max_batch_size)
        self._batched.set_batch_wait_timeout_s(config.batch_wait_s)
        for judge in self._judges:
            judge.load()

    async def judge(self, request: JudgeRequest) -> JudgeReply:
        """Every metric that can be told of one picture.

        Raises:
            GenerationFailed: a network raised something.
            OutOfDeviceMemory: there was no room for one picture.
        """
        outcome: JudgeReply | Sm4llError = await self._batched(request)
        if isinstance(outcome, Sm4llError):
            raise outcome
        return outcome

    @rayserve.batch  # type: ignore[untyped-decorator]  # Ray ships no types that survive --strict
    async def _batched(self, batch: list[JudgeRequest]) -> list[JudgeReply | Sm4llError]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self.judge_batch, batch
        )

    def judge_batch(self, batch: list[JudgeRequest]) -> list[JudgeReply | Sm4llError]:
        """In order. Errors are values here: raised, one would fail every request of the batch."""
        try:
            given = {judge.metric: judge.judge(batch) for judge in self._judges}
        except Exception as exc:
            if len(batch) > 1:
                return [self.judge_batch([request])[0] for request in batch]
            if isinstance(exc, Sm4llError):
                return [exc]
            return [GenerationFailed(f"the judge: {type(exc).__name__}: {exc}")]
        return [JudgeReply(_pick(given, index)) for index in range(len(batch))]

    async def ping(self) -> str:
        """Answers once the networks are loaded."""
        return "Judge"


def _pick(given: dict[JudgedBy, list[float | None]], index: int) -> dict[JudgedBy, float]:
    return {
        metric: value for metric, values in given.items() if (value := values[index]) is not None
    }
