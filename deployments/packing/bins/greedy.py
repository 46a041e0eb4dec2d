"""Two quick packers: tightest bin for each item, and fullest bin after bin."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.packing.bins.bounds import Sizes

Bins = list[list[int]]
"""Per bin, the positions in `sizes` of what it holds."""

MAX_FIRSTS = 24


def pack_best_fit(
    sizes: Sizes, capacity: int, max_items: int | None = None, begun: Sequence[list[int]] = ()
) -> Bins:
    """Largest first, each into the fullest bin that takes it.

    Args:
        begun: bins that already hold something; positions in them are not packed again.
    """
    bins = [list(positions) for positions in begun]
    most = max_items or len(sizes) + 1
    packed = np.zeros(len(sizes), bool)
    for positions in bins:
        packed[positions] = True
    free = sorted(
        (capacity - int(sizes[positions].sum()), at)
        for at, positions in enumerate(bins)
        if len(positions) < most
    )
    order = np.argsort(-sizes, kind="stable")
    for position in order[~packed[order]].tolist():
        size = int(sizes[position])
        found = bisect_left(free, (size, -1))
        if found == len(free):
            room, at = capacity, len(bins)
            bins.append([])
        else:
            room, at = free.pop(found)
        bins[at].append(position)
        if len(bins[at]) < most:
            insort(free, (room - size, at))
    return bins


def pack_fullest(sizes: Sizes, capacity: int, max_items: int | None = None) -> Bins:
    """Bin after bin: the largest item left, and with it what fills the rest best.

    Source: after the minimum bin slack heuristic MBS' (Fleszar and Hindi, Comput. Oper. Res. 29,
        2002), its search cut to three items at a time.
    """
    stock = _Stock(sizes)
    bins: Bins = []
    while stock.num_left:
        bins.append(_fill_one(stock, capacity, max_items or len(sizes)))
    return bins


class _Stock:
    """What is left of every distinct size."""

    def __init__(self, sizes: Sizes) -> None:
        self.values, kind = np.unique(sizes, return_inverse=True)
        order = np.argsort(kind, kind="stable")
        self.left = np.bincount(kind, minlength=len(self.values))
        self.num_left = len(sizes)
        ends = np.cumsum(self.left)
        self._positions = [
            order[end - count : end].tolist()
            for end, count in zip(ends.tolist(), self.left.tolist(), strict=True)
        ]

    def take(self, kind: int) -> int:
        self.left[kind] -= 1
        self.num_left -= 1
        position: int = self._positions[kind].pop()
        return position


def _fill_one(stock: _Stock, capacity: int, max_items: int) -> list[int]:
    largest = int(np.flatnonzero(stock.left)[-1])
    taken = [stock.take(largest)]
    room = capacity - int(stock.values[largest])
    while len(taken) < max_items:
        kinds = np.flatnonzero(stock.left)
        kinds = kinds[: int(np.searchsorted(stock.values[kinds], room, side="right"))]
        if not len(kinds):
            break
        best = _best_completion(stock.values[kinds], stock.left[kinds], room)
        for at in best[: max_items - len(taken)]:
            taken.append(stock.take(int(kinds[at])))
            room -= int(stock.values[kinds[at]])
    return taken


def _best_completion(values: Sizes, left: Sizes, room: int) -> list[int]:
    """One, two or three of `values` (ascending, all within `room`) that fill it best."""
    best, best_sum = [len(values) - 1], int(values[-1])
    if best_sum == room:
        return best
    pair, pair_sum = _best_pair(values, left, room)
    if pair_sum > best_sum:
        best, best_sum = pair, pair_sum
    firsts = np.unique(
        np.linspace(0, len(values) - 1, min(len(values), MAX_FIRSTS)).astype(np.int64)
    )
    for first in firsts.tolist():
        if best_sum == room:
            break
        left[first] -= 1
        rest = room - int(values[first])
        within = int(np.searchsorted(values, rest, side="right"))
        pair, pair_sum = _best_pair(values[:within], left[:within], rest)
        left[first] += 1
        if pair and int(values[first]) + pair_sum > best_sum:
            best, best_sum = [first, *pair], int(values[first]) + pair_sum
    return best


def _best_pair(values: Sizes, left: NDArray[np.int64], room: int) -> tuple[list[int], int]:
    """Two of `values` with the largest sum within `room`; the one with the larger first."""
    if not len(values):
        return [], 0
    at = np.arange(len(values))
    partner = np.searchsorted(values, room - values, side="right") - 1
    partner = np.where((partner == at) & (left < 2), partner - 1, partner)
    possible = (partner >= 0) & (left > 0)
    possible &= left[np.maximum(partner, 0)] > 0
    if not possible.any():
        return [], 0
    sums = np.where(possible, values + values[np.maximum(partner, 0)], -1)
    best = len(sums) - 1 - int(np.argmax(sums[::-1]))
    return [best, int(partner[best])], int(sums[best])
