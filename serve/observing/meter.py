"""What counts and measures, by the names of serve/telemetry.py."""

from collections import defaultdict
from typing import Protocol

from serve.telemetry import METRICS, Kind

Labels = tuple[tuple[str, str], ...]


class Meter(Protocol):
    """Records by name. Cheap, from any thread, and never fails because of what is recorded.

    Every label that the table has for the name must be given, and no other.
    """

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        """To a counter."""

    def expect(self, name: str, /, **labels: str) -> None:
        """A counter whose series begins now, at nothing: a rate then sees its first event."""

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """A gauge."""

    def forget(self, name: str, /, **labels: str) -> None:
        """A gauge that says nothing any more: its series may end."""

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """One value of a histogram."""


class NoMeter:
    """Records nothing: the default of whatever may also run without a cluster."""

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None: ...

    def expect(self, name: str, /, **labels: str) -> None: ...

    def set(self, name: str, value: float, /, **labels: str) -> None: ...

    def forget(self, name: str, /, **labels: str) -> None: ...

    def observe(self, name: str, value: float, /, **labels: str) -> None: ...


NO_METER: Meter = NoMeter()


class MemoryMeter:
    """Keeps what was recorded, for whoever wants to look at it in this process."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, Labels], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Labels], float] = {}
        self.histograms: dict[tuple[str, Labels], list[float]] = defaultdict(list)

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        self.counters[_key(name, "counter", labels)] += value

    def expect(self, name: str, /, **labels: str) -> None:
        self.counters[_key(name, "counter", labels)] += 0.0

    def set(self, name: str, value: float, /, **labels: str) -> None:
        self.gauges[_key(name, "gauge", labels)] = value

    def forget(self, name: str, /, **labels: str) -> None:
        self.gauges.pop(_key(name, "gauge", labels), None)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        self.histograms[_key(name, "histogram", labels)].append(value)

    def total(self, name: str, **labels: str) -> float:
        """Of the counters of that name whose labels include these."""
        wanted = labels.items()
        return sum(
            value
            for (other, has), value in self.counters.items()
            if other == name and wanted <= dict(has).items()
        )


def require_labels(name: str, kind: Kind, labels: dict[str, str]) -> None:
    """
    Raises:
        KeyError: the table has no such name.
        ValueError: it is of another kind or has other labels.
    """
    metric = METRICS[name]
    if metric.kind != kind or set(metric.labels) != labels.keys():
        raise ValueError(f"{name} is a {metric.kind} by {metric.labels}, not a {kind} by {labels}")


def _key(name: str, kind: Kind, labels: dict[str, str]) -> tuple[str, Labels]:
    require_labels(name, kind, labels)
    return name, tuple(sorted(labels.items()))
