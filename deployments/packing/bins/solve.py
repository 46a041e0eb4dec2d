"""Packs into few bins, and says how few it could be."""

from dataclasses import dataclass

from deployments.packing.bins.bounds import Sizes, lower_bound
from deployments.packing.bins.greedy import Bins, pack_best_fit, pack_fullest
from deployments.packing.bins.patterns import pack_patterns

# Within this of the bound nothing slower is tried.
GOOD_ENOUGH = 1.01


@dataclass(frozen=True, slots=True)
class Packing:
    """Which item lies in which bin."""

    bins: Bins
    lower_bound: int
    """No packing uses fewer bins."""


def pack_bins(sizes: Sizes, capacity: int, max_items: int | None = None) -> Packing:
    """Put every item into a bin: quick ways first, slow ones where those fall short.

    The same sizes give the same bins.

    Args:
        sizes: positive, none above `capacity`.
        max_items: how many a bin may hold, however small.
    """
    bound = lower_bound(sizes, capacity, max_items)
    bins = pack_best_fit(sizes, capacity, max_items)
    if len(bins) > bound:
        bins = min(bins, pack_fullest(sizes, capacity, max_items), key=len)
    if len(bins) > bound and len(bins) > GOOD_ENOUGH * bound:
        patterns = pack_patterns(sizes, capacity, max_items)
        bins = min(bins, patterns.bins, key=len)
        bound = max(bound, patterns.lower_bound)
    return Packing(bins, bound)
