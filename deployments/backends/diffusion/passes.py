"""One pass of a pipeline: a call state of its own on shared weights, and a stop check per step."""

import copy
from collections.abc import Callable
from typing import Any

from deployments.backends.base import OnStep
from deployments.backends.diffusion.recipe import StepCallback


def fork_pipe(pipe: Any) -> Any:
    """The same components with a fresh scheduler and call state.

    Pipelines keep both on themselves: a pass that was stopped, or one that runs in between, would
    leave its place in the schedule to the next.
    """
    fork = copy.copy(pipe)
    fork.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return fork


class Steps:
    """Progress and stop check of all passes of one batch; knows what stopped them."""

    def __init__(self, on_step: OnStep, wait: Callable[[], None], num_passes: int):
        self._on_step = on_step
        self._wait = wait
        self._num_passes = num_passes
        self._raised: BaseException | None = None

    def in_pass(self, index: int) -> StepCallback:
        """The callback of one pass."""

        def on_step_end(
            pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            # Below strength 1 a pass takes fewer steps than it was asked for.
            num_steps = pipe.num_timesteps
            # A GPU works through a queue: without waiting, all steps could be queued and reported
            # before the first is done, and a stop would come too late for any of them.
            self._wait()
            try:
                self._on_step(index * num_steps + step + 1, self._num_passes * num_steps)
            except BaseException as exc:
                self._raised = exc
                raise
            return tensors

        return on_step_end

    def has_raised(self, exc: BaseException) -> bool:
        """True for what on_step raised itself."""
        return exc is self._raised
