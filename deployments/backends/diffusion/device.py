"""The device that a replica paints on, its number format, and its failures in our words."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from deployments.recipes import Dtype
from serve.errors import GenerationFailed, OutOfDeviceMemory

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Libraries below torch report exhausted memory as a plain RuntimeError with their own words.
OUT_OF_MEMORY_WORDS = (
    "out of memory",  # CUDA's runtime
    "can't allocate memory",  # the CPU's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def choose_device() -> torch.device:
    """The replica's GPU, which Ray made the only visible one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    """The bundle's format; for `auto` bf16 where the GPU has it, fp16 on others, fp32 on a CPU."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    # Older GPUs emulate bf16, slower than fp32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def wait_for_device() -> None:
    """Return when what this thread gave the GPU is done; at once on a CPU."""
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def map_torch_errors(passes: Callable[[BaseException], bool] = lambda exc: False) -> Iterator[None]:
    """Translate what torch raises; afterwards the failed work holds no memory.

    Args:
        passes: exceptions that leave as they are, whatever their type.

    Raises:
        OutOfDeviceMemory: there was no room.
        GenerationFailed: torch refused the work.
    """
    try:
        yield
    except BaseException as exc:
        # The traceback refers to the locals of every frame left: tensors among them.
        traceback.clear_frames(exc.__traceback__)
        if passes(exc) or not isinstance(exc, RuntimeError | MemoryError):
            raise
        if not is_out_of_memory(exc):
            raise GenerationFailed(f"{type(exc).__name__}: {exc}") from exc
        free_memory()
        raise OutOfDeviceMemory(
            f"no room for this request: {exc}",
            remedy="ask for fewer pictures at once, or a smaller one",
            retry_after_s=1.0,
        ) from exc


def is_out_of_memory(exc: BaseException) -> bool:
    """True for every way in which device or host say that memory is exhausted."""
    if isinstance(exc, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(exc, RuntimeError) and any(word in str(exc) for word in OUT_OF_MEMORY_WORDS)
