"""One pass of a pipeline: a call state of its own on shared weights, and a stop check per step."""

import copy
from typing import Any

from deployments.backends.base import OnStep


def fork_pipe(pipe: Any) -> Any:
    """The same components with a fresh scheduler and call state.

    Pipelines keep both on themselves: a pass that was stopped, or one that runs in between, would
    leave its place in the schedule to the next.
    """
    fork = copy.copy(pipe)
    fork.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return fork


class Steps:
    """diffusers' step callback for all passes of one batch; knows what stopped it."""

    def __init__(self, on_step: OnStep, num_passes: int):
        self._on_step = on_step
        self._num_passes = num_passes
        self._num_done = 0
        self._raised: BaseException | None = None

    def __call__(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self._num_done += 1
        try:
            # Below strength 1 a pass takes fewer steps than it was asked for.
            self._on_step(self._num_done, self._num_passes * pipe.num_timesteps)
        except BaseException as exc:
            self._raised = exc
            raise
        return tensors

    def has_raised(self, exc: BaseException) -> bool:
        """True for what on_step raised itself."""
        return exc is self._raised
