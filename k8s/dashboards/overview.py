"""What a platform engineer looks at first: is it well, and if not, where."""

from k8s.burn_rates import BUDGET_LEFT, BURN
from k8s.dashboards.model import Dashboard, Limits, Panel, Row
from k8s.queries import (
    Query,
    level,
    mean,
    observed,
    quantile,
    rate,
    ratio,
    select,
    total_rate,
    usd_per_hour,
    zeroed,
)

REQUESTS = "sm4ll_http_requests_total"
TRYON = "sm4ll_tryon_duration_seconds"
FAILED = total_rate(REQUESTS, (), 'status=~"5.."')


def build_overview() -> Dashboard:
    return Dashboard(
        "overview",
        "overview",
        "Requests, objectives, saturation and cost of the whole family.",
        (_glance(), _requests(), _tryons(), _objectives(), _saturation(), _tenants(), _inside()),
    )


def _glance() -> Row:
    hits = total_rate("sm4ll_cache_requests_total", (), 'outcome="hit"')
    asked = total_rate("sm4ll_cache_requests_total")
    return Row(
        "At a glance",
        (
            Panel("Requests", [rate(REQUESTS)], "HTTP requests a second, all routes.", "number", 3),
            Panel(
                "Failed by us",
                [ratio(f"({FAILED} or vector(0))", total_rate(REQUESTS))],
                "Share of HTTP requests that were answered 5xx.",
                *("number", 3, Limits(0.005, 0.05)),
            ),
            Panel("Try-on p50", [quantile(0.5, TRYON)], "Of those that succeeded.", "number", 3),
            Panel("Try-on p95", [quantile(0.95, TRYON)], "Of those that succeeded.", "number", 3),
            Panel(
                "Changed outside",
                [outside_violations()],
                "Answers that differed outside their region and were withheld. Must stay 0.",
                *("number", 3, Limits(1, 1)),
            ),
            Panel(
                "Devices busy",
                [rate("sm4ll_gpu_seconds_total", legend="devices")],
                "Device seconds of delivered pictures, a second: so many devices were busy.",
                *("number", 3),
            ),
            Panel(
                "Cost",
                [usd_per_hour("sm4ll_cost_usd_total")],
                "What the work of an hour costs at this pace, at the family's price.",
                *("number", 3),
            ),
            Panel(
                "Cache hits",
                [ratio(hits, asked)],
                "Share of look-ups in what is remembered that found something.",
                *("number", 3),
            ),
        ),
    )


def outside_violations() -> Query:
    """What must stay 0, and is shown as 0 before the first."""
    return zeroed(
        Query(f"sum ({select('sm4ll_outside_violations_total', 'counter')})", "1", "answers")
    )


def _requests() -> Row:
    return Row(
        "Requests",
        (
            Panel("By route", [rate(REQUESTS, ("route",))], "Requests a second.", "stacked"),
            Panel("By status", [rate(REQUESTS, ("status",))], "Requests a second.", "stacked"),
            Panel(
                "Duration by route, p95",
                [quantile(0.95, "sm4ll_http_request_duration_seconds", ("route",))],
                "From the first byte of the head to the last of the answer.",
            ),
            Panel(
                "Refusals and failures",
                [rate("sm4ll_refusals_total", ("code",))],
                "Answers that are problems, by code; the README's table says whose each is.",
            ),
            Panel(
                "In progress",
                [level("sm4ll_http_requests_in_progress", ("replica",))],
                "HTTP requests that each router is answering.",
            ),
            Panel(
                "Body, p95",
                [quantile(0.95, "sm4ll_http_request_body_bytes", ("route",))],
                "Sizes of requests' bodies as they were received.",
            ),
        ),
    )


def _tryons() -> Row:
    stages = "sm4ll_stage_duration_seconds"
    return Row(
        "Try-ons",
        (
            Panel(
                "By expert",
                [rate("sm4ll_tryons_total", ("expert",))],
                "Try-ons that ended, a second, however they did.",
                "stacked",
            ),
            Panel(
                "Duration by expert, p95",
                [quantile(0.95, TRYON, ("expert",))],
                "Of those that succeeded.",
            ),
            Panel(
                "Where the time goes",
                [mean(stages, ("stage",))],
                "Mean of each stage, on each other, within some 15 %; names are Server-Timing's.",
                "stacked",
            ),
        ),
    )


def _objectives() -> Row:
    return Row(
        "Objectives",
        (
            Panel(
                "Budget burn, 1 h",
                [Query(f"{BURN}1h", "1", "{{expert}} {{slo}}")],
                "1 uses up exactly the budget of the window; from 14.4 on somebody is paged.",
                limits=Limits(1, 14.4),
                width=12,
            ),
            Panel(
                "Budget left",
                [Query(BUDGET_LEFT, "ratio", "{{expert}} {{slo}}")],
                "Of the whole window's. Below 0 the objective is missed.",
                *("bars", 12),
            ),
        ),
    )


