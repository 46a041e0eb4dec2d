"""What every backend can do: load, generate a batch with a stop check at each step, unload."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from serve.messages import ExpertReply, ExpertRequest
from serve.observing.meter import Meter

OnStep = Callable[[int, int], None]
"""Called as (step, num_steps) after each step; raises to stop the whole batch within that step."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a loaded backend holds on its device."""

    weights_bytes: int = 0
    """The base, without adapters."""
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)
    """By version, for those that are LoRAs on a shared base."""
    device: str = "cpu"
    """As footprints name it: the GPU's name, or `cpu`."""
    cap_gib: float | None = None
    """Most that this process may hold there; None where it is not capped."""


class Backend(Protocol):
    """Runs one expert version, or several on one base. Not thread-safe: its replica calls it from
    one thread at a time."""

    kind: str
    is_preview: bool
    """True when the result is a draft to look at, not a picture to publish."""

    def load(self) -> None:
        """Bring weights into memory. Called once before the first `generate`.

        Raises:
            BundleInvalid: weights are missing, not safetensors, or do not fit the recipe.
        """

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        """Paint every request of the batch.

        The same request, seed and batch shape give the same bytes.

        Args:
            batch: requests that agree on version, crop size, num_steps and guidance.
            on_step: progress and stop check; what it raises passes through unchanged and leaves
                the backend as good as new.

        Returns:
            One reply per request, in order.

        Raises:
            GenerationFailed: the input cannot be painted by this backend.
            OutOfDeviceMemory: the device had no room; what was allocated is free again.
        """

    def unload(self) -> None:
        """Give memory back. Safe to call twice."""

    def memory(self) -> Memory:
        """What is held now."""


@runtime_checkable
class OnDevice(Protocol):
    """A backend that works on a GPU where there is one."""

    def held_bytes(self) -> int:
        """Memory of the GPU that this process holds now. From any thread."""


@runtime_checkable
class Remembering(Protocol):
    """A backend that keeps something of the pictures it was given between requests, and can do so
    before it is loaded."""

    def use_meter(self, meter: Meter) -> None:
        """Count there what is found and what is held."""

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is kept of these contents; says how many entries. From the thread that
        generates."""
