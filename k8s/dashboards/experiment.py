"""Experiments: arms beside each other, and rollouts on their way.

For looking, not for deciding: what may be read at any time is in the report, with its intervals.
"""

from k8s.dashboards.model import Dashboard, Limits, Panel, Row, Variable
from k8s.queries import Query, level, quantile, rate, ratio, select, total_rate, zeroed

EXPERIMENT = 'experiment=~"$experiment"'
ARM = ("experiment", "arm")
EXPOSURES = "sm4ll_exposures_total"


def build_experiment() -> Dashboard:
    return Dashboard(
        "experiment",
        "experiment",
        "Arms side by side. Decide by `sm4ll experiments report`, which may be read at any time.",
        (_arms(), _rollouts()),
        (Variable("experiment", EXPOSURES),),
    )


def _arms() -> Row:
    exposed = total_rate(EXPOSURES, ARM, EXPERIMENT)
    whole = total_rate(EXPOSURES, ("experiment",), EXPERIMENT)
    failed = total_rate(EXPOSURES, ARM, f'{EXPERIMENT},outcome="failure"')
    split = f"{exposed} / on (experiment) group_left () ({whole} > 0)"
    lost = select("sm4ll_exposures_lost_total", "counter")
    return Row(
        "Arms",
        (
            Panel("Requests", [rate(EXPOSURES, ARM, EXPERIMENT)], "Exposures a second."),
            Panel(
                "Split",
                [Query(split, "ratio", "{{experiment}} {{arm}}")],
                "Share of requests that each arm gets. Units are what is split: heavy users bend "
                "this, and the report's test says whether it is as meant.",
                "stacked",
            ),
            Panel(
                "Failures",
                [ratio(f"({failed} or 0 * {exposed})", exposed, "{{experiment}} {{arm}}")],
                "Share of an arm's requests that failed.",
                limits=Limits(0.005, 0.05),
            ),
            Panel(
                "Duration",
                [
                    quantile(share, "sm4ll_exposure_duration_seconds", ARM, EXPERIMENT)
                    for share in (0.5, 0.95)
                ],
                "Of requests in experiments that succeeded.",
                width=16,
            ),
            Panel(
                "Exposures lost",
                [zeroed(Query(f"sum ({lost})", "1", "exposures"))],
                "That could not be written down: what the report does not know. Must stay 0.",
                *("number", 8, Limits(1, 1)),
            ),
        ),
    )


def _rollouts() -> Row:
    return Row(
        "Rollouts",
        (
            Panel(
                "Share of the challenger",
                [level("sm4ll_rollout_share_ratio", ("rollout", "version"), how="max")],
                "Of its expert's requests.",
                width=12,
            ),
            Panel(
                "Decisions",
                [rate("sm4ll_rollout_decisions_total", ("decision",))],
                "Of all rollouts, a second.",
                width=12,
            ),
        ),
    )
