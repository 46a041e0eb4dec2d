"""What the autoscaler is told: GPU-seconds of every version, as numbers with names.

Serve carries a replica's measurements to its controller as a flat dict of floats (the method
`record_autoscaling_stats`). Three names are ours, each followed by a version:

- `waiting_s:` and `running_s:`: at the gate of this replica alone; summed over all that report.
- `queued_s:`: in the database, which every replica that reports it sees whole; the largest counts.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

from serve.admission.autoscale import Load

WAITING = "waiting_s:"
RUNNING = "running_s:"
QUEUED = "queued_s:"

Reports = Mapping[str, Iterable[float]]
"""By name, what each replica says now."""


class Door(Protocol):
    """What a gate tells of itself; see `gate.Gate`."""

    def backlog(self) -> Mapping[str, float]: ...

    def running(self) -> Mapping[str, float]: ...


def report_gate(gate: Door) -> dict[str, float]:
    """What a replica with a gate reports, every version with it: zeros say that it is idle."""
    waiting = {WAITING + version: seconds for version, seconds in gate.backlog().items()}
    return waiting | {RUNNING + version: seconds for version, seconds in gate.running().items()}


def report_queued(queued_s: Mapping[str, float]) -> dict[str, float]:
    """What a replica reports that sees the jobs in the database."""
    return {QUEUED + version: seconds for version, seconds in queued_s.items()}


def sum_loads(reports: Iterable[Reports]) -> dict[str, Load]:
    """The load of every version that somebody reported, over all deployments that report.

    What is no number of seconds is not counted.
    """
    waiting: dict[str, float] = defaultdict(float)
    running: dict[str, float] = defaultdict(float)
    for of_deployment in reports:
        for name, values in of_deployment.items():
            kind, colon, version = name.partition(":")
            seconds = [value for value in values if 0 <= value < math.inf]
            if not seconds:
                continue
            if kind + colon == WAITING:
                waiting[version] += sum(seconds)
            elif kind + colon == QUEUED:
                waiting[version] += max(seconds)
            elif kind + colon == RUNNING:
                running[version] += sum(seconds)
    return {name: Load(waiting[name], running[name]) for name in sorted({*waiting, *running})}
