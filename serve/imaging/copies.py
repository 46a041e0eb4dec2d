"""Counts the full-size arrays that one request makes of its picture.

Told by the functions that make them; where nobody counts, telling costs a look at a variable.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, TypeVar

CopyKind = Literal["decode", "turn", "convert", "paste", "encode", "proof"]
"""A file's pixels; the same upright; in other colours, depth or with other channels; the copy that
is painted on; in the order an encoder wants them; the answer's pixels, decoded to be compared."""

_FULL_SHARE = 0.9
P = ParamSpec("P")
T = TypeVar("T")


class CopyCounter:
    """Of one request; arrays may be made in any thread."""

    def __init__(self) -> None:
        self._made: list[tuple[str, int]] = []

    def during(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it; what it makes counts here."""
        before = _COUNTER.set(self)
        try:
            return function(*args, **kwargs)
        finally:
            _COUNTER.reset(before)

    def count(self, kind: CopyKind, num_values: int) -> None:
        self._made.append((kind, num_values))

    def full_size(self, num_values: int) -> Mapping[str, int]:
        """How many have at least nine tenths of as many values as the picture's pixels."""
        least = _FULL_SHARE * num_values
        return Counter(kind for kind, has_values in list(self._made) if has_values >= least)


def note_copy(kind: CopyKind, array: Any) -> None:
    """Say that a new array was made; views are none."""
    counter = _COUNTER.get()
    if counter is not None:
        counter.count(kind, array.size)


_COUNTER: ContextVar[CopyCounter | None] = ContextVar("copies", default=None)
