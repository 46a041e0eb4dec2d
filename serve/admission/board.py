"""Shows the gate: gauges of who waits for each version, for how much work, and of its permits."""

from collections.abc import Mapping

from serve.admission.lane import Crowd
from serve.admission.ticket import PRIORITIES
from serve.observing.gauges import Gauges
from serve.observing.meter import Labels, Meter


class Board:
    """What a version that went had waiting is shown as nothing."""

    def __init__(self, meter: Meter):
        self._depth = Gauges(meter, "sm4ll_queue_depth")
        self._gpu_s = Gauges(meter, "sm4ll_queue_gpu_seconds")
        self._permits = Gauges(meter, "sm4ll_permits")
        self._in_use = Gauges(meter, "sm4ll_permits_in_use")
        self._replicas = Gauges(meter, "sm4ll_replicas")

    def show(self, crowds: Mapping[str, Crowd], num_replicas: Mapping[str, int]) -> None:
        """
        Args:
            num_replicas: of the versions of which it is known.
        """
        by_class = {
            (version, name): (("version", version), ("class", name))
            for version in crowds
            for name in PRIORITIES
        }
        self._depth.show(
            {labels: crowds[v].num_waiting[name] for (v, name), labels in by_class.items()}
        )
        self._gpu_s.show(
            {labels: crowds[v].waiting_s[name] for (v, name), labels in by_class.items()}
        )
        self._permits.show({_of(v): crowd.num_permits for v, crowd in crowds.items()})
        self._in_use.show({_of(v): crowd.num_in_flight for v, crowd in crowds.items()})
        self._replicas.show({_of(v): num for v, num in num_replicas.items()})


def _of(version: str) -> Labels:
    return (("version", version),)
