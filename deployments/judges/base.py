"""What every judge can do: load, and say of a batch of painted pictures how good they are."""

from collections.abc import Sequence
from typing import Protocol

from serve.messages import JudgedBy, JudgeRequest


class Judge(Protocol):
    """Gives one metric. Called from one thread at a time."""

    metric: JudgedBy

    def load(self) -> None:
        """Bring weights into memory. Called once before the first `judge`.

        Raises:
            BundleInvalid: the weights are not there, or cannot be used as they are named.
        """

    def judge(self, batch: Sequence[JudgeRequest]) -> list[float | None]:
        """One number for every request, in order; None where it has nothing to be judged by.

        Raises:
            OutOfDeviceMemory: the batch does not fit.
            GenerationFailed: the network raised something else.
        """
