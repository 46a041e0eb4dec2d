"""How many bins are needed at least, whoever packs them."""

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.int64]

MAX_THRESHOLDS = 100
MAX_STEPS = 60


def lower_bound(sizes: Sizes, capacity: int, max_items: int | None = None) -> int:
    """Bins that no packing of `sizes` can do without.

    Each function below maps sizes so that whatever fits into a bin still does; the sum of what it
    maps them to, over the capacity, is then a bound. The best of many is taken.

    Args:
        sizes: positive, none above `capacity`.
        max_items: how many a bin may hold, however small.

    Source: dual feasible functions u^(k) and U^(e) (Fekete and Schepers, "New classes of fast
        lower bounds for bin packing problems", Math. Program. 91, 2001), which contain Martello
        and Toth's L2, and f_CCM (Carlier, Clautiaux and Moukrim, Comput. Oper. Res. 34, 2007).
    """
    if not len(sizes):
        return 0
    values, counts = np.unique(sizes, return_counts=True)
    best = _bins(_rounded(values, capacity), counts)
    for threshold in _thresholds(values, capacity):
        dropped = np.where(values < threshold, 0, values)
        cut = np.where(values > capacity - threshold, capacity, dropped)
        best = max(best, _bins(_rounded(cut, capacity), counts))
        best = max(best, _bins(_counted(values, capacity, threshold), counts))
    by_number = 0 if max_items is None else -(-len(sizes) // max_items)
    return max(best, by_number)


def _bins(mapped: tuple[Sizes, Sizes], counts: Sizes) -> int:
    """Args: mapped: (functions, sizes) values, and (functions,) what each counts as a full bin."""
    values, full = mapped
    totals = values @ counts
    return int(np.max(-(-totals // full)))


def _thresholds(values: Sizes, capacity: int) -> Sizes:
    """Sizes up to half the capacity: where the maps change."""
    small = values[2 * values <= capacity]
    chosen = np.linspace(0, len(small) - 1, min(len(small), MAX_THRESHOLDS)).astype(np.int64)
    return small[chosen]


def _rounded(values: Sizes, capacity: int) -> tuple[Sizes, Sizes]:
    """u^(k) for k = 1 to MAX_STEPS, and the sizes as they are."""
    steps = np.arange(1, MAX_STEPS + 1, dtype=np.int64)[:, None]
    scaled = (steps + 1) * values
    exact = scaled % capacity == 0
    rounded = np.where(exact, values * steps, scaled // capacity * capacity)
    plain = values[None, :]
    full = np.concatenate([[capacity], steps[:, 0] * capacity])
    return np.concatenate([plain, rounded]), full


def _counted(values: Sizes, capacity: int, threshold: int) -> tuple[Sizes, Sizes]:
    """f_CCM: how many pieces of `threshold` a size takes the place of."""
    most = capacity // threshold
    large = 2 * (most - (capacity - values) // threshold)
    small = 2 * (values // threshold)
    pieces = np.where(2 * values > capacity, large, np.where(2 * values == capacity, most, small))
    return pieces[None, :], np.array([2 * most])
