"""Gauges whose series come and go, as versions and rollouts do."""

from collections.abc import Mapping

from serve.observing.meter import Labels, Meter

SHOWN_AS_NOTHING = 60
"""Times, a second or two apart: until whoever scrapes has seen it."""


class Gauges:
    """Of one name: a series that went is 0, instead of what it was last, and then no more: each
    that is kept costs 15 us a second (`serve.ray_meter`), and versions come for years."""

    def __init__(self, meter: Meter, name: str):
        self._meter = meter
        self._name = name
        self._shown: set[Labels] = set()
        self._gone: dict[Labels, int] = {}

    def show(self, values: Mapping[Labels, float]) -> None:
        """By labels: all there are now."""
        for gone in self._shown - values.keys():
            self._meter.set(self._name, 0.0, **dict(gone))
            self._gone[gone] = 0
        for gone in list(self._gone):
            self._gone[gone] += 1
            if gone in values:
                del self._gone[gone]
            elif self._gone[gone] > SHOWN_AS_NOTHING:
                del self._gone[gone]
                self._meter.forget(self._name, **dict(gone))
        for labels, value in values.items():
            self._meter.set(self._name, value, **dict(labels))
        self._shown = set(values)
