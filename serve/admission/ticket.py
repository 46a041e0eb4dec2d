"""What waits at the gate: whose work it is, what it costs, when it must be done."""

import math
from dataclasses import dataclass
from typing import Literal

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


@dataclass(frozen=True, slots=True)
class Share:
    """On whose behalf work is done, and how much of the devices that may claim."""

    tenant: str
    weight: float = 1.0
    """Against the other tenants' when all of them wait; above 0."""
    priority: Priority = "interactive"

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be above 0 and finite, got {self.weight}")


LOCAL_SHARE = Share("local")
"""Of every caller until there are keys."""


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One piece of work; equal to itself only."""

    share: Share
    version: str
    cost_s: float
    """Predicted GPU-seconds; above 0."""
    deadline_s: float = math.inf
    """On the scheduler's clock; what is not finished by then is worth nothing."""
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.cost_s < math.inf:
            raise ValueError(f"cost_s must be above 0 and finite, got {self.cost_s}")

    @property
    def latest_start_s(self) -> float:
        """Later than this it cannot be done in time even on an idle device."""
        return self.deadline_s - self.cost_s
