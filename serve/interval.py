"""What happened between two readings of the metrics: rates, quantiles and last values."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from serve.exposition import Labels, Reading, Values

Group = tuple[str, ...]
"""The values of the labels that were asked for, in their order."""


class Interval:
    """Two readings, the later of which counts where only one is needed."""

    def __init__(self, before: Reading, now: Reading) -> None:
        self.seconds = max(now.at_s - before.at_s, 1e-9)
        self._now: dict[str, dict[Labels, float]] = _by_name(now.values)
        self._gained = {
            name: {
                labels: _gain(before.values.get((name, labels)), value)
                for labels, value in series.items()
            }
            for name, series in self._now.items()
        }

    def groups(self, name: str, *by: str) -> set[Group]:
        return {_group(labels, by) for labels in self._now.get(name, {})}

    def rate(self, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of counters, per second; those that restarted count from nothing, as in PromQL."""
        gained = _sum(self._gained.get(name, {}), by, where)
        return {group: value / self.seconds for group, value in gained.items()}

    def total(self, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of counters since they began; of gauges now, where each process has a part of it."""
        return _sum(self._now.get(name, {}), by, where)

    def largest(self, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of gauges of which every process tells the same whole."""
        return _fold(self._now.get(name, {}), by, where, max)

    def quantile(self, share: float, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of a histogram's values in the interval; no entry where there were none."""
        return _quantiles(share, self._gained.get(f"{name}_bucket", {}), by, where)

    def quantile_ever(self, share: float, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of all its values since its processes began."""
        return _quantiles(share, self._now.get(f"{name}_bucket", {}), by, where)

    def mean(self, name: str, *by: str, **where: str) -> dict[Group, float]:
        """Of a histogram's values in the interval."""
        sums = _sum(self._gained.get(f"{name}_sum", {}), by, where)
        counts = _sum(self._gained.get(f"{name}_count", {}), by, where)
        return {group: sums[group] / count for group, count in counts.items() if count > 0}


def find_quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """The value below which that share lies: linear within its bucket, and the last bound where it
    lies above all.

    Args:
        buckets: how many values were at most each upper bound, infinity included.

    Source: histogram_quantile, https://prometheus.io/docs/prometheus/latest/querying/functions/
    """
    bounds = sorted(buckets)
    if not bounds or not math.isinf(bounds[-1]) or buckets[bounds[-1]] <= 0:
        return None
    rank = share * buckets[bounds[-1]]
    # Processes report one after the other: a bucket may lag behind a narrower one.
    counts = [max(buckets[one] for one in bounds[: place + 1]) for place in range(len(bounds))]
    at = next(place for place, count in enumerate(counts) if count >= rank)
    if at == len(bounds) - 1:
        return bounds[-2] if len(bounds) > 1 else None
    below = counts[at - 1] if at else 0.0
    start = bounds[at - 1] if at else min(0.0, bounds[0])
    inside = counts[at] - below
    return start + (bounds[at] - start) * ((rank - below) / inside if inside else 0.0)


def _quantiles(
    share: float, series: Mapping[Labels, float], by: Iterable[str], where: Mapping[str, str]
) -> dict[Group, float]:
    buckets: dict[Group, dict[float, float]] = defaultdict(dict)
    for (*group, bound), count in _sum(series, (*by, "le"), where).items():
        buckets[tuple(group)][float(bound)] = count
    found = {group: find_quantile(share, of_group) for group, of_group in buckets.items()}
    return {group: value for group, value in found.items() if value is not None}


def _gain(before: float | None, now: float) -> float:
    # A process that was not there, or began again, has counted all it has since.
    return now if before is None or now < before else now - before


def _by_name(values: Values) -> dict[str, dict[Labels, float]]:
    named: dict[str, dict[Labels, float]] = defaultdict(dict)
    for (name, labels), value in values.items():
        named[name][labels] = value
    return named


def _group(labels: Labels, by: Iterable[str]) -> Group:
    known = dict(labels)
    return tuple(known.get(label, "") for label in by)


def _sum(
    series: Mapping[Labels, float], by: Iterable[str], where: Mapping[str, str]
) -> dict[Group, float]:
    return _fold(series, by, where, lambda first, second: first + second)


def _fold(
    series: Mapping[Labels, float],
    by: Iterable[str],
    where: Mapping[str, str],
    fold: Callable[[float, float], float],
) -> dict[Group, float]:
    by = tuple(by)
    folded: dict[Group, float] = {}
    for labels, value in series.items():
        if where.items() <= labels:
            group = _group(labels, by)
            folded[group] = fold(folded[group], value) if group in folded else value
    return folded
