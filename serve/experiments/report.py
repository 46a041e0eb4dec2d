"""Everything an experiment has shown, put together; pure.

It may be asked for every minute: every number in it holds at every look.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nsmallest
from operator import itemgetter

import numpy as np

from serve.designs import ExperimentDesign, MetricName
from serve.experiments.allocation import Allocation
from serve.experiments.analysis import Pair, compare_pairs, find_pairs
from serve.experiments.clusters import bound_difference
from serve.experiments.columns import Columns
from serve.experiments.metrics import METRICS
from serve.experiments.srm import ALARM, check_split, count_units
from serve.experiments.verdicts import describe, finite, headline, judge
from serve.schemas.reports import (
    ArmCount,
    Decision,
    DifferentPair,
    Headline,
    Look,
    MetricResult,
    PairPictures,
    Report,
    ReportArm,
    RevisionCount,
    Series,
    SliceResult,
    SplitVerdict,
)
from serve.store.exposures import Seen

NUM_LOOKS = 30
MAX_PAIRS = 12
NOT_IN_SHADOW = frozenset({"latency_ms", "accepted", "rejected", "returned", "converted"})
"""A shadow waits for spare permits, and nobody sees it."""
PICTURED: tuple[MetricName, ...] = ("colour", "pattern", "seam", "embedding", "face")
"""What can be seen in two pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One allocation, and when it began."""

    allocation: Allocation
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is reported on, and to whom."""

    design: ExperimentDesign
    state: str
    periods: Mapping[int, Period]
    """By revision."""
    caller_tenant: str
    """Whose pictures may be named."""
    tenant: str | None
    """Only of this tenant."""
    revision: int | None
    now: datetime
    is_cut: bool = False
    """There were more exposures than are read."""

    @property
    def challengers(self) -> list[str]:
        return [arm.name for arm in self.design.arms[1:]]

    @property
    def alpha(self) -> float:
        """Of one challenger: all of them together have the design's (Bonferroni)."""
        return self.design.alpha / len(self.challengers)


def build_report(question: Question, seen: Sequence[Seen]) -> Report:
    """
    Args:
        seen: of the experiment, the oldest first; only what the caller may know of.
    """
    design = question.design
    control = design.control.name
    mine = [one for one in seen if question.revision in (None, one.revision)]
    live = [one for one in mine if not one.is_shadow]
    columns = Columns.of(live, [arm.name for arm in design.arms])
    compared = [
        (arm, columns.compare(name, control, arm, question.alpha))
        for arm in question.challengers
        for name in columns.values
    ]
    metrics = [describe(found, control, arm) for arm, found in compared if found.has_data]
    pairs = {arm: find_pairs(mine, control, arm) for arm in question.challengers}
    shadows = list(_compare_shadows(question, pairs))
    check, revisions = _judge_split(question, seen)
    return Report(
        experiment=design.id,
        title=design.title,
        expert=design.expert,
        state=question.state,
        control=control,
        arms=tuple(
            ReportArm(name=arm.name, version=arm.version, weight=arm.weight) for arm in design.arms
        ),
        primary=design.primary,
        alpha=design.alpha,
        tenant=question.tenant,
        revision=question.revision,
        generated_at=question.now,
        first_at=live[0].at if live else None,
        last_at=live[-1].at if live else None,
        exposures=len(live),
        units=columns.count_units(),
        notes=tuple(_notes(question, live, columns)),
        split=check,
        headlines=tuple(_headlines(question, metrics, shadows, check.is_mismatch)),
        metrics=tuple(metrics),
        shadows=tuple(shadows),
        slices=tuple(_slices(question, columns)),
        revisions=revisions,
        series=tuple(_follow(question, columns)),
        pairs=tuple(_most_different(question, pairs)),
    )


