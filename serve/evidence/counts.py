"""What is counted of requests in experiments, by arm; what decides is in the database."""

from serve.observing.meter import Meter
from serve.observing.tenants import FirstNames
from serve.store.exposures import NewExposure

MAX_EXPERIMENTS = 50
"""With a label of their own in one process; they come a few in a week, and processes go."""


class ExposureCounts:
    """Of live requests; a shadow is nobody's."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self._names = FirstNames(MAX_EXPERIMENTS)

    def count(self, exposure: NewExposure) -> None:
        experiment = self._names.of(exposure.experiment_id)
        arm = exposure.arm if experiment == exposure.experiment_id else experiment
        outcome = "failure" if exposure.is_failure else "other" if exposure.code else "ok"
        by = {"experiment": experiment, "arm": arm}
        self._meter.add("sm4ll_exposures_total", **by, outcome=outcome)
        if outcome == "ok":
            self._meter.observe("sm4ll_exposure_duration_seconds", exposure.latency_ms / 1e3, **by)
