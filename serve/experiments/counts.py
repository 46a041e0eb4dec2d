"""What is counted of rollouts: decisions, and the share of every challenger."""

from collections.abc import Iterable
from contextlib import suppress

from serve.designs import BUCKETS, RolloutPlan
from serve.observing.gauges import Gauges
from serve.observing.meter import Labels, Meter
from serve.store.rollout_tables import Rollout
from serve.store.rollouts import BEFORE_FIRST

MAX_ROLLOUTS = 20
"""Shown at once; there is at most one for each expert."""


class RolloutCounts:
    """One that has ended is shown with nothing; the default's metrics say where its version is."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self._shares = Gauges(meter, "sm4ll_rollout_share_ratio")

    def decided(self, action: str) -> None:
        self._meter.add("sm4ll_rollout_decisions_total", decision=action)

    def show(self, running: Iterable[Rollout]) -> None:
        """All that are under way, the oldest first."""
        shares: dict[Labels, float] = {}
        for rollout in list(running)[:MAX_ROLLOUTS]:
            # What a newer version of this system wrote is judged by that one.
            with suppress(ValueError, IndexError):
                plan = RolloutPlan.model_validate(rollout.plan)
                labels = ("rollout", rollout.id), ("version", plan.version)
                is_before = rollout.stage == BEFORE_FIRST
                shares[labels] = 0.0 if is_before else plan.stages[rollout.stage].share / BUCKETS
        self._shares.show(shares)
