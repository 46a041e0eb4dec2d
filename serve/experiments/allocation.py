"""Which of the 10,000 buckets are whose; pure.

A change of weights takes buckets from the arms that shrink and gives them to those that grow, and
no other bucket changes hands: what moves is what must.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from serve.designs import BUCKETS


@dataclass(frozen=True, slots=True)
class Allocation:
    """Every bucket has one arm.

    `ends[i]` is where, exclusively, the buckets of `arms[i]` end that begin at `ends[i - 1]`; the
    last is 10000. An arm may have several ranges.
    """

    ends: tuple[int, ...]
    arms: tuple[str, ...]

    def shares(self) -> dict[str, int]:
        """Buckets by arm; arms without any are absent."""
        found: dict[str, int] = {}
        for start, end, arm in self.ranges():
            found[arm] = found.get(arm, 0) + end - start
        return found

    def ranges(self) -> Iterator[tuple[int, int, str]]:
        """Start, end (exclusive) and arm."""
        return zip((0, *self.ends), self.ends, self.arms, strict=False)

    def dump(self) -> list[list[Any]]:
        """As the store and the API have it: `[[end, arm], ...]`."""
        return [[end, arm] for end, arm in zip(self.ends, self.arms, strict=True)]


def load_allocation(ranges: Sequence[Sequence[Any]]) -> Allocation:
    """
    Raises:
        ValueError: the ends do not rise to 10000.
    """
    ends = tuple(int(end) for end, _ in ranges)
    if (
        not ends
        or ends[-1] != BUCKETS
        or any(b <= a for a, b in zip((0, *ends), ends, strict=False))
    ):
        raise ValueError(f"no allocation: {ranges!r}")
    return Allocation(ends, tuple(str(arm) for _, arm in ranges))


def allocate(weights: Mapping[str, int]) -> Allocation:
    """The first allocation: one range for each arm, in the order given.

    Args:
        weights: buckets by arm; they add up to 10000.
    """
    return _join((weight, arm) for arm, weight in _checked(weights).items())


def reallocate(before: Allocation, weights: Mapping[str, int]) -> Allocation:
    """The next one, with the fewest buckets changing hands.

    The control gives its last buckets and the others their first, so that an arm gives back what
    it got last: from 1 % to 5 % and back ends where it began.

    Args:
        weights: buckets by arm, the control first; they add up to 10000. An arm that is absent
            keeps none.
    """
    missing = dict(_checked(weights))
    control = next(iter(weights))
    ranges = list(before.ranges())
    pieces: list[tuple[int, int, str | None]] = []
    for start, end, arm in (each for each in ranges if each[2] == control):
        cut = start + _keep(missing, arm, end - start)
        pieces += (start, cut, arm), (cut, end, None)
    for start, end, arm in (each for each in reversed(ranges) if each[2] != control):
        cut = end - _keep(missing, arm, end - start)
        pieces += (start, cut, None), (cut, end, arm)
    whole = sorted((piece for piece in pieces if piece[0] < piece[1]), key=itemgetter(0))
    return _join(_hand_out(whole, missing))


def _keep(missing: dict[str, int], arm: str, num_buckets: int) -> int:
    kept = min(num_buckets, missing.get(arm, 0))
    if kept:
        missing[arm] -= kept
    return kept


def _hand_out(
    pieces: Iterable[tuple[int, int, str | None]], missing: Mapping[str, int]
) -> Iterator[tuple[int, str]]:
    """Size and arm of every piece, those of nobody given to the arms that grow, in their order."""
    growing = [(arm, number) for arm, number in missing.items() if number][::-1]
    for start, end, owner in pieces:
        if owner is not None:
            yield end - start, owner
            continue
        while start < end:
            arm, number = growing.pop()
            taken = min(number, end - start)
            yield taken, arm
            start += taken
            if taken < number:
                growing.append((arm, number - taken))


def count_moved(before: Allocation, after: Allocation) -> int:
    """Buckets with another arm."""
    edges = sorted({0, *before.ends, *after.ends})
    return sum(
        end - start
        for start, end in zip(edges, edges[1:], strict=False)
        if _owner(before, start) != _owner(after, start)
    )


def _owner(allocation: Allocation, bucket: int) -> str:
    return next(
        arm for end, arm in zip(allocation.ends, allocation.arms, strict=True) if bucket < end
    )


def _checked(weights: Mapping[str, int]) -> Mapping[str, int]:
    if sum(weights.values()) != BUCKETS or min(weights.values()) < 0:
        raise ValueError(f"weights are buckets and add up to {BUCKETS}, not {dict(weights)}")
    return weights


def _join(pieces: Iterable[tuple[int, str]]) -> Allocation:
    """From sizes and arms in order; neighbours of one arm become one range."""
    ends: list[int] = []
    arms: list[str] = []
    end = 0
    for size, arm in pieces:
        if not size:
            continue
        end += size
        if arms and arms[-1] == arm:
            ends[-1] = end
        else:
            ends.append(end)
            arms.append(arm)
    return Allocation(tuple(ends), tuple(arms))
