"""Least recently used entries, bounded by the bytes they hold, and what was made of pictures."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from serve.observing.meter import NO_METER, Meter
from serve.telemetry import CacheName


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class ByteCache(Generic[T]):
    """Never holds more than max_bytes; what is larger than that alone is not kept at all."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._held_bytes = 0

    def get(self, key: str) -> T | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: T) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self._held_bytes -= old.nbytes
        if entry.nbytes > self._max_bytes:
            return
        self._entries[key] = entry
        self._held_bytes += entry.nbytes
        while self._held_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._held_bytes -= oldest.nbytes

    def remove(self, is_gone: Callable[[str], bool]) -> int:
        """Forget every entry whose key this is true of; says how many."""
        keys = [key for key in self._entries if is_gone(key)]
        for key in keys:
            self._held_bytes -= self._entries.pop(key).nbytes
        return len(keys)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What was made of a picture, and whether it was remembered."""

    value: T
    cached: bool


class ContentCache(Generic[T]):
    """What was made of pictures, by whose content it was and how it was made; from any thread.

    What has no content hash is nobody's, and not kept. Entries are shared: whoever gets one leaves
    it as it is.
    """

    def __init__(self, name: CacheName, max_bytes: int, meter: Meter = NO_METER) -> None:
        self._name = name
        self._meter = meter
        self._kept: ByteCache[T] = ByteCache(max_bytes)
        self._lock = threading.Lock()
        self._era = 0

    def use_meter(self, meter: Meter) -> None:
        self._meter = meter

    @property
    def era(self) -> int:
        """Changes with every `forget`."""
        return self._era

    def find(self, content_hash: str, way: str) -> T | None:
        """
        Args:
            content_hash: of the original bytes and whose they are (`serve.tenancy.memory`).
            way: what else the result depends on.
        """
        if not content_hash:
            return None
        with self._lock:
            entry = self._kept.get(_key(content_hash, way))
        outcome = "miss" if entry is None else "hit"
        self._meter.add("sm4ll_cache_requests_total", cache=self._name, outcome=outcome)
        return entry

    def keep(self, content_hash: str, way: str, entry: T, era: int) -> None:
        """
        Args:
            era: as it was before the picture was looked at: what was erased meanwhile stays away.
        """
        if not content_hash:
            return
        with self._lock:
            if era != self._era:
                return
            self._kept.put(_key(content_hash, way), entry)
            self._meter.set("sm4ll_cache_bytes", self._kept.held_bytes, cache=self._name)

    def make(self, content_hash: str, way: str, make: Callable[[], T]) -> Made[T]:
        """What is remembered, or what is made now; two who come at once both make it."""
        era = self._era
        known = self.find(content_hash, way)
        if known is not None:
            return Made(known, cached=True)
        value = make()
        self.keep(content_hash, way, value, era)
        return Made(value, cached=False)

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is remembered of these contents; says how many entries."""
        with self._lock:
            self._era += 1
            num_gone = self._kept.remove(lambda key: key.partition(" ")[0] in content_hashes)
            self._meter.set("sm4ll_cache_bytes", self._kept.held_bytes, cache=self._name)
        return num_gone

    @property
    def held_bytes(self) -> int:
        return self._kept.held_bytes


def hold_alone(value: Any) -> Any:
    """The array, or the dataclass of arrays, as it may be kept: a part that was cut out of a
    picture would hold the whole of it, and requests share what is kept, so nobody writes to it."""
    if isinstance(value, np.ndarray):
        alone = value if value.flags.owndata else value.copy()
        alone.flags.writeable = False
        return alone
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: hold_alone(getattr(value, part.name)) for part in fields(value)}
        return replace(value, **parts)
    return value


def _key(content_hash: str, way: str) -> str:
    return f"{content_hash} {way}"