def _notes(question: Question, live: Sequence[Seen], columns: Columns) -> Iterator[str]:
    revisions = {one.revision for one in live} & set(question.periods)
    shares = [question.periods[revision].allocation.shares() for revision in revisions]
    splits = {tuple(sorted(split.items())) for split in shares}
    if len(splits) > 1:
        yield (
            "The weights changed while it ran: what changed with time beside them is mixed into "
            f"these numbers. Ask for one revision to keep it apart: --revision {max(revisions)}."
        )
    else:
        yield from _compare_traffic(question, columns)
    if question.is_cut:
        yield "There are more exposures than are read: these are the newest."
    if len(question.challengers) > 1:
        yield f"Each challenger is judged at {question.alpha:.3g}, all of them together at alpha."


def _compare_traffic(question: Question, columns: Columns) -> Iterator[str]:
    """Units may all be there, and some of what they asked for be lost."""
    control = question.design.control.name
    for arm in question.challengers:
        sides = [columns.count_exposures(name) for name in (control, arm)]
        _, bounds = bound_difference(sides[0], sides[1], ALARM, is_relative=True)
        if bounds.low > 0 or bounds.high < 0:
            yield (
                f"A unit of {arm} has {sides[1].mean:.2f} exposures, one of {control} "
                f"{sides[0].mean:.2f}: some are lost, or a version makes people ask again."
            )


def _compare_shadows(
    question: Question, pairs: Mapping[str, Sequence[Pair]]
) -> Iterator[MetricResult]:
    control = question.design.control.name
    for arm, found in pairs.items():
        for name, metric in METRICS.items():
            if name in NOT_IN_SHADOW:
                continue
            compared = compare_pairs(found, metric, question.alpha)
            if compared.has_data:
                yield describe(compared, control, arm)


def _judge_split(
    question: Question, seen: Sequence[Seen]
) -> tuple[SplitVerdict, tuple[RevisionCount, ...]]:
    """Of all revisions, whichever was asked for."""
    counts = count_units(seen)
    exposures: dict[tuple[int, str], int] = {}
    for one in seen:
        if not one.is_shadow:
            exposures[one.revision, one.arm] = exposures.get((one.revision, one.arm), 0) + 1
    check = check_split(counts, {r: period.allocation for r, period in question.periods.items()})
    revisions = []
    for revision, period in sorted(question.periods.items()):
        shares, found = period.allocation.shares(), counts.get(revision, {})
        total, whole = sum(found.values()), sum(shares.values())
        arms = tuple(
            ArmCount(
                arm=arm.name,
                share=shares.get(arm.name, 0),
                units=found.get(arm.name, 0),
                expected_units=shares.get(arm.name, 0) / whole * total,
                exposures=exposures.get((revision, arm.name), 0),
            )
            for arm in question.design.arms
        )
        revisions.append(RevisionCount(revision=revision, at=period.at, arms=arms))
    verdict = SplitVerdict(
        is_mismatch=check.is_mismatch,
        chi2=check.chi2,
        p_value=check.p_value,
        e_value=check.e_value,
        words=check.words(),
    )
    return verdict, tuple(revisions)


def _headlines(
    question: Question,
    metrics: Sequence[MetricResult],
    shadows: Sequence[MetricResult],
    is_mismatch: bool,
) -> Iterator[Headline]:
    design = question.design
    for arm in question.challengers:
        version = design.arm(arm).version
        if is_mismatch:
            words = f"{version}: the split of units is not the one that was asked for; no verdict."
            yield Headline(challenger=arm, decision="unknown", words=words)
            continue
        # Pairs only while too few were asked themselves, whatever these say: whoever picks the
        # better of two answers is wrong twice as often.
        found = [
            one
            for one in (*metrics, *shadows)
            if one.challenger.arm == arm
            and one.metric == design.primary
            and one.decision != "no_data"
        ]
        best = next((one for one in found if one.low is not None), found[0] if found else None)
        if best is None:
            title = METRICS[design.primary].title
            words = f"{version}: nothing measured yet of its primary metric ({title.lower()})."
            yield Headline(challenger=arm, decision="no_data", words=words)
        else:
            words = headline(best, design.primary, version, design.control.version)
            yield Headline(challenger=arm, decision=best.decision, words=words)


