"""Whether the arms got the units they were meant to get (sample ratio mismatch).

Where they did not, exposures are lost or counted twice, and no comparison of the arms means
anything.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serve.experiments import special
from serve.experiments.allocation import Allocation
from serve.store.exposures import Seen

ALARM = 0.005
"""Chance of an alarm over all revisions of a split that is right. Whoever asks about one revision
only, as rollouts do for each stage, has half of it each time."""
CONCENTRATION = 300.0
"""How near to the expected split the mixture looks for others: about 3 points at a half, which is
a tenth of one arm. There half of such losses are found within 5,000 units and nine in ten within
10,000; at 10 % of the units within 16,000 and 30,000, at 1 % within 165,000 and 300,000. Several at
once find no more."""
LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """What the split of units says."""

    chi2: float
    p_value: float
    """Of the chi-square test, for one look; many looks need `e_value`."""
    e_value: float
    """May be looked at at any time: above x with a chance of at most 1 / x."""
    expected: Mapping[str, float]
    """Units by arm over all revisions, as they were meant."""
    found: Mapping[str, int]
    is_mismatch: bool

    def words(self) -> str:
        """In one line, for a person."""
        if not any(self.found.values()):
            return "nobody was seen yet"
        pairs = ", ".join(
            f"{arm} {self.found.get(arm, 0):,} units of {expected:,.0f}"
            for arm, expected in self.expected.items()
        )
        verdict = "is not" if self.is_mismatch else "is"
        return f"the split {verdict} the one that was asked for: {pairs} (e = {self.e_value:.3g})"


def count_units(seen: Iterable[Seen]) -> dict[int, dict[str, int]]:
    """Distinct units by revision and arm; shadows were not drawn."""
    units: dict[int, dict[str, set[str]]] = {}
    for one in seen:
        if not one.is_shadow:
            units.setdefault(one.revision, {}).setdefault(one.arm, set()).add(one.unit)
    return {
        revision: {arm: len(found) for arm, found in arms.items()}
        for revision, arms in sorted(units.items())
    }


def check_split(
    counts_by_revision: Mapping[int, Mapping[str, int]], allocations: Mapping[int, Allocation]
) -> SplitCheck:
    """
    Args:
        counts_by_revision: distinct units by arm, in each revision that has seen any. One that was
            seen under several counts in each.
        allocations: of those revisions; a revision without one is not judged.

    Source: Lindon, Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022,
        equation 8: a Dirichlet mixture around the expected split. The same units come back under
        the next revision, so revisions are not multiplied: the i-th has 1 / (i (i + 1)) of the
        chance of an alarm.
    """
    chi2, freedom, e_value = 0.0, 0, 0.0
    expected: dict[str, float] = {}
    found: dict[str, int] = {}
    for index, revision in enumerate(sorted(set(counts_by_revision) & set(allocations)), start=1):
        counts = counts_by_revision[revision]
        shares = allocations[revision].shares()
        total, whole = sum(counts.values()), sum(shares.values())
        split = {arm: share / whole for arm, share in shares.items()}
        split |= {arm: 0.0 for arm in counts if arm not in split}
        for arm, share in split.items():
            expected[arm] = expected.get(arm, 0.0) + share * total
            found[arm] = found.get(arm, 0) + counts.get(arm, 0)
        chi2 += _chi_square(counts, split, total)
        freedom += len(split) - 1
        e_value = max(e_value, _mixture(counts, split) / (index * (index + 1)))
    return SplitCheck(
        chi2=min(chi2, LARGEST),
        p_value=float(special.chdtrc(freedom, chi2)) if freedom else 1.0,
        e_value=e_value,
        expected=expected,
        found=found,
        is_mismatch=e_value >= 1 / ALARM,
    )


def _chi_square(counts: Mapping[str, int], split: Mapping[str, float], total: int) -> float:
    """Pearson's. Source: Philosophical Magazine 1900."""
    statistic = 0.0
    for arm, share in split.items():
        difference = counts.get(arm, 0) - share * total
        if difference:
            statistic += difference**2 / (share * total) if share else math.inf
    return statistic


def _mixture(counts: Mapping[str, int], split: Mapping[str, float]) -> float:
    """How much likelier the counts are under splits around the expected one than under it."""
    total = sum(counts.values())
    log_e = float(special.gammaln(CONCENTRATION) - special.gammaln(CONCENTRATION + total))
    for arm, share in split.items():
        count = counts.get(arm, 0)
        if not share:
            if count:
                return LARGEST
            continue
        prior = CONCENTRATION * share
        log_e += float(
            special.gammaln(prior + count) - special.gammaln(prior) - special.xlogy(count, share)
        )
    return min(math.exp(min(log_e, 690.0)), LARGEST)
