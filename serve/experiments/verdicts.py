"""A comparison in words that people decide by."""

import math

from serve.designs import MetricName
from serve.experiments.analysis import ArmNumbers, Comparison, tell_effect
from serve.experiments.metrics import METRICS, Metric
from serve.schemas.reports import ArmResult, Decision, MetricResult


def judge(found: Comparison) -> Decision:
    """By the two-sided interval and the metric's usual margin."""
    metric = METRICS[found.metric]
    margin, bounds = metric.usual_margin, found.bounds
    if not found.has_data:
        return "no_data"
    if metric.is_never:
        return "worse" if found.num_bad else "equal"
    if bounds.high < 0:
        return "better"
    if bounds.low > 0 and bounds.high > margin:
        return "worse"
    if bounds.high <= margin:
        return "equal" if bounds.low >= -margin else "not_worse"
    return "unknown"


def tell(found: Comparison, decision: Decision) -> str:
    """One sentence without its subject."""
    metric = METRICS[found.metric]
    if decision == "no_data":
        return "nothing measured on both sides"
    if metric.is_never:
        number = found.num_bad
        return f"{number} of its units had it" if number else "it never happened"
    if not found.is_known:
        return "too few units to say anything"
    between = f"between {_side(metric, found.bounds.low)} and {_side(metric, found.bounds.high)}"
    margin = _size(metric, metric.usual_margin)
    match decision:
        case "better" | "worse":
            return f"{decision} by {_size(metric, found.effect)}, {between}"
        case "equal":
            return f"within the margin of {margin}, {between}"
        case "not_worse":
            return f"not worse by more than {margin}, {between}"
        case _:
            return f"no difference shown yet, {between}"


def _size(metric: Metric, value: float) -> str:
    return tell_effect(metric, abs(value)).removeprefix("+")


def _side(metric: Metric, value: float) -> str:
    return f"{_size(metric, value)} {'worse' if value > 0 else 'better'}"


def describe(found: Comparison, control: str, challenger: str) -> MetricResult:
    """For the wire, which has no infinite numbers."""
    metric, decision = METRICS[found.metric], judge(found)
    return MetricResult(
        metric=metric.name,
        title=metric.title,
        kind=metric.kind,
        unit=metric.unit,
        better=metric.better,
        is_relative=metric.is_relative,
        control=_arm(control, found.control),
        challenger=_arm(challenger, found.challenger),
        effect=finite(found.effect),
        low=finite(found.bounds.low),
        high=finite(found.bounds.high),
        p_value=found.bounds.p_value,
        margin=metric.usual_margin,
        decision=decision,
        words=tell(found, decision),
    )


def _arm(name: str, numbers: ArmNumbers) -> ArmResult:
    return ArmResult(
        arm=name,
        units=numbers.num_units,
        exposures=numbers.num_exposures,
        mean=finite(numbers.mean),
    )


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def headline(found: MetricResult, metric: MetricName, version: str, control: str) -> str:
    """What to make of it, as a sentence."""
    title = METRICS[metric].title
    return f"{version} against {control}, {title[0].lower()}{title[1:]}: {found.words}."
