"""LoRA versions that take turns on one base: their weights are copied in place, nothing else moves.

Kernels compiled or recorded for the base stay valid, because no module, shape or address changes.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from deployments.backends.diffusion.adapter_cache import AdapterCache
from deployments.backends.diffusion.adapter_file import (
    AdapterFile,
    AdapterReader,
    AdapterWeights,
    LayerWeights,
)
from deployments.bundle import Bundle
from deployments.sources import ModelSource
from serve.errors import BundleInvalid

SLOT = "slot"
"""The one adapter that peft knows of; whose weights it holds changes from pass to pass."""

Locate = Callable[[ModelSource], Path | str]


class AdapterRack:
    """The adapters of one replica's versions, and the slot in the denoiser they share.

    The slot covers every layer that any of them changes, at the largest rank wanted there. peft's
    own hot swap reads neither alpha nor rank patterns and refuses layers the first adapter lacks.
    """

    def __init__(
        self,
        pipe: Any,
        denoiser_name: str,
        bundles: tuple[Bundle, ...],
        locate: Locate,
        budget_bytes: int,
    ) -> None:
        self._pipe = pipe
        self._denoiser_name = denoiser_name
        self._bundles = bundles
        self._locate = locate
        self._budget_bytes = budget_bytes
        self._turn = threading.Lock()
        self._files: dict[str, AdapterFile | None] = {}
        self._bytes: dict[str, int] = {}
        self._cache: AdapterCache[AdapterFile, AdapterWeights] | None = None
        self._slot: _Slot | None = None

    def load(self) -> None:
        """Read and check every adapter, then put the slot on the denoiser.

        Call it once, with the denoiser on its device and before it is quantised or compiled.

        Raises:
            BundleInvalid: an adapter is missing or does not fit; names file and keys.
        """
        reader = AdapterReader(self._pipe, self._denoiser_name)
        self._cache = AdapterCache(self._budget_bytes, reader.read)
        self._files = {bundle.version: self._find(bundle) for bundle in self._bundles}
        ranks: dict[str, int] = {}
        for version, file in self._files.items():
            if file is None:
                continue
            with self._cache.lease(file) as weights:
                self._bytes[version] = weights.nbytes
                for name, layer in weights.layers.items():
                    ranks[name] = max(ranks.get(name, 0), layer.rank)
        if ranks:
            self._slot = _Slot(getattr(self._pipe, self._denoiser_name), ranks)

    @contextmanager
    def use(self, version: str) -> Iterator[None]:
        """While the context is open the denoiser is `version`: its adapter, or the plain base.

        One context at a time: a second thread waits.
        """
        with self._turn:
            self._switch(version)
            yield

    def bytes_by_version(self) -> Mapping[str, int]:
        """What each adapter weighs, in the base's dtype; versions on the plain base are absent."""
        return dict(self._bytes)

    @property
    def host_bytes(self) -> int:
        """Adapters kept in host memory now."""
        return 0 if self._cache is None else self._cache.held_bytes

    @property
    def slot_bytes(self) -> int:
        """What all adapters together take on the denoiser's device."""
        return 0 if self._slot is None else self._slot.num_bytes

    def unload(self) -> None:
        """Forget adapters and slot; the layers themselves go with the pipeline."""
        self._slot = None
        if self._cache is not None:
            self._cache.clear()

    def _find(self, bundle: Bundle) -> AdapterFile | None:
        adapter = getattr(bundle.backend, "adapter", None)
        if adapter is None:
            return None
        folder = Path(self._locate(adapter.source.located(bundle.home)))
        return AdapterFile(folder, adapter.weight_name, adapter.scale)

    def _switch(self, version: str) -> None:
        file = self._files[version]
        if self._slot is None or self._slot.holds(file):
            return
        if file is None or self._cache is None:
            self._slot.fill(None, {})
            return
        with self._cache.lease(file) as weights:
            self._slot.fill(file, weights.layers)


class _Slot:
    """Zeroed LoRA layers on the denoiser. Zeros add exactly nothing, so it starts as the base."""

    def __init__(self, denoiser: torch.nn.Module, ranks: Mapping[str, int]) -> None:
        denoiser.add_adapter(_config(ranks), SLOT)
        self._layers: dict[str, LayerWeights] = {}
        for name in ranks:
            layer = denoiser.get_submodule(name)
            a, b = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
            layer.scaling[SLOT] = 1.0  # the adapters' own is in their weights
            self._layers[name] = LayerWeights(a.requires_grad_(False), b.requires_grad_(False))
        self._held: AdapterFile | None = None
        self._is_whole = False
        self.num_bytes = sum(a.nbytes + b.nbytes for a, b in self._layers.values())
        self.fill(None, {})

    def holds(self, file: AdapterFile | None) -> bool:
        return self._is_whole and self._held == file

    def fill(self, file: AdapterFile | None, layers: Mapping[str, LayerWeights]) -> None:
        """Copy the weights in; layers they do not have, and ranks they leave over, become zero."""
        self._check(file, layers)
        self._is_whole = False  # until the last copy: an error leaves half an adapter
        with torch.no_grad():
            for name, slot in self._layers.items():
                _copy(layers.get(name), slot)
        self._held = file
        self._is_whole = True

    def _check(self, file: AdapterFile | None, layers: Mapping[str, LayerWeights]) -> None:
        changed = [
            name
            for name, given in layers.items()
            if name not in self._layers or given.rank > self._layers[name].rank
        ]
        if changed:
            raise BundleInvalid(
                f"{file.path if file else SLOT} has changed since this replica started: "
                f"{len(changed)} layers are new or of a higher rank, such as {changed[0]}",
                remedy="give a changed adapter a new version",
            )


def _copy(given: LayerWeights | None, slot: LayerWeights) -> None:
    rank = 0 if given is None else given.rank
    if rank < slot.rank:
        slot.a[rank:].zero_()
        slot.b[:, rank:].zero_()
    if given is not None:
        slot.a[:rank].copy_(given.a, non_blocking=True)
        slot.b[:, :rank].copy_(given.b, non_blocking=True)


def _config(ranks: Mapping[str, int]) -> LoraConfig:
    """Exactly these layers at exactly these ranks; one pattern per rank, as peft tries them all."""
    by_rank: dict[int, list[str]] = {}
    for name, rank in ranks.items():
        by_rank.setdefault(rank, []).append(re.escape(name))
    # peft lets anything stand before a pattern, unless it starts with ^.
    rank_pattern = {f"^(?:{'|'.join(names)})": rank for rank, names in by_rank.items()}
    return LoraConfig(
        target_modules=f"(?:{'|'.join(map(re.escape, ranks))})",
        rank_pattern=rank_pattern,
        init_lora_weights=False,
    )


def time_swaps(rack: AdapterRack, versions: Sequence[str], num_swaps: int) -> list[float]:
    """Seconds of each swap, going round `versions`, the device waited for."""
    times_s = []
    for index in range(num_swaps):
        start_s = time.perf_counter()
        with rack.use(versions[index % len(versions)]):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        times_s.append(time.perf_counter() - start_s)
    return times_s