def _saturation() -> Row:
    used, permits = (
        f"sum by (version) ({select(name, 'gauge')})"
        for name in ("sm4ll_permits_in_use", "sm4ll_permits")
    )
    return Row(
        "Saturation",
        (
            Panel(
                "Waiting",
                [level("sm4ll_queue_depth", ("version", "class"))],
                "Requests that wait for a permit, in all routers.",
                "stacked",
            ),
            Panel(
                "Waiting work",
                [level("sm4ll_queue_gpu_seconds", ("version", "class"))],
                "Predicted device time of what waits.",
                "stacked",
            ),
            Panel(
                "Wait, p95",
                [quantile(0.95, "sm4ll_queue_wait_seconds", ("version",))],
                "For a permit, of requests that got one.",
            ),
            Panel(
                "Permits in use",
                [ratio(used, permits, "{{version}}")],
                "At 100 % more requests wait instead of run.",
                limits=Limits(0.9, 1.0),
            ),
            Panel(
                "Replicas",
                [level("sm4ll_replicas", ("version",), how="max")],
                "That run and are ready.",
            ),
            Panel(
                "Device busy",
                [rate("sm4ll_replica_busy_seconds_total", ("version",))],
                "Seconds a second in which replicas computed, added over a version's replicas.",
            ),
        ),
    )


def _tenants() -> Row:
    def top(query: Query) -> Query:
        return Query(f"topk(10, {query.expr})", query.unit, query.legend)

    return Row(
        "Busiest tenants",
        (
            Panel(
                "Requests",
                [top(rate("sm4ll_tenant_requests_total", ("tenant",)))],
                "HTTP requests a second; whoever has no name here is in `other`.",
                "bars",
            ),
            Panel(
                "Device time",
                [top(rate("sm4ll_tenant_gpu_seconds_total", ("tenant",)))],
                "Devices that worked for a tenant, on average.",
                "bars",
            ),
            Panel(
                "Cost",
                [top(usd_per_hour("sm4ll_tenant_cost_usd_total", ("tenant",)))],
                "Of an hour at this pace.",
                "bars",
            ),
        ),
    )


def _inside() -> Row:
    looked, hits = (
        total_rate("sm4ll_cache_requests_total", ("cache",), where)
        for where in ("", 'outcome="hit"')
    )
    jobs = ("sm4ll_jobs", ("state", "class"))
    return Row(
        "Inside",
        (
            Panel(
                "Event loop lag, p99",
                [quantile(0.99, "sm4ll_event_loop_lag_seconds", ("deployment",))],
                "How late the loop comes to a timer; nothing may compute on it.",
                limits=Limits(0.05, 0.1),
            ),
            Panel(
                "Cache hits",
                [ratio(hits, looked, "{{cache}}")],
                "Share of look-ups that found something.",
            ),
            Panel("Remembered", [level("sm4ll_cache_bytes", ("cache",))], "Held by all caches."),
            Panel("Jobs", [level(*jobs, how="max")], "That are not ended.", "stacked"),
            Panel(
                "Oldest job",
                [level("sm4ll_job_oldest_seconds", ("class",), how="max")],
                "Age of the oldest that waits.",
            ),
            Panel(
                "Attempts at jobs",
                [rate("sm4ll_job_attempts_total", ("outcome",))],
                "That ended, a second.",
            ),
            Panel(
                "Ledger",
                [rate("sm4ll_settlements_total", ("outcome",))],
                "Charges that ended, a second.",
            ),
            Panel(
                "Database silent",
                [zeroed(rate("sm4ll_store_errors_total", legend="errors"))],
                "Times a second that it did not answer.",
            ),
            Panel("Webhooks", [rate("sm4ll_webhooks_total", ("outcome",))], "Deliveries a second."),
            Panel(
                "Full-size copies",
                [rate("sm4ll_image_copies_total", ("kind",))],
                "Of pictures, a second; each costs memory bandwidth.",
            ),
            Panel(
                "Memory of processes",
                [level("sm4ll_replica_memory_bytes", ("deployment",))],
                "Resident, all replicas of a deployment together.",
            ),
            Panel(
                "Segmenting, p95",
                [quantile(0.95, "sm4ll_segment_duration_seconds", ("masker",))],
                "One picture in a segmenter, its wait for the batch included.",
            ),
            Panel(
                "Segmented pictures",
                [observed("sm4ll_segment_duration_seconds", ("masker",))],
                "A second; what is remembered is not segmented again.",
            ),
            Panel(
                "Pictures in a segmenter's batch",
                [mean("sm4ll_segment_batch_size", ("masker",))],
                "On average.",
            ),
            Panel(
                "Builds",
                [level("sm4ll_build_info", ("build",))],
                "Processes by what they run: two while a new one rolls out.",
            ),
        ),
    )
