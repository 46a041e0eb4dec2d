"""One expert and its versions: from the caller's wait down to single steps on the device."""

from k8s.burn_rates import BUDGET_LEFT, BURN
from k8s.dashboards.model import Dashboard, Limits, Panel, Row, Variable
from k8s.queries import Query, level, mean, quantile, rate, ratio, select, total_rate
from serve.objectives import DURATION, FAILURES

EXPERT = 'expert=~"$expert"'
VERSION = 'version=~"$version"'
BOTH = f"{EXPERT},{VERSION}"
VARIABLES = (
    Variable("expert", "sm4ll_tryons_total"),
    Variable("version", "sm4ll_tryons_total", EXPERT),
)


def build_expert() -> Dashboard:
    return Dashboard(
        "expert",
        "expert",
        "What callers of an expert get, where the time goes, and what its replicas do.",
        (_callers(), _objectives(), _waiting(), _replicas(), _cost()),
        VARIABLES,
    )


def _callers() -> Row:
    ours = "|".join(FAILURES)
    failed = total_rate("sm4ll_tryons_total", ("version",), f'{BOTH},code=~"{ours}"')
    ended = total_rate("sm4ll_tryons_total", ("version",), BOTH)
    return Row(
        "What callers get",
        (
            Panel(
                "Try-ons",
                [rate("sm4ll_tryons_total", ("version", "way"), BOTH)],
                "That ended, a second; a job is a way of its own.",
                "stacked",
            ),
            Panel(
                "Failed by us",
                [ratio(f"({failed} or 0 * {ended})", ended, "{{version}}")],
                "Share of try-ons that ended as a 5xx.",
                limits=Limits(0.005, 0.05),
            ),
            Panel(
                "Not ok, by code",
                [rate("sm4ll_tryons_total", ("code",), f'{BOTH},code!="ok"')],
                "Callers' mistakes too, which count against nobody.",
            ),
            Panel(
                "Duration",
                [
                    quantile(share, DURATION, ("version",), f'{BOTH},way="request"')
                    for share in (0.5, 0.95, 0.99)
                ],
                "Of requests that succeeded, from arrival to answer.",
            ),
            Panel(
                "Stages, mean",
                [mean("sm4ll_stage_duration_seconds", ("stage",), EXPERT)],
                "On each other they are the whole request, within some 15 %.",
                "stacked",
            ),
            Panel(
                "Stages, p95",
                [quantile(0.95, "sm4ll_stage_duration_seconds", ("stage",), EXPERT)],
                "Each for itself: the slow ones are not always the same requests.",
            ),
        ),
    )


def _objectives() -> Row:
    return Row(
        "Objectives",
        (
            Panel(
                "Budget burn",
                [
                    Query(
                        f"{BURN}{window}{{{EXPERT}}}", "1", f"{{{{expert}}}} {{{{slo}}}} {window}"
                    )
                    for window in ("5m", "1h", "6h", "3d")
                ],
                "Alerts compare a long window with a short one: 1h with 5m, 3d with 6h.",
                limits=Limits(1, 14.4),
                width=12,
            ),
            Panel(
                "Budget left",
                [Query(f"{BUDGET_LEFT}{{{EXPERT}}}", "ratio", "{{expert}} {{slo}}")],
                "Of the whole window's. Below 0 the objective is missed.",
                *("bars", 12),
            ),
        ),
    )


def _waiting() -> Row:
    used, permits = (
        f"sum by (version) ({select(name, 'gauge', VERSION)})"
        for name in ("sm4ll_permits_in_use", "sm4ll_permits")
    )
    wait = "sm4ll_queue_wait_seconds"
    return Row(
        "Waiting",
        (
            Panel(
                "Wait for a permit",
                [quantile(share, wait, ("version", "class"), VERSION) for share in (0.5, 0.95)],
                "Of requests that got one.",
            ),
            Panel(
                "Waiting",
                [level("sm4ll_queue_depth", ("version", "class"), VERSION)],
                "Requests, in all routers.",
                "stacked",
            ),
            Panel(
                "Waiting work",
                [level("sm4ll_queue_gpu_seconds", ("version", "class"), VERSION)],
                "Predicted device time of what waits.",
                "stacked",
            ),
            Panel(
                "Permits in use",
                [ratio(used, permits, "{{version}}")],
                "At 100 % more requests wait instead of run.",
                limits=Limits(0.9, 1.0),
            ),
            Panel(
                "Replicas",
                [level("sm4ll_replicas", ("version",), VERSION, how="max")],
                "That run and are ready.",
            ),
            Panel(
                "Wait in replicas",
                [quantile(0.95, "sm4ll_batch_wait_seconds", ("version",), VERSION)],
                "From arrival in the replica to the beginning of the pass.",
            ),
        ),
    )


def _replicas() -> Row:
    each = ("version", "replica")
    return Row(
        "Replicas",
        (
            Panel(
                "Busy",
                [rate("sm4ll_replica_busy_seconds_total", each, VERSION)],
                "Seconds a second in which each computed: 1 is always.",
            ),
            Panel(
                "Waiting in each",
                [level("sm4ll_replica_queue_depth", each, VERSION)],
                "Requests that wait in each replica.",
            ),
            Panel(
                "Errors",
                [rate("sm4ll_replica_errors_total", ("version", "code"), VERSION)],
                "Requests that failed in a replica, a second.",
            ),
            Panel(
                "Requests in one pass",
                [mean("sm4ll_batch_size", ("version",), VERSION)],
                "On average.",
            ),
            Panel(
                "Pass",
                [
                    quantile(share, "sm4ll_pass_duration_seconds", ("version",), VERSION)
                    for share in (0.5, 0.95)
                ],
                "One pass over all its steps.",
            ),
            Panel(
                "Step",
                [
                    quantile(share, "sm4ll_step_duration_seconds", ("version",), VERSION)
                    for share in (0.5, 0.95)
                ],
                "One denoising step: about what a cancel waits for.",
            ),
            Panel(
                "GPU memory",
                [level("sm4ll_replica_gpu_memory_bytes", each, VERSION)],
                "That each replica's process holds.",
            ),
            Panel(
                "Start",
                [level("sm4ll_replica_start_seconds", each, VERSION)],
                "Loading, warming up and checking against the golden samples.",
            ),
        ),
    )


def _cost() -> Row:
    def per_image(name: str) -> str:
        images = total_rate("sm4ll_images_total", ("version",), BOTH)
        return f"{total_rate(name, ('version',), BOTH)} / ({images} > 0)"

    return Row(
        "Cost",
        (
            Panel(
                "Pictures",
                [rate("sm4ll_images_total", ("version",), BOTH)],
                "Delivered, a second.",
            ),
            Panel(
                "Device time of a picture",
                [Query(per_image("sm4ll_gpu_seconds_total"), "seconds", "{{version}}")],
                "On average.",
            ),
            Panel(
                "Cost of a picture",
                [Query(per_image("sm4ll_cost_usd_total"), "usd", "{{version}}")],
                "Device time at the family's price, and what others charged.",
            ),
        ),
    )
