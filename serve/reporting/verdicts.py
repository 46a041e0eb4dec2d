"""What a report comes to, in words for whoever has five seconds."""

from collections.abc import Iterator, Mapping

from serve.experiments.desk import ROLLOUT_PREFIX
from serve.schemas.reports import Decision, Headline, MetricResult, Report

WORDS: Mapping[Decision, str] = {
    "better": "better",
    "worse": "worse",
    "equal": "equal within margin",
    "not_worse": "not worse than margin",
    "unknown": "no difference shown yet",
    "no_data": "nothing measured",
}
KINDS: Mapping[Decision, str] = {
    "better": "good", "equal": "good", "not_worse": "good", "worse": "bad",
}  # fmt: skip
TITLES: Mapping[Decision, str] = {
    "better": "{challenger} is better than {control}",
    "worse": "{challenger} is worse than {control}",
    "equal": "{challenger} is as good as {control}",
    "not_worse": "{challenger} is not worse than {control}",
    "unknown": "{challenger} or {control}: no difference shown yet",
    "no_data": "{challenger}: nothing measured yet",
}


def tell_title(report: Report, one: Headline) -> str:
    """The verdict as a heading."""
    if report.split.is_mismatch:
        return "No verdict: arms did not get the units they should"
    versions = {arm.name: arm.version for arm in report.arms}
    named = {"challenger": versions[one.challenger], "control": versions[report.control]}
    return TITLES[one.decision].format(**named)


def find_worse(report: Report, one: Headline) -> list[str]:
    """Titles of what else it is worse in: a better picture may be a slower one. Shadows count only
    where those who were asked say nothing: they are painted beside others, and slower for it."""
    own = [
        result
        for result in (*report.metrics, *report.shadows)
        if result.challenger.arm == one.challenger
        and result.metric != report.primary
        and (result.low is not None or result.decision == "worse")
    ]
    first: dict[str, MetricResult] = {}
    for result in own:
        first.setdefault(result.metric, result)
    return [result.title for result in first.values() if result.decision == "worse"]


def find_shadow(report: Report, one: Headline) -> MetricResult | None:
    """Its primary metric on the same inputs, where the verdict is about something else."""
    for result in report.shadows:
        if result.challenger.arm == one.challenger and result.metric == report.primary:
            return None if one.words.endswith(f": {result.words}.") else result
    return None


def tell_next(report: Report, one: Headline) -> str:
    """What to do about it; empty where there is nothing to be done any more."""
    if report.state not in ("running", "paused", "frozen"):
        return ""
    return " ".join(_steps(report, one))


def _steps(report: Report, one: Headline) -> Iterator[str]:
    versions = {arm.name: arm.version for arm in report.arms}
    if report.experiment.startswith(ROLLOUT_PREFIX):
        yield "Nothing: the rollout decides by itself. sm4ll rollouts list"
    elif report.split.is_mismatch:
        yield "Find out where exposures are lost, then compare under another id."
    elif one.decision == "worse":
        yield f"Keep {versions[report.control]}; sm4ll experiments end {report.experiment}"
    elif one.decision in KINDS and find_worse(report, one):
        yield f"Look at the pairs, and at what it is worse in, before {versions[one.challenger]}"
        yield "goes to anybody else."
    elif one.decision in ("better", "equal", "not_worse"):
        yield "Look at the pairs and at the other metrics; then"
        yield f"sm4ll experiments end {report.experiment} and"
        yield f"sm4ll rollouts start {versions[one.challenger]}"
    elif one.decision == "no_data":
        yield "Send try-ons of its expert, and wait a moment. Who takes part:"
        yield f"sm4ll experiments assign {report.experiment}"
    else:
        yield "Let it run on, and look again whenever you like: looking costs nothing."
