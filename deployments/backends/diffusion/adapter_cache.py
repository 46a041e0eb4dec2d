"""Values that are loaded once and leased: bounded by bytes, never dropped while in use."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from deployments.cache import Sized

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Sized)


class _Entry(Generic[T]):
    def __init__(self) -> None:
        self.loading = threading.Lock()
        self.num_leases = 0
        self.value: T | None = None
        self.num_bytes = 0


class AdapterCache(Generic[K, T]):
    """Holds at most max_bytes, or nothing but what is leased at this moment.

    Threads that want the same key wait for one load; different keys load side by side.
    """

    def __init__(self, max_bytes: int, load: Callable[[K], T]) -> None:
        self._max_bytes = max_bytes
        self._load = load
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[T]] = OrderedDict()
        self._held_bytes = 0

    @contextmanager
    def lease(self, key: K) -> Iterator[T]:
        """The value of `key`, kept for as long as the context is open.

        What `load` raises passes through; the next lease of the key tries again.
        """
        entry = self._enter(key)
        try:
            yield self._value_of(key, entry)
        finally:
            self._leave(key, entry)

    def clear(self) -> None:
        """Drop what is not leased; what is leased goes by the budget when it is given back."""
        with self._lock:
            self._trim(0)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def _enter(self, key: K) -> _Entry[T]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.num_leases += 1
            return entry

    def _value_of(self, key: K, entry: _Entry[T]) -> T:
        with entry.loading:
            if entry.value is None:
                value = self._load(key)
                with self._lock:
                    entry.value, entry.num_bytes = value, value.nbytes
                    self._held_bytes += entry.num_bytes
                    self._trim(self._max_bytes)
            return entry.value

    def _leave(self, key: K, entry: _Entry[T]) -> None:
        with self._lock:
            entry.num_leases -= 1
            self._entries.move_to_end(key)
            if entry.value is None and not entry.num_leases:
                del self._entries[key]  # its load failed
            self._trim(self._max_bytes)

    def _trim(self, max_bytes: int) -> None:
        """Drop idle entries, the least recently used first, until the budget is kept."""
        idle = [key for key, entry in self._entries.items() if not entry.num_leases]
        for key in idle:
            if self._held_bytes <= max_bytes:
                return
            self._held_bytes -= self._entries.pop(key).num_bytes
