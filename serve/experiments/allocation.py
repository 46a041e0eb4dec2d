"""Which of the 10,000 buckets are whose; pure.

A change of weights takes buckets from the arms that shrink and gives them to those that grow, and
no other bucket changes hands: what moves is what must.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        start = 0
        for end, arm in zip(self.ends, self.arms, strict=True):
            found[arm] = found.get(arm, 0) + end - start
            start = end
        return found

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
    return _compress(arm for arm, weight in _checked(weights).items() for _ in range(weight))


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
    arms = [
        arm
        for start, end, arm in zip((0, *before.ends), before.ends, before.arms, strict=False)
        for _ in range(end - start)
    ]
    owners: list[str | None] = [None] * BUCKETS
    forwards = [bucket for bucket, arm in enumerate(arms) if arm == control]
    backwards = [bucket for bucket, arm in enumerate(arms) if arm != control][::-1]
    for bucket in (*forwards, *backwards):
        if missing.get(arms[bucket], 0) > 0:
            missing[arms[bucket]] -= 1
            owners[bucket] = arms[bucket]
    growing = iter([arm for arm, number in missing.items() for _ in range(number)])
    return _compress(arm if arm is not None else next(growing) for arm in owners)


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


def _compress(owners: Iterable[str]) -> Allocation:
    ends: list[int] = []
    arms: list[str] = []
    for bucket, arm in enumerate(owners, start=1):
        if arms and arms[-1] == arm:
            ends[-1] = bucket
        else:
            ends.append(bucket)
            arms.append(arm)
    return Allocation(tuple(ends), tuple(arms))
