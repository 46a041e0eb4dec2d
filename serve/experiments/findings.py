"""What was seen of a challenger, as the evidence a rollout is decided by."""

from collections.abc import Sequence

from serve.designs import MetricName, RolloutPlan, Stage
from serve.experiments.allocation import Allocation
from serve.experiments.analysis import compare, compare_pairs, find_pairs
from serve.experiments.metrics import METRICS
from serve.experiments.rollout import NEVER_COMPARED, Evidence, Finding, spend_alpha
from serve.experiments.sequential import MIN_UNITS
from serve.experiments.srm import check_split, count_units
from serve.store.exposures import Seen

CONTROL, CHALLENGER = "control", "challenger"
"""The arms of every rollout's experiment."""
NOT_IN_SHADOW: frozenset[MetricName] = frozenset(
    {"latency_ms", "accepted", "rejected", "returned", "converted"}
)
"""A shadow waits for permits that nobody needs, and nobody is shown it."""
OF_PICTURES: frozenset[MetricName] = frozenset({"colour", "pattern", "seam"})
"""Measured of every picture, whichever version painted it."""
MAX_E_VALUE = 1e9
"""In the log: PostgreSQL writes larger ones with all their zeros."""


def gather(
    plan: RolloutPlan, stage: Stage, revision: int, allocation: Allocation, seen: Sequence[Seen]
) -> Evidence:
    """
    Args:
        revision, allocation: those that began the stage.
        seen: all exposures of that revision, shadows among them.
    """
    is_shadow, alpha = stage.share == 0, spend_alpha(plan)
    pairs = find_pairs(seen, CONTROL, CHALLENGER) if is_shadow else []
    challenged = [one for one in seen if one.arm == CHALLENGER]
    judged = (
        [pair.shadow for pair in pairs] if is_shadow else [o for o in challenged if not o.is_shadow]
    )
    findings = []
    for guardrail in plan.guardrails:
        if guardrail.metric in NEVER_COMPARED or (is_shadow and guardrail.metric in NOT_IN_SHADOW):
            continue
        metric = METRICS[guardrail.metric]
        margin = metric.usual_margin if guardrail.margin is None else guardrail.margin
        found = (
            compare_pairs(pairs, metric, alpha)
            if is_shadow
            else compare(seen, metric, CONTROL, CHALLENGER, alpha)
        )
        findings.append(
            Finding(
                metric=guardrail.metric,
                has_data=found.has_data,
                is_harm=found.harm(margin),
                is_suspect=found.suspect(margin),
                is_unseen=guardrail.metric in OF_PICTURES
                and found.control.num_units >= MIN_UNITS
                and not found.challenger.num_units,
                is_safe=found.safe(margin),
                words=found.words(),
                numbers=found.numbers(),
            )
        )
    split = check_split(count_units(seen), {revision: allocation})
    allowed = next((g.margin for g in plan.guardrails if g.metric == "outside"), None) or 0.0
    return Evidence(
        num_exposures=sum(map(_says_something, judged)),
        num_outside=sum(one.metrics.get("outside", 0.0) > allowed for one in challenged),
        findings=tuple(findings),
        split=split.words() if split.is_mismatch else "",
        split_numbers={
            "found": dict(split.found),
            "p_value": split.p_value,
            "e_value": min(split.e_value, MAX_E_VALUE),
        },
    )


def _says_something(seen: Seen) -> bool:
    """A caller's mistake, or one who left, says nothing about the version."""
    return not seen.code or seen.is_failure
