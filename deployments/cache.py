"""Least recently used entries, bounded by the bytes they hold."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


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
