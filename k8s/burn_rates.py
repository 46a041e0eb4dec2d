"""The objectives of a family as rules: how fast each error budget burns, and who is told.

Source: The Site Reliability Workbook, chapter 5, "Alerting on SLOs", approach 6 (multiwindow,
multi-burn-rate alerts), https://sre.google/workbook/alerting-on-slos/ (2018).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from k8s.queries import parts_rate, total_rate
from k8s.rules import Alert, Group, Record, Severity
from serve.config import FamilyConfig
from serve.messages import EXPERTS
from serve.objectives import DURATION, FAILURES

HOURS = {"5m": 1 / 12, "30m": 0.5, "1h": 1.0, "2h": 2.0, "6h": 6.0, "1d": 24.0, "3d": 72.0}
"""Windows over which is counted, in hours."""
BY = ("expert",)
# What a caller waits for. A job's attempt that fails is tried again, which is no failure yet, and
# a job waits in turn by design: both have alerts of their own.
ASKED = 'way="request"'
BURN = "sm4ll:slo_burn:rate"
BAD = "sm4ll:slo_bad:rate"
EVENTS = "sm4ll:slo_events:rate"
OBJECTIVE = "sm4ll:slo_objective:ratio"
BUDGET_LEFT = "sm4ll:slo_budget_left:ratio"


@dataclass(frozen=True, slots=True)
class Pace:
    """One pair of windows. The long says that it matters, the short that it is still so."""

    long: str
    short: str
    budget: float
    """Share of the whole budget that is gone when it burnt so fast for the long window."""
    severity: Severity

    def factor(self, window_days: int) -> float:
        """How many times faster than what the objective allows."""
        return self.budget * window_days * 24 / HOURS[self.long]


# For 30 days 14.4, 6, 3 and 1 (workbook, table 5-8).
PACES = (
    Pace("1h", "5m", 0.02, "page"),
    Pace("6h", "30m", 0.05, "page"),
    Pace("1d", "2h", 0.10, "ticket"),
    Pace("3d", "6h", 0.10, "ticket"),
)


def burn_groups(family: FamilyConfig) -> list[Group]:
    """
    Args:
        family: one whose objectives were checked (serve/objectives.py).
    """
    records: list[Record] = [*_objectives(family)]
    for window in HOURS:
        records.extend(_availability(window))
        records.extend(_latency(family, window))
        # No events, no burning: NaN would stand in pictures and be compared with.
        records.append(
            Record(
                BURN + window,
                f"{BAD}{window} / ({EVENTS}{window} > 0) / (1 - {OBJECTIVE})",
            )
        )
    records.append(_budget_left(family))
    # One group: beside it, alerts would see what was recorded a round ago.
    return [Group("sm4ll-slo", [*records, *_alerts(family)])]


def _objectives(family: FamilyConfig) -> Iterator[Record]:
    for expert in EXPERTS:
        objective = family.slo.of(expert)
        for slo, share in (
            ("availability", objective.availability),
            ("latency", objective.latency_share),
        ):
            yield Record(OBJECTIVE, f"vector({share:g})", {"expert": expert, "slo": slo})


def _availability(window: str) -> Iterator[Record]:
    labels = {"slo": "availability"}
    ours = "|".join(FAILURES)
    counted = total_rate("sm4ll_tryons_total", BY, f'{ASKED},code=~"ok|{ours}"', window)
    failed = total_rate("sm4ll_tryons_total", BY, f'{ASKED},code=~"{ours}"', window)
    yield Record(EVENTS + window, counted, labels)
    # An expert that never failed has no series of failures.
    yield Record(BAD + window, f"{failed} or 0 * {counted}", labels)


def _latency(family: FamilyConfig, window: str) -> Iterator[Record]:
    labels = {"slo": "latency"}
    yield Record(EVENTS + window, parts_rate(DURATION, "_count", BY, ASKED, window), labels)
    alike: dict[float, list[str]] = defaultdict(list)
    for expert in EXPERTS:
        alike[family.slo.of(expert).latency_s].append(expert)
    in_time = " or ".join(
        parts_rate(
            *(DURATION, "_bucket", BY),
            f'{ASKED},expert=~"{"|".join(experts)}",le=~"{_bound(latency_s)}"',
            window,
        )
        for latency_s, experts in alike.items()
    )
    # Scrapes cut histograms in two: what is below 0 is rounding.
    answered = parts_rate(DURATION, "_count", BY, ASKED, window)
    yield Record(BAD + window, f"clamp_min({answered} - ({in_time}), 0)", labels)


def _bound(latency_s: float) -> str:
    """As a pattern: some exporters write 5, Python's writes 5.0."""
    text = f"{latency_s:g}".replace(".", "\\\\.")
    return text if "." in text else f"{text}(\\\\.0)?"


def _budget_left(family: FamilyConfig) -> Record:
    window = f"{family.slo.window_days}d"
    bad, events = (f"sum_over_time({name}5m[{window}])" for name in (BAD, EVENTS))
    return Record(BUDGET_LEFT, f"1 - {bad} / ({events} > 0) / (1 - {OBJECTIVE})")


def _alerts(family: FamilyConfig) -> list[Alert]:
    return [
        Alert(
            "Sm4llBudgetBurnsFast",
            _any_pace(family, "page"),
            "page",
            "{{ $labels.expert }}: the {{ $labels.slo }} budget burns"
            ' {{ $value | printf "%.1f" }} times too fast',
            "Look at the expert dashboard, with this one chosen: which codes, which stage, which "
            "version, since when. What began with a rollout: sm4ll rollouts abort ID; with an "
            "experiment: sm4ll experiments pause ID. Overloaded: raise max_replicas of the version "
            "or add nodes. At this pace the budget of the whole window is gone within days.",
        ),
        Alert(
            "Sm4llBudgetBurnsSlowly",
            _any_pace(family, "ticket"),
            "ticket",
            "{{ $labels.expert }}: the {{ $labels.slo }} budget burns"
            ' {{ $value | printf "%.1f" }} times as fast as it may, for a day or more',
            "Nothing is on fire; the objective will be missed if it stays so. Compare days on the "
            "expert dashboard; if it is load, plan capacity (sm4ll plan); if the objective "
            "was never real, change slo in the family file and render again.",
        ),
    ]


def _any_pace(family: FamilyConfig, severity: Severity) -> str:
    return "\nor\n".join(
        _too_fast(pace, family) for pace in PACES if pace.severity == severity
    )  # fmt: skip


def _too_fast(pace: Pace, family: FamilyConfig) -> str:
    factor = pace.factor(family.slo.window_days)
    seconds = 3600 * HOURS[pace.long]
    return (
        f"({BURN}{pace.long} > {factor:g} and {BURN}{pace.short} > {factor:g}"
        f" and {BAD}{pace.long} * {seconds:g} >= {family.slo.min_bad_events})"
    )
