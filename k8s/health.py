"""Alerts on what must not be, whatever the objectives say."""

from k8s.queries import parts_rate, select, total_rate
from k8s.rules import Alert, Group, Severity
from serve.config import FamilyConfig

ASKED_NOW = 'class="interactive"'


def health_groups(family: FamilyConfig) -> list[Group]:
    """
    Args:
        family: says how many requests may wait, and how many jobs run.
    """
    return [
        Group("sm4ll-promises", _promises()),
        Group("sm4ll-saturation", _saturation(family)),
        Group("sm4ll-replicas", _replicas()),
        Group("sm4ll-stores", _stores()),
    ]


def _grew(selector: str, by: str, window: str) -> str:
    """How much a counter grew; also one whose series began within the window.

    `increase` knows only series that were there before, and these begin with their first event.
    """
    return (
        f"sum by ({by}) (({selector} unless {selector} offset {window})"
        f" or increase({selector}[{window}]))"
    )


def _promises() -> list[Alert]:
    violations = select("sm4ll_outside_violations_total", "counter")
    lost = select("sm4ll_exposures_lost_total", "counter")
    return [
        Alert(
            "Sm4llOutsideChanged",
            f"{_grew(violations, 'expert, version', '1h')} > 0",
            "page",
            "{{ $labels.version }} changed pixels outside its region",
            "Nobody was given those answers; whoever asked got a 500. It is a bug of paste-back or "
            "of the encoder, never of a model. Keep the request ids from the routers' logs, then "
            "go back to the build before (sm4ll_build_info says which runs).",
        ),
        Alert(
            "Sm4llExposuresLost",
            f"{_grew(lost, 'deployment', '1h')} > 0",
            "ticket",
            "Experiments miss what some requests saw",
            "The database refused or did not answer while exposures were written. Reports say "
            "themselves whether the split is still as meant: sm4ll experiments report ID.",
        ),
        Alert(
            "Sm4llNotMeasured",
            f"absent({select('sm4ll_build_info', 'gauge')})",
            "page",
            "Nothing of sm4ll is being measured",
            "Either nothing runs, or Prometheus does not reach Ray's metrics port on the nodes: "
            "look at its targets. No other alert can fire until this one is gone.",
            lasting="5m",
        ),
    ]


def _saturation(family: FamilyConfig) -> list[Alert]:
    waiting = select("sm4ll_queue_depth", "gauge")
    full = 0.8 * family.router.max_waiting_per_version
    late = parts_rate("sm4ll_event_loop_lag_seconds", "_bucket", ("le", "deployment"), "", "5m")
    wait = parts_rate("sm4ll_queue_wait_seconds", "_bucket", ("le", "version"), "", "10m")
    used = select("sm4ll_permits_in_use", "gauge")
    permits = select("sm4ll_permits", "gauge")
    return [
        Alert(
            "Sm4llQueueNearlyFull",
            f"max by (version) (sum by (version, replica) ({waiting})) > {full:g}",
            "page",
            "{{ $labels.version }}: {{ $value }} requests wait in one router",
            f"From {family.router.max_waiting_per_version} on callers are refused (503 with "
            "Retry-After). Raise max_replicas of the version or add nodes; the tenant dashboard "
            "says who asks so much.",
            lasting="2m",
        ),
        Alert(
            "Sm4llSaturated",
            f"(sum by (version) ({used}) >= sum by (version) ({permits}))"
            f" and on (version) histogram_quantile(0.95, {wait}) > 10",
            "ticket",
            "{{ $labels.version }}: every permit is taken and callers wait over 10 s",
            "More work arrives than the replicas do. If replicas are at max_replicas, raise it; if "
            "fewer run, the nodes have no room: sm4ll plan says what fits where.",
            lasting="15m",
        ),
        Alert(
            "Sm4llEventLoopLate",
            f"histogram_quantile(0.99, {late}) > 0.1",
            "ticket",
            "{{ $labels.deployment }}: its event loop comes {{ $value | humanizeDuration }} late",
            "Something computes where only waiting belongs, or the cores are overcommitted: "
            "compare with the node's CPU, then py-spy dump the replica.",
            lasting="10m",
        ),
        _high_share(
            "Sm4llGpuMemoryNearlyFull",
            f"{select('sm4ll_gpu_memory_used_bytes', 'gauge')}"
            f" / ({select('sm4ll_gpu_memory_total_bytes', 'gauge')} > 0)",
            0.97,
            "GPU {{ $labels.gpu }} has no memory left",
            "The next larger picture may end as out_of_device_memory. Measure again what the "
            "versions on it take (sm4ll profile), and pack again (sm4ll plan).",
        ),
        _high_share(
            "Sm4llDiskNearlyFull",
            "ray_node_disk_utilization_percentage / 100",
            0.9,
            "The disk of node {{ $labels.ip }} is nearly full",
            "Ray spills to it, and refuses new tasks from 95 % on. With embedded stores the "
            "database and the blobs are there too: sm4ll store sweep.",
        ),
    ]


