"""Exposures as columns: each metric is read once, and every slice is a mask."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest

import numpy as np
from numpy.typing import NDArray

from serve.designs import MetricName
from serve.experiments.analysis import Comparison, compare_clusters
from serve.experiments.clusters import Clusters, Codes, Floats, encode
from serve.experiments.metrics import METRICS
from serve.store.exposures import Seen

Mask = NDArray[np.bool_]
MAX_VALUES = 12
"""Of one slice: the ones with most units."""
MAX_TAGS = 8
"""As many as one request may have: the ones that most exposures have."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Live exposures in the order they came, (N,) each."""

    seen: Sequence[Seen]
    units: Codes
    arms: Mapping[str, Mask]
    values: Mapping[MetricName, Floats]
    """Not a number where the exposure does not say; metrics that none says are absent."""
    at: Floats
    """Unix seconds."""

    @classmethod
    def of(cls, seen: Sequence[Seen], arms: Sequence[str]) -> "Columns":
        names = np.array([one.arm for one in seen], dtype=object)
        values: dict[MetricName, Floats] = {}
        for name, metric in METRICS.items():
            read = [metric.read(one) for one in seen]
            column = np.array([np.nan if value is None else value for value in read], dtype=float)
            if not np.isnan(column).all():
                values[name] = column
        return cls(
            seen=seen,
            units=encode([one.unit for one in seen]),
            arms={arm: np.asarray(names == arm, dtype=np.bool_) for arm in arms},
            values=values,
            at=np.array([one.at.timestamp() for one in seen], dtype=np.float64),
        )

    def compare(
        self,
        metric: MetricName,
        control: str,
        challenger: str,
        alpha: float,
        mask: Mask | slice = slice(None),
    ) -> Comparison:
        """As `analysis.compare`, of some of the rows."""
        values = self.values[metric][mask]
        there = ~np.isnan(values)
        sides = []
        for arm in (control, challenger):
            rows = there & self.arms[arm][mask]
            sides.append(Clusters.of(self.units[mask][rows], values[rows]))
        return compare_clusters(METRICS[metric], sides[0], sides[1], alpha)

    def count_units(self) -> int:
        return len(np.unique(self.units))

    def count_exposures(self, arm: str) -> Clusters:
        """How many each unit of the arm has."""
        counts = np.bincount(self.units[self.arms[arm]])
        counts = counts[counts > 0]
        return Clusters.of(np.arange(len(counts)), counts.astype(np.float64))

    def slices(self, with_tenants: bool) -> Iterator[tuple[str, str, Mask]]:
        """By what, which value of it, and the rows; the largest values of each."""
        if with_tenants:
            yield from self._slices_by("tenant", [one.tenant_id for one in self.seen])
        yield from self._slices_by("category", [one.category for one in self.seen])
        # Whoever asks names tags freely, each time others if it likes: only common ones are told.
        counts = Counter(name for one in self.seen for name in one.tags)
        for name in sorted(nsmallest(MAX_TAGS, counts, key=lambda name: (-counts[name], name))):
            words = [one.tags.get(name, "") for one in self.seen]
            yield from self._slices_by(f"tag {name}", words)

    def _slices_by(self, by: str, words: Sequence[str]) -> Iterator[tuple[str, str, Mask]]:
        names = list(dict.fromkeys(words))
        codes, num_units = encode(words), int(self.units.max(initial=0)) + 1
        # Not a mask each before it is known which are wanted: every row may have a word of its own.
        sizes = np.bincount(np.unique(codes * num_units + self.units) // num_units)
        ranked = ((-int(sizes[code]), word, code) for code, word in enumerate(names) if word)
        for _, word, code in nsmallest(MAX_VALUES, ranked):
            mask = np.asarray(codes == code)
            if not mask.all():
                yield by, word, mask
