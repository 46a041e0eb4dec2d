"""Which tenants have a label of their own: the busiest few; all others are `other` together.

What a label has taken stays in the exporter for the life of the process, so a name is given for
good, and never more of them than the limit, however many tenants come.
"""

OTHER = "other"
MAX_NAMED = 20
MIN_COUNT = 5
"""So often a tenant must have been seen, at least, before it has a name."""
DEARER_EVERY = 4
"""Names given, after which the next one costs twice as much: some are left for who comes later."""
COUNTERS_PER_NAME = 10
"""Whoever does more than that fraction of everything is among them (1 / 200 for 20 names)."""
FADE_AFTER = 20_000
"""Sightings, after which all counts are halved: who was busy last month is not busy."""


class TenantLabels:
    """A space-saving sketch: whatever comes, it keeps a fixed number of counters.

    Of one process, used from its one event loop.

    Source: Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements
        in Data Streams", ICDT 2005: a count is too high by its recorded error at most.
    """

    def __init__(self, max_named: int = MAX_NAMED):
        self._max_named = max_named
        self._named: set[str] = set()
        self._counts: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        self._total = 0
        self._rarest: list[str] = []
        self._floor = 0

    @property
    def num_named(self) -> int:
        return len(self._named)

    def of(self, tenant_id: str) -> str:
        """The label for one more thing that this tenant did."""
        self._total += 1
        if tenant_id in self._named:
            return tenant_id
        if len(self._named) >= self._max_named or tenant_id == OTHER:
            return OTHER
        if self._count(tenant_id) < self._price():
            return OTHER
        self._counts.pop(tenant_id)
        self._errors.pop(tenant_id)
        self._named.add(tenant_id)
        return tenant_id

    def _price(self) -> float:
        dear = MIN_COUNT << (len(self._named) // DEARER_EVERY)
        return max(dear, self._total / (2 * COUNTERS_PER_NAME * self._max_named))

    def _count(self, tenant_id: str) -> int:
        """How often it was seen, at least."""
        if self._total > FADE_AFTER:
            self._fade()
        counts, errors = self._counts, self._errors
        if tenant_id not in counts and len(counts) >= COUNTERS_PER_NAME * self._max_named:
            rarest = self._find_rarest()
            errors[tenant_id] = counts[tenant_id] = counts.pop(rarest)
            del errors[rarest]
        counts[tenant_id] = counts.get(tenant_id, 0) + 1
        return counts[tenant_id] - errors.setdefault(tenant_id, 0)

    def _find_rarest(self) -> str:
        """All that are equally rare are found at once: one by one each would take 10 us."""
        while True:
            while self._rarest:
                tenant_id = self._rarest.pop()
                if self._counts.get(tenant_id) == self._floor:
                    return tenant_id
            self._floor = min(self._counts.values())
            self._rarest = [each for each, n in self._counts.items() if n == self._floor]

    def _fade(self) -> None:
        self._total //= 2
        self._rarest.clear()
        for tenant_id, count in list(self._counts.items()):
            if count > 1:
                self._counts[tenant_id], self._errors[tenant_id] = (
                    count // 2,
                    self._errors[tenant_id] // 2,
                )
            else:
                del self._counts[tenant_id], self._errors[tenant_id]


class FirstNames:
    """Labels that an administrator makes, as experiments are: the first so many by name."""

    def __init__(self, max_named: int):
        self._max_named = max_named
        self._named: set[str] = set()

    def of(self, name: str) -> str:
        if name in self._named:
            return name
        if len(self._named) >= self._max_named:
            return OTHER
        self._named.add(name)
        return name
