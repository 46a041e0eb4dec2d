"""What a node's agent exports, from what a meter kept."""

from collections.abc import Mapping

from serve.observing.meter import MemoryMeter
from serve.telemetry import METRIC_PREFIX, METRICS


def write_exposition(meter: MemoryMeter, **process: str) -> str:
    """Prometheus' text format, as Ray's exporter writes it.

    Args:
        process: the labels that tell this process from others.
    """
    lines = []
    for name in sorted({key[0] for key in (*meter.counters, *meter.gauges, *meter.histograms)}):
        full = f"{METRIC_PREFIX}{name}"
        lines.append(f"# HELP {full} {METRICS[name].description} [{METRICS[name].unit}]")
        lines.append(f"# TYPE {full} {METRICS[name].kind}")
        for values in (meter.counters, meter.gauges):
            for (other, labels), value in values.items():
                if other == name:
                    lines.append(f"{full}{_braces({**process, **dict(labels)})} {value}")
        for (other, labels), observed in meter.histograms.items():
            if other == name:
                lines += _histogram(name, {**process, **dict(labels)}, observed)
    return "\n".join((*lines, ""))


def _histogram(name: str, labels: Mapping[str, str], observed: list[float]) -> list[str]:
    full = f"{METRIC_PREFIX}{name}"
    lines = [
        f"{full}_bucket{_braces({**labels, 'le': str(bound)})} "
        f"{sum(value <= bound for value in observed)}"
        for bound in METRICS[name].buckets
    ]
    lines.append(f"{full}_bucket{_braces({**labels, 'le': '+Inf'})} {len(observed)}")
    lines.append(f"{full}_count{_braces(labels)} {len(observed)}")
    lines.append(f"{full}_sum{_braces(labels)} {sum(observed)}")
    return lines


def _braces(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}"
