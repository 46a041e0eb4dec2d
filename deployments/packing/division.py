"""Where GPUs differ: which deployments go to which kind."""

from collections.abc import Sequence

import numpy as np

from deployments.packing.bins.bounds import Sizes
from deployments.packing.bins.greedy import pack_best_fit
from deployments.packing.board import Board

Division = list[tuple[int, Sizes]]
"""Replicas by kind of GPU."""


def divide_by_kind(board: Board) -> Division:
    """Fix the share of every deployment and say which kind its replicas go to.

    Of four orders (small GPUs first or large ones, heavy deployments first or light ones) the one
    that leaves the fewest replicas over, and then uses the least memory, is taken. What is left
    over is not in the answer.
    """
    if board.num_kinds == 1:
        return [(0, np.arange(len(board.owner)))]
    tries = [
        _divide(board, kinds, heavy_first)
        for kinds in (range(board.num_kinds), range(board.num_kinds - 1, -1, -1))
        for heavy_first in (True, False)
    ]
    return min(tries, key=lambda division: division[:2])[2]


def _divide(board: Board, kinds: Sequence[int], heavy_first: bool) -> tuple[int, float, Division]:
    """Returns: replicas left over, GiB of the GPUs used, and who goes where."""
    waiting = list(range(len(board.demands)))
    num_left, used_gib = len(board.owner), 0.0
    division: Division = []
    for at, kind in enumerate(kinds):
        gpus = [gpu for gpu, of in zip(board.gpus, board.kind_of, strict=True) if of == kind]
        order = _order(board, waiting, kind, kinds[at + 1 :], heavy_first)
        chosen, num_gpus = _longest_that_fits(board, order, kind, len(gpus))
        replicas = np.flatnonzero(np.isin(board.owner, chosen))
        waiting = sorted(set(waiting) - set(chosen))
        num_left -= len(replicas)
        used_gib += num_gpus * gpus[0].gib
        if len(replicas):
            division.append((kind, replicas))
    return num_left, used_gib, division


def _order(
    board: Board, waiting: list[int], kind: int, later: Sequence[int], heavy_first: bool
) -> list[int]:
    """Those that can go nowhere else come first."""
    sign = -1 if heavy_first else 1
    here = [demand for demand in waiting if board.takes(kind, demand)]
    return sorted(
        here,
        key=lambda demand: (
            any(board.takes(other, demand) for other in later),
            sign * board.sizes_on(kind, demand),
        ),
    )


def _longest_that_fits(
    board: Board, order: list[int], kind: int, num_gpus: int
) -> tuple[list[int], int]:
    """As many deployments from the front, each with all its replicas, as these GPUs hold."""
    capacity = int(board.capacity[kind])
    sizes = [
        np.full(board.demands[demand].num_replicas, board.sizes_on(kind, demand), np.int64)
        for demand in order
    ]
    totals = np.cumsum([int(size.sum()) for size in sizes])
    fits, too_many = 0, 1 + int(np.searchsorted(totals, num_gpus * capacity, side="right"))
    num_used = 0
    # To one deployment, or to a hundredth of many.
    while too_many - fits > max(1, len(order) // 100):
        middle = (fits + too_many) // 2
        packed = pack_best_fit(np.concatenate(sizes[:middle]), capacity, board.most)
        if len(packed) <= num_gpus:
            fits, num_used = middle, len(packed)
        else:
            too_many = middle
    return order[:fits], num_used
