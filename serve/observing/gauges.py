"""Gauges whose series come and go, as versions and rollouts do."""

from collections.abc import Mapping

from serve.observing.meter import Labels, Meter


class Gauges:
    """Of one name: a series that went is 0, instead of what it was last."""

    def __init__(self, meter: Meter, name: str):
        self._meter = meter
        self._name = name
        self._shown: set[Labels] = set()

    def show(self, values: Mapping[Labels, float]) -> None:
        """By labels: all there are now."""
        for gone in self._shown - values.keys():
            self._meter.set(self._name, 0.0, **dict(gone))
        for labels, value in values.items():
            self._meter.set(self._name, value, **dict(labels))
        self._shown = set(values)
