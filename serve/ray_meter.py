"""Metrics through Ray: each node's agent exports what the processes on it recorded.

Serve adds the labels application, deployment and replica in a replica of its own.
"""

import logging
import threading
import time

from ray.serve import metrics
from ray.util.metrics import Metric as RayMetric

from serve.observing.meter import require_labels
from serve.telemetry import METRICS, Kind

logger = logging.getLogger("ray.serve")

# The shortest interval at which Ray's processes report (Ray 2.60, stats.h).
REPEAT_S = 1.0


class RayMeter:
    """A `Meter`; one for each process. About 4 us a record (Ray 2.60).

    Ray reports a gauge once for each time it is set, and forgets it two reports later: what is
    known of a process at rest would be gone. So the last values are set again and again.
    """

    def __init__(self) -> None:
        self._made: dict[str, RayMetric] = {}
        self._making = threading.Lock()
        self._complained: set[str] = set()
        self._gauges: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._repeating: threading.Thread | None = None

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        if value > 0:  # Ray refuses 0, which says nothing
            try:
                self._find(name, "counter", labels).inc(value, labels)
            except Exception:
                self._complain(name)

    def set(self, name: str, value: float, /, **labels: str) -> None:
        try:
            self._find(name, "gauge", labels).set(value, labels)
        except Exception:
            self._complain(name)
            return
        self._gauges[name, frozenset(labels.items())] = value
        if self._repeating is None:
            self._start_repeating()

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        try:
            self._find(name, "histogram", labels).observe(value, labels)
        except Exception:
            self._complain(name)

    def _complain(self, name: str) -> None:
        """Once: nothing fails because it could not be measured."""
        if name not in self._complained:
            self._complained.add(name)
            logger.exception("%s is not recorded", name)

    def _start_repeating(self) -> None:
        with self._making:
            if self._repeating is None:
                self._repeating = threading.Thread(
                    target=self._repeat, name="sm4ll-gauges", daemon=True
                )
                self._repeating.start()

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            for (name, labels), value in list(self._gauges.items()):
                self._made[name].set(value, dict(labels))

    def _find(self, name: str, kind: Kind, labels: dict[str, str]) -> RayMetric:
        found = self._made.get(name)
        if found is not None:
            return found
        require_labels(name, kind, labels)
        with self._making:
            # Two of one name in a process would overwrite each other's values.
            if name not in self._made:
                self._made[name] = _make(name)
            return self._made[name]


def _make(name: str) -> RayMetric:
    metric = METRICS[name]
    description = f"{metric.description} [{metric.unit}]"
    if metric.kind == "counter":
        return metrics.Counter(name, description, tag_keys=metric.labels)
    if metric.kind == "gauge":
        return metrics.Gauge(name, description, tag_keys=metric.labels)
    return metrics.Histogram(
        name, description, boundaries=list(metric.buckets), tag_keys=metric.labels
    )
