"""GPUs: what is reserved, what works, what is held, and what NVML sees."""

from k8s.dashboards.model import Dashboard, Limits, Panel, Row, Variable
from k8s.queries import Query, level, rate, ratio, select, total_rate

VERSION = 'version=~"$version"'
EACH = ("version", "replica")


def build_gpu_packing() -> Dashboard:
    return Dashboard(
        "gpu-packing",
        "GPU packing",
        "Whether what `sm4ll plan` packed is used: reserved against busy against memory.",
        (_versions(), _devices()),
        (Variable("version", "sm4ll_replica_gpu_share_ratio"),),
    )


def _versions() -> Row:
    reserved = f"sum by (version) ({select('sm4ll_replica_gpu_share_ratio', 'gauge', VERSION)})"
    busy = total_rate("sm4ll_replica_busy_seconds_total", ("version",), VERSION)
    return Row(
        "Reserved, busy, held",
        (
            Panel(
                "Reserved",
                [level("sm4ll_replica_gpu_share_ratio", ("version",), VERSION)],
                "GPUs that a version's replicas were given, together; 100 % is one whole GPU.",
                "stacked",
            ),
            Panel(
                "Busy",
                [rate("sm4ll_replica_busy_seconds_total", ("version",), VERSION)],
                "Replicas of a version that compute, on average.",
                "stacked",
            ),
            Panel(
                "Busy for what is reserved",
                [ratio(busy, reserved, "{{version}}")],
                "Above 100 % replicas that share a GPU compute at the same time.",
            ),
            Panel(
                "GPU memory of replicas",
                [level("sm4ll_replica_gpu_memory_bytes", EACH, VERSION)],
                "That each process holds: what its share was measured to be, or more.",
                *("stacked", 12),
            ),
            Panel(
                "Memory of processes",
                [level("sm4ll_replica_memory_bytes", ("deployment",))],
                "Resident in the node's own memory, by deployment.",
                *("stacked", 12),
            ),
        ),
    )


def _devices() -> Row:
    used, total = (
        f"max by (gpu) ({select(name, 'gauge')})"
        for name in ("sm4ll_gpu_memory_used_bytes", "sm4ll_gpu_memory_total_bytes")
    )
    return Row(
        "Devices, by NVML",
        (
            Panel(
                "Memory in use",
                [Query(used, "bytes", "{{gpu}} used"), Query(total, "bytes", "{{gpu}} there")],
                "Of everything on the GPU, strangers' processes too.",
            ),
            Panel(
                "Memory in use, share",
                [ratio(used, total, "{{gpu}}")],
                "The next larger picture may not fit above 97 %.",
                limits=Limits(0.9, 0.97),
            ),
            Panel(
                "A kernel runs",
                [level("sm4ll_gpu_utilization_ratio", ("gpu",), how="max")],
                "Share of time with any kernel on the GPU; says nothing about how full it was.",
            ),
        ),
    )
