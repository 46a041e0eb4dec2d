"""What not everyone installs, and what to install when it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import BundleInvalid

DIFFUSION = (
    *("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate"),
    "huggingface_hub",
)
"""Libraries of the extra `diffusion`."""


@contextmanager
def needing_weights(kind: str) -> Iterator[None]:
    """Around imports that only backends and maskers with weights need.

    Raises:
        BundleInvalid: one of those libraries is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        library = (exc.name or "").partition(".")[0]
        if library not in DIFFUSION:
            raise
        raise BundleInvalid(
            f"{kind} needs {library}, which is not installed",
            remedy="pip install 'sm4ll-serve[diffusion]'",
        ) from exc
