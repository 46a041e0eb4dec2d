"""One tenant: what it asks, what it gets, what it costs."""

from k8s.dashboards.model import Dashboard, Panel, Row, Variable
from k8s.queries import level, quantile, rate, ratio, total_rate, usd_per_hour

TENANT = 'tenant=~"$tenant"'
DURATION = "sm4ll_tenant_tryon_duration_seconds"


def build_tenant() -> Dashboard:
    return Dashboard(
        "tenant",
        "tenant",
        "Only the busiest have a name here; the others are one.",
        (_asks(), _takes()),
        (Variable("tenant", "sm4ll_tenant_requests_total"),),
    )


def _asks() -> Row:
    return Row(
        "What it asks and gets",
        (
            Panel(
                "Requests",
                [rate("sm4ll_tenant_requests_total", ("tenant",), TENANT)],
                "HTTP requests a second.",
                "stacked",
            ),
            Panel(
                "Not ok, by code",
                [rate("sm4ll_tenant_requests_total", ("tenant", "code"), f'{TENANT},code!="ok"')],
                "rate_limited and quota_exhausted are its own limits; 5xx are ours.",
            ),
            Panel(
                "Try-on duration",
                [quantile(share, DURATION, ("tenant",), TENANT) for share in (0.5, 0.95)],
                "Of those that succeeded.",
            ),
        ),
    )


def _takes() -> Row:
    own = total_rate("sm4ll_tenant_gpu_seconds_total", ("tenant",), TENANT)
    # A scalar: each tenant against the same whole.
    whole = f"scalar({total_rate('sm4ll_tenant_gpu_seconds_total')})"
    return Row(
        "What it takes",
        (
            Panel(
                "Devices",
                [rate("sm4ll_tenant_gpu_seconds_total", ("tenant",), TENANT)],
                "Device seconds a second: so many devices worked for it.",
                "stacked",
            ),
            Panel(
                "Share of device time",
                [ratio(f"{own}", f"({own} * 0 + {whole})", "{{tenant}}")],
                "Of all tenants'. Fair order looks at what waits, not at this.",
            ),
            Panel(
                "Cost",
                [usd_per_hour("sm4ll_tenant_cost_usd_total", ("tenant",), TENANT)],
                "Of an hour at this pace.",
                "stacked",
            ),
            Panel(
                "Tenants with a name",
                [level("sm4ll_named_tenants", ("replica",))],
                "In each router; their number is bounded, so that their series are.",
            ),
        ),
    )
