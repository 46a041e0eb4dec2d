"""Metrics through Ray: each node's agent exports what the processes on it recorded.

Serve adds the labels application, deployment and replica in a replica of its own.
"""

import logging
import threading
import time
from collections import deque

from ray.serve import metrics
from ray.util.metrics import Metric as RayMetric

from serve.observing.meter import require_labels
from serve.telemetry import METRICS, Kind

logger = logging.getLogger("ray.serve")

# The shortest interval at which Ray's processes report (Ray 2.60, stats.h).
REPEAT_S = 1.0
MAX_OBSERVED = 100_000
RECORDS_PER_TURN = 20
"""Of the interpreter's lock: about 0.3 ms."""
NOTHING = 1e-100
"""What Ray takes for 0: of a sum with anything it is lost."""
Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


class RayMeter:
    """A `Meter`; one for each process. Ray is told by a thread, once a second.

    A record takes Ray about 15 us in a busy replica, and a request makes a dozen: what is added up
    here first is one, and the rest holds up no event loop.

    Ray reports a gauge once for each time it is set, and forgets it two reports later: what is
    known of a process at rest would be gone. So the last values are set again and again.
    """

    def __init__(self) -> None:
        self._made: dict[str, RayMetric] = {}
        # Reentrant: a destructor that records may interrupt whoever holds them.
        self._making = threading.RLock()
        self._complained: set[str] = set()
        self._adding = threading.RLock()
        self._sums: dict[Series, float] = {}
        self._gauges: dict[Series, float] = {}
        # Where nobody drains it, for lack of time, the oldest are lost.
        self._observed: deque[tuple[str, float, dict[str, str]]] = deque(maxlen=MAX_OBSERVED)
        self._telling: threading.Thread | None = None

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        if value > 0 and self._knows(name, "counter", labels):  # Ray refuses 0, which says nothing
            series = name, tuple(labels.items())
            with self._adding:
                self._sums[series] = self._sums.get(series, 0.0) + value

    def expect(self, name: str, /, **labels: str) -> None:
        self.add(name, NOTHING, **labels)

    def set(self, name: str, value: float, /, **labels: str) -> None:
        if self._knows(name, "gauge", labels):
            # In one order: the older of two values of one series would come back with every turn.
            series = name, tuple(sorted(labels.items()))
            with self._adding:
                self._gauges[series] = value

    def forget(self, name: str, /, **labels: str) -> None:
        with self._adding:
            self._gauges.pop((name, tuple(sorted(labels.items()))), None)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        if self._knows(name, "histogram", labels):
            self._observed.append((name, value, labels))

    def flush(self) -> None:
        """Tell Ray now."""
        with self._adding:
            sums, self._sums = self._sums, {}
            gauges = list(self._gauges.items())
            num_observed = len(self._observed)
        for (name, labels), value in sums.items():
            self._tell(name, value, dict(labels))
        for number in range(num_observed):
            try:
                observed = self._observed.popleft()
            except IndexError:
                break  # another thread tells Ray as well
            self._tell(*observed)
            if number % RECORDS_PER_TURN == 0:
                time.sleep(0)  # the event loop's turn
        for (name, labels), value in gauges:
            self._tell(name, value, dict(labels))

    def _tell(self, name: str, value: float, labels: dict[str, str]) -> None:
        metric = self._made[name]
        try:
            if isinstance(metric, metrics.Counter):
                metric.inc(value, labels)
            elif isinstance(metric, metrics.Gauge):
                metric.set(value, labels)
            else:
                metric.observe(value, labels)
        except Exception:
            self._complain(name)

    def _complain(self, name: str) -> None:
        """Once: nothing fails because it could not be measured."""
        if name not in self._complained:
            self._complained.add(name)
            logger.exception("%s is not recorded", name)

    def _knows(self, name: str, kind: Kind, labels: dict[str, str]) -> bool:
        if name in self._made:
            return True
        try:
            self._find(name, kind, labels)
        except Exception:
            self._complain(name)
            return False
        if self._telling is None:
            self._start_telling()
        return True

    def _start_telling(self) -> None:
        with self._making:
            if self._telling is None:
                self._telling = threading.Thread(
                    target=self._keep_telling, name="sm4ll-meter", daemon=True
                )
                self._telling.start()

    def _keep_telling(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            try:
                self.flush()
            except Exception:  # or nothing would be recorded here any more
                self._complain("this turn")

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
