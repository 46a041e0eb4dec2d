"""What torch raises in our words, and formats by device."""

import weakref

import pytest
import torch

from deployments.backends.diffusion.device import choose_dtype, map_torch_errors
from deployments.recipes import Dtype
from serve.errors import Cancelled, GenerationFailed, OutOfDeviceMemory

CUDA = torch.device("cuda")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("raised", "mapped"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), OutOfDeviceMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfDeviceMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OutOfDeviceMemory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OutOfDeviceMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory),
        (MemoryError(), OutOfDeviceMemory),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), GenerationFailed),
        (torch.AcceleratorError("device-side assert triggered"), GenerationFailed),
        (ValueError("not torch's"), ValueError),
        (Cancelled("stopped at step 2 of 4"), Cancelled),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=lambda value: f"{value}"[:40],
)
def test_torch_errors_are_mapped(raised: BaseException, mapped: type[BaseException]) -> None:
    with pytest.raises(mapped) as caught, map_torch_errors():
        raise raised
    assert caught.type is mapped
    assert raised in (caught.value, caught.value.__cause__)


def test_exhausted_memory_of_this_machine_is_mapped() -> None:
    with pytest.raises(OutOfDeviceMemory, match="no room") as caught, map_torch_errors():
        torch.empty(2**55, dtype=torch.uint8)
    assert caught.value.remedy
    assert caught.value.retry_after_s


def test_wrong_shapes_are_a_failed_generation_in_torchs_words() -> None:
    with pytest.raises(GenerationFailed, match="shapes cannot be multiplied"), map_torch_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_what_may_pass_passes_whatever_its_type() -> None:
    stop = RuntimeError("out of memory, says the caller")
    with pytest.raises(RuntimeError) as caught, map_torch_errors(lambda exc: exc is stop):
        raise stop
    assert caught.value is stop


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), RuntimeError("x"), Cancelled("")])
def test_tensors_of_the_failed_work_are_free_although_the_error_lives(error: Exception) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.ones(3)
        seen.append(weakref.ref(tensor))
        raise error

    with pytest.raises((OutOfDeviceMemory, GenerationFailed, Cancelled)), map_torch_errors():
        work()
    assert error.__traceback__ is not None
    assert seen[0]() is None


@pytest.mark.parametrize(
    ("wanted", "device", "has_bf16", "chosen"),
    [
        ("auto", CPU, False, torch.float32),
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, torch.float16),
        ("bf16", CPU, False, torch.bfloat16),
        ("fp16", CUDA, True, torch.float16),
        ("fp32", CUDA, True, torch.float32),
    ],
)
def test_dtype_follows_the_bundle_then_the_device(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Dtype,
    device: torch.device,
    has_bf16: bool,
    chosen: torch.dtype,
) -> None:
    def is_bf16_supported(including_emulation: bool) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert choose_dtype(wanted, device) is chosen
