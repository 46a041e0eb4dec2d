"""The slow and tight packer: a linear program over ways to fill one bin, then rounding.

Sizes are put into at most MAX_GROUPS groups and counted as their group's largest, so that the
program stays small; what that wastes is used when the last items are filled in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.packing.bins.bounds import Sizes
from deployments.packing.bins.greedy import Bins, pack_best_fit, pack_fullest

MAX_GROUPS = 128
MAX_ROUNDS = 25
# A price this little above a bin's is rounding of the solver, not a better pattern.
TOLERANCE = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Groups:
    """Items by descending size, cut into runs."""

    order: Sizes
    """Positions, largest first."""
    first: Sizes
    """Where in `order` each group begins."""
    count: Sizes
    weight: Sizes
    """Largest size of each group."""
    weight_low: Sizes
    """Smallest size of each group."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """A packing, and how many bins any packing needs."""

    bins: Bins
    lower_bound: int


def pack_patterns(sizes: Sizes, capacity: int, max_items: int | None = None) -> Patterns:
    """Few bins for sizes of which only a few fit into one.

    Source: column generation for cutting stock (Gilmore and Gomory, Oper. Res. 9, 1961); the bound
        from prices that are only nearly right is Farley's (Oper. Res. 38, 1990).
    """
    groups = _group(sizes)
    columns, uses, prices = _generate(groups, capacity)
    dearest = max(1.0, float(_fill_by_price(groups.weight_low, prices, capacity)[0][-1]))
    bound = int(np.ceil(prices @ groups.count / dearest - TOLERANCE))
    begun = _round(groups, columns, uses, max_items)
    return Patterns(_finish(sizes, capacity, max_items, begun), bound)


def _group(sizes: Sizes) -> _Groups:
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order]
    distinct = np.unique(ordered)
    if len(distinct) <= MAX_GROUPS:
        member = np.searchsorted(-distinct[::-1], -ordered)
    else:
        member = np.arange(len(ordered)) * MAX_GROUPS // len(ordered)
    _, first, count = np.unique(member, return_index=True, return_counts=True)
    return _Groups(order, first, count, ordered[first], ordered[first + count - 1])


def _generate(groups: _Groups, capacity: int) -> tuple[Sizes, Floats, Floats]:
    """Returns: (groups, patterns) counts; (patterns,) how often each; (groups,) prices."""
    # Half a second to import, and only the hardest inputs come here.
    from scipy.optimize import linprog
    from scipy.sparse import csc_array

    alone = np.minimum(capacity // groups.weight, groups.count)
    columns = np.diag(alone)
    known = {column.tobytes() for column in columns.T}
    for _ in range(MAX_ROUNDS):
        answer = linprog(
            np.ones(columns.shape[1]),
            A_ub=csc_array(-columns.astype(float)),
            b_ub=-groups.count.astype(float),
            method="highs",
        )
        prices: Floats = -answer.ineqlin.marginals
        found = [
            column
            for column in _dear_columns(groups, prices, capacity)
            if column.tobytes() not in known
        ]
        if not found:
            break
        known.update(column.tobytes() for column in found)
        columns = np.column_stack([columns, *found])
    # The last columns may not have been priced yet.
    return columns[:, : len(answer.x)], answer.x, prices


def _dear_columns(groups: _Groups, prices: Floats, capacity: int) -> list[Sizes]:
    """For every group the dearest pattern that contains it, where it beats a bin's price."""
    worth, last = _fill_by_price(groups.weight, prices, capacity)
    columns = {}
    for group, weight in enumerate(groups.weight.tolist()):
        if worth[capacity - weight] + prices[group] <= 1 + TOLERANCE:
            continue
        column = _trace(groups.weight, last, capacity - weight)
        column[group] += 1
        column = np.minimum(column, groups.count)
        if prices @ column > 1 + TOLERANCE:
            columns[column.tobytes()] = column
    return list(columns.values())


def _fill_by_price(weights: Sizes, prices: Floats, capacity: int) -> tuple[Floats, Sizes]:
    """The unbounded knapsack.

    Returns:
        (capacity + 1,) most that each room is worth, and which group was put in last, -1 for none.
    """
    worth = np.zeros(capacity + 1)
    last = np.full(capacity + 1, -1)
    for group in np.flatnonzero(prices > TOLERANCE).tolist():
        weight, price = int(weights[group]), prices[group]
        # In strides of its weight: each stride may build on the one before.
        for low in range(weight, capacity + 1, weight):
            high = min(low + weight, capacity + 1)
            better = worth[low - weight : high - weight] + price
            improved = better > worth[low:high] + 1e-12
            worth[low:high][improved] = better[improved]
            last[low:high][improved] = group
    return worth, last


def _trace(weights: Sizes, last: Sizes, room: int) -> Sizes:
    column = np.zeros(len(weights), np.int64)
    while (group := int(last[room])) >= 0:
        column[group] += 1
        room -= int(weights[group])
    return column


def _round(groups: _Groups, columns: Sizes, uses: Floats, max_items: int | None) -> Bins:
    """Whole uses first, then patterns of which more than half a bin is wanted."""
    left, taken = groups.count.copy(), groups.first.copy()
    bins: Bins = []

    def use(column: Sizes) -> None:
        positions: list[int] = []
        for group in np.flatnonzero(column).tolist():
            wanted = min(int(column[group]), int(left[group]))
            wanted = min(wanted, (max_items or len(groups.order)) - len(positions))
            positions += groups.order[taken[group] : taken[group] + wanted].tolist()
            taken[group] += wanted
            left[group] -= wanted
        if positions:
            bins.append(positions)

    whole = np.floor(uses + TOLERANCE)
    for at in np.argsort(-uses, kind="stable").tolist():
        for _ in range(int(whole[at])):
            use(columns[:, at])
    for at in np.argsort(whole - uses, kind="stable").tolist():
        if uses[at] - whole[at] > 0.5 and (columns[:, at] <= left).all():
            use(columns[:, at])
    return bins


def _finish(sizes: Sizes, capacity: int, max_items: int | None, begun: Bins) -> Bins:
    """Into the gaps first; what needs bins of its own is packed the better of two ways."""
    bins = pack_best_fit(sizes, capacity, max_items, begun)
    rest = np.array([position for opened in bins[len(begun) :] for position in opened], np.int64)
    if not len(rest):
        return bins
    fullest = pack_fullest(sizes[rest], capacity, max_items)
    if len(fullest) >= len(bins) - len(begun):
        return bins
    return [*bins[: len(begun)], *(rest[positions].tolist() for positions in fullest)]