def _slices(question: Question, columns: Columns) -> list[SliceResult]:
    """Every slice on every metric, corrected for how many they are.

    Source: Benjamini, Yekutieli, The control of the false discovery rate in multiple testing under
        dependency, Ann. Stat. 2001: slices overlap and metrics hang together.
    """
    from scipy.stats import false_discovery_control  # slow to import, and only reports ask

    control, found = question.design.control.name, []
    for by, value, mask in columns.slices(with_tenants=question.tenant is None):
        for arm in question.challengers:
            for name in columns.values:
                compared = columns.compare(name, control, arm, question.alpha, mask)
                if compared.has_data:
                    found.append((by, value, compared, arm))
    if not found:
        return []
    adjusted = false_discovery_control([one.bounds.p_value for _, _, one, _ in found], method="by")
    results = []
    for (by, value, compared, arm), p in zip(found, adjusted, strict=True):
        decision: Decision = judge(compared)
        if p > question.design.alpha and decision in ("better", "worse"):
            decision = "unknown"
        results.append(
            SliceResult(
                by=by,
                value=value,
                result=describe(compared, control, arm),
                adjusted_p=float(p),
                decision=decision,
            )
        )
    return sorted(results, key=lambda one: one.adjusted_p)


def _follow(question: Question, columns: Columns) -> Iterator[Series]:
    design = question.design
    if design.primary not in columns.values:
        return
    ends = sorted(set(np.linspace(0, len(columns.at), NUM_LOOKS + 1).astype(int)[1:].tolist()))
    for arm in question.challengers:
        looks = []
        for end in ends:
            rows = slice(0, end)
            found = columns.compare(design.primary, design.control.name, arm, question.alpha, rows)
            look = Look(
                at=datetime.fromtimestamp(columns.at[end - 1], UTC),
                units=found.challenger.num_units,
                effect=finite(found.effect),
                low=finite(found.bounds.low),
                high=finite(found.bounds.high),
            )
            looks.append(look)
        yield Series(challenger=arm, metric=design.primary, looks=tuple(looks))


def _most_different(
    question: Question, pairs: Mapping[str, Sequence[Pair]]
) -> Iterator[DifferentPair]:
    """The caller's own that differ, those with pictures before the others; who asks for the same
    again gets the same, which is shown once."""
    found: dict[tuple[str, str, float, float], tuple[bool, float, str, str, MetricName, Pair]] = {}
    for arm, of_arm in pairs.items():
        for pair in of_arm:
            measured = _differ(pair) if pair.live.tenant_id == question.caller_tenant else None
            if measured is None or measured[0] == 0:
                continue
            margins, name = measured
            same = (arm, name, pair.live.metrics[name], pair.shadow.metrics[name])
            one = (not pair.shadow.pictures, -margins, pair.live.id, arm, name, pair)
            if same not in found or one[:3] < found[same][:3]:
                found[same] = one
    first = nsmallest(MAX_PAIRS, found.values(), key=itemgetter(0, 1, 2))
    for _, margins, _, arm, name, pair in first:
        yield DifferentPair(
            exposure=pair.live.id,
            challenger=arm,
            metric=name,
            control_value=pair.live.metrics[name],
            challenger_value=pair.shadow.metrics[name],
            margins=-margins,
            at=pair.live.at,
            pictures=_pictures(pair),
        )


def _differ(pair: Pair) -> tuple[float, MetricName] | None:
    """By how many margins, and on which metric."""
    worst: tuple[float, MetricName] | None = None
    for name in PICTURED:
        before, after = pair.live.metrics.get(name), pair.shadow.metrics.get(name)
        if before is not None and after is not None:
            margins = abs(after - before) / METRICS[name].usual_margin
            worst = max(worst or (margins, name), (margins, name))
    return worst


def _pictures(pair: Pair) -> PairPictures | None:
    """A shadow's row names the pictures of both, and of what both were given."""
    kept = pair.shadow.pictures or {}
    if "live" not in kept or "shadow" not in kept:
        return None
    return PairPictures(
        product=kept.get("product"),
        before=kept.get("before"),
        control=kept["live"],
        challenger=kept["shadow"],
    )