def _high_share(name: str, share: str, limit: float, summary: str, runbook: str) -> Alert:
    return Alert(name, f"{share} > {limit:g}", "ticket", summary, runbook, lasting="10m")


def _replicas() -> list[Alert]:
    waiting = f"sum by (version) ({select('sm4ll_queue_depth', 'gauge')})"
    running = f"max by (version) ({select('sm4ll_replicas', 'gauge')})"
    memory = select("sm4ll_replica_errors_total", "counter", 'code="out_of_device_memory"')
    return [
        Alert(
            "Sm4llNoReplicas",
            f"{waiting} > 0 and on (version) {running} == 0",
            "page",
            "{{ $labels.version }}: callers wait and no replica runs",
            "The replicas do not become ready (golden samples, weights, memory) or have no node. "
            "Serve's controller log says which; a version that idles at 0 needs its start-up time "
            "only, which is shorter than this alert waits.",
            lasting="5m",
        ),
        Alert(
            "Sm4llReplicasFail",
            f"{_grew('ray_serve_health_check_failures_total', 'deployment', '15m')} >= 3",
            "page",
            "{{ $labels.deployment }}: replicas fail their health check again and again",
            "Serve replaces each; work in them is done again elsewhere. Out of memory and device "
            "errors are the usual causes: logs of the replica, dmesg of its node.",
        ),
        Alert(
            "Sm4llOutOfDeviceMemory",
            f"{_grew(memory, 'version', '15m')} > 0",
            "ticket",
            "{{ $labels.version }}: a pass did not fit into the device's memory",
            "Its footprint is older than its use: sm4ll profile, then sm4ll plan.",
        ),
    ]


def _stores() -> list[Alert]:
    attempts = total_rate("sm4ll_job_attempts_total", (), "", "30m")
    failed = total_rate("sm4ll_job_attempts_total", (), 'outcome="retried"', "30m")
    deliveries = total_rate("sm4ll_webhooks_total", (), "", "30m")
    undelivered = total_rate("sm4ll_webhooks_total", (), 'outcome=~"put_off|given_up"', "30m")
    unsettled = select("sm4ll_settlements_total", "counter", 'outcome="lost"')
    return [
        Alert(
            "Sm4llStoreSilent",
            f"{total_rate('sm4ll_store_errors_total', (), '', '5m')} > 0",
            "page",
            "The database does not answer",
            "Callers are refused with store_unavailable and nothing accepted is lost. Check "
            "PostgreSQL, its connections, and the network in between: sm4ll store check.",
            lasting="3m",
        ),
        _counted(
            "Sm4llSettlementsFail",
            f"{_grew(unsettled, 'outcome', '1h')} > 0",
            "ticket",
            "Charges were refused by the ledger and are lost",
            "Delivered work is not in the ledger, and its reservation expires unpaid. The routers' "
            "logs (usage ledger) name each work item and why.",
        ),
        _counted(
            "Sm4llJobsWait",
            f"max({select('sm4ll_job_oldest_seconds', 'gauge', ASKED_NOW)}) > 600",
            "ticket",
            "A job that somebody waits for has not begun for {{ $value | humanizeDuration }}",
            "The runners are down, or the replicas have more than they can do: sm4ll top says "
            "which. Batches wait by design and count here never.",
        ),
        _counted(
            "Sm4llJobsFail",
            f"{failed} / ({attempts} > 0) > 0.2",
            "ticket",
            "More than a fifth of the attempts at jobs fail because of us",
            "Each is tried again, up to max_attempts, and parked then. sm4ll jobs list names "
            "codes; sm4ll batches retry takes parked ones up again.",
        ),
        _counted(
            "Sm4llWebhooksFail",
            f"{undelivered} / ({deliveries} > 0) > 0.5",
            "ticket",
            "More than half of the messages to receivers fail",
            "sm4ll webhooks deliveries names receivers and what they answered. One that is down "
            "is tried again for days; all at once is this side's network.",
        ),
    ]


def _counted(name: str, expr: str, severity: Severity, summary: str, runbook: str) -> Alert:
    return Alert(name, expr, severity, summary, runbook, lasting="15m")
