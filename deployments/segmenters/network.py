"""Networks of transformers on this replica's device: loaded whole, or refused by name."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deployments.segmenters.base import SegmenterPlan
from deployments.sources import ModelSource
from deployments.weights import WeightStore, digest_weights
from serve.errors import BundleInvalid, GenerationFailed, OutOfDeviceMemory

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Device:
    """Where networks run, and in which precision."""

    name: str
    dtype: torch.dtype


def choose_device(full_precision: bool = False) -> Device:
    """Half precision on a GPU, single on a CPU, which is slower in half."""
    if torch.cuda.is_available():
        return Device("cuda", torch.float32 if full_precision else torch.float16)
    return Device("cpu", torch.float32)


@dataclass(frozen=True, slots=True)
class Network:
    """A network of transformers, ready to run, with what its directory says about it."""

    model: Any
    folder: Path
    label: str
    digest: str
    """Of its weights and settings: names what was served."""
    device: Device

    @property
    def config(self) -> Any:
        return self.model.config

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """No gradients; what the device raises becomes ours.

        Raises:
            OutOfDeviceMemory: what was allocated is free again.
            GenerationFailed: the network raised something else.
        """
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError as exc:
            torch.cuda.empty_cache()
            raise OutOfDeviceMemory(
                f"{self.label} had no room on the device", remedy="lower segmenter.max_batch_size"
            ) from exc
        except RuntimeError as exc:
            raise GenerationFailed(f"{self.label}: {exc}") from exc

    def put(self, inputs: Float32Array) -> torch.Tensor:
        """An array on the device, in the network's precision."""
        return torch.from_numpy(inputs).to(self.device.name, self.device.dtype)


def load_network(
    auto_class: Any,
    source: ModelSource,
    plan: SegmenterPlan,
    role: str,
    full_precision: bool = False,
) -> Network:
    """Load a network with one of transformers' Auto classes.

    Args:
        auto_class: what the network must be, such as AutoModelForSemanticSegmentation.
        role: the same in words, for messages.
        full_precision: for small networks whose answer is coordinates.

    Raises:
        BundleInvalid: not there, not safetensors, needs remote code, of another kind, or
            incomplete: a weight that is missing would be random.
    """
    folder = Path(WeightStore(plan.home, plan.weights).locate(source))
    config = _read_config(folder, source.label)
    _require_native(auto_class, config, source.label, role)
    device = choose_device(full_precision)
    try:
        model, report = auto_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=device.dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as exc:
        raise BundleInvalid(
            f"{source.label}: cannot be loaded as {role}: {exc}",
            remedy="check that the directory is what save_pretrained of that network wrote",
        ) from exc
    _require_complete(report, source.label)
    model.to(device.name).eval()
    return Network(model, folder, source.label, digest_weights(folder), device)


def _read_config(folder: Path, label: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BundleInvalid(
            f"{label}: config.json cannot be read: {exc}", remedy="check path and subfolder"
        ) from exc
    return config


def _require_native(auto_class: Any, config: dict[str, Any], label: str, role: str) -> None:
    """Code from a model's repository is never executed."""
    served = sorted(known.model_type for known in auto_class._model_mapping)
    model_type = config.get("model_type")
    if model_type in served:
        return
    if "auto_map" in config:
        raise BundleInvalid(
            f"{label}: {model_type} runs code of its own repository (auto_map), which is never "
            f"executed here; as {role} transformers itself knows {', '.join(served)}",
            remedy="choose a network that transformers knows",
        )
    raise BundleInvalid(
        f"{label}: {model_type} is not {role}; transformers knows {', '.join(served)}",
        remedy="choose another network, or another masker.kind for this one",
    )


def _require_complete(report: dict[str, Any], label: str) -> None:
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise BundleInvalid(
            f"{label}: weights are missing or of another shape: {', '.join(absent[:5])}{more}",
            remedy="these would be random; take the directory of the fine-tuned network",
        )
