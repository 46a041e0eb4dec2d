"""How many replicas a version should have, from the work that waits for it; pure."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How long waiting work may take to be worked off, and how hastily replicas come and go."""

    min_replicas: int = 1
    max_replicas: int = 2
    target_drain_s: float = 10.0
    """With the wanted replicas, all that waits and runs is done in this time."""
    slack: float = 0.7
    """Fewer replicas only where they would drain it in this fraction of the target."""
    upscale_delay_s: float = 0.0
    downscale_delay_s: float = 300.0
    """Need must have been lower for so long; also before the last replica goes."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"bounds {self.min_replicas}..{self.max_replicas} are no range")
        if self.target_drain_s <= 0 or not 0 < self.slack <= 1:
            raise ValueError("target_drain_s must be above 0, slack in (0, 1]")


@dataclass(frozen=True, slots=True)
class Load:
    """GPU-seconds of one version over all routers."""

    queued_s: float
    running_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScaleState:
    """What is decided, and since when something else is wanted."""

    replicas: int
    higher_since_s: float | None = None
    lower_since_s: float | None = None
    most_since: int = 0
    """The largest need since it became lower: the drop goes no further than that."""


def decide_replicas(policy: DrainPolicy, state: ScaleState, load: Load, now_s: float) -> ScaleState:
    """The next decision, to be passed in again with the next load.

    Up to the need at once (or after upscale_delay_s), down only when the need stayed lower for
    downscale_delay_s, and then to the most that was needed in that time.
    """
    need = _need(policy, load, policy.target_drain_s)
    if need > state.replicas:
        since_s = now_s if state.higher_since_s is None else state.higher_since_s
        is_due = now_s - since_s >= policy.upscale_delay_s
        return ScaleState(need) if is_due else ScaleState(state.replicas, higher_since_s=since_s)
    # Measured against a shorter time, so that the load that added a replica does not remove it.
    enough = min(_need(policy, load, policy.slack * policy.target_drain_s), policy.max_replicas)
    if enough >= state.replicas:
        return ScaleState(max(policy.min_replicas, min(state.replicas, policy.max_replicas)))
    since_s, most = now_s, enough
    if state.lower_since_s is not None:
        since_s, most = state.lower_since_s, max(enough, state.most_since)
    if now_s - since_s >= policy.downscale_delay_s:
        return ScaleState(most)
    return ScaleState(state.replicas, lower_since_s=since_s, most_since=most)


def _need(policy: DrainPolicy, load: Load, drain_s: float) -> int:
    # Work that exists at all needs somebody, also where min_replicas is 0.
    need = math.ceil((load.queued_s + load.running_s) / drain_s - 1e-9)
    if load.queued_s + load.running_s > 0:
        need = max(1, need)
    return max(policy.min_replicas, min(need, policy.max_replicas))
