"""What every backend can do: load, generate a batch with a stop check at each step, unload."""

from collections.abc import Callable, Sequence
from typing import Protocol

from serve.messages import ExpertReply, ExpertRequest

OnStep = Callable[[int, int], None]
"""Called as (step, num_steps) after each step; raises to stop the whole batch within that step."""


class Backend(Protocol):
    """Runs one expert version. Not thread-safe: its replica calls it from one thread at a time."""

    kind: str
    is_preview: bool
    """True when the result is a draft to look at, not a picture to publish."""

    def load(self) -> None:
        """Bring weights into memory. Called once before the first `generate`."""

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        """Paint every request of the batch.

        The same request, seed and batch shape give the same bytes.

        Args:
            batch: requests that agree on crop size and num_steps.
            on_step: progress and stop check; what it raises passes through unchanged.

        Returns:
            One reply per request, in order.

        Raises:
            GenerationFailed: the input cannot be painted by this backend.
        """

    def unload(self) -> None:
        """Give memory back. Safe to call twice."""
