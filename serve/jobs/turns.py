"""Whose waiting jobs are claimed next: start-time fair queueing over tenants, two classes.

The gate of a router is as fair, but only about what has reached it. Pure; costs are predicted
GPU-seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serve.policy import Priority

PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
# Accounts of tenants that have nothing left to pay off are dropped above so many.
MAX_ACCOUNTS = 1024


@dataclass(frozen=True, slots=True)
class Turn:
    """A tenant with work of one class that could start."""

    tenant_id: str
    priority: Priority
    weight: float


class _Round:
    """One class: a tenant's next job may start in the round in which its last one is paid."""

    def __init__(self) -> None:
        self.now = 0.0
        self._paid: dict[str, float] = {}

    def start_of(self, turn: Turn) -> float:
        return max(self.now, self._paid.get(turn.tenant_id, 0.0))

    def charge(self, turn: Turn, cost_s: float) -> None:
        self.now = self.start_of(turn)
        self._paid[turn.tenant_id] = self.now + cost_s / turn.weight
        if len(self._paid) > MAX_ACCOUNTS:
            self._paid = {name: paid for name, paid in self._paid.items() if paid > self.now}


class Turns:
    """In the long run every waiting tenant gets its weight; batch work gets its floor."""

    def __init__(self, batch_floor: float):
        self._rounds = {name: _Round() for name in PRIORITIES}
        self._floor = batch_floor
        self._batch_credit_s = 0.0

    def choose(self, waiting: Iterable[Turn]) -> Turn | None:
        """Who is next of those; nothing changes before `charge`."""
        by_class: dict[Priority, list[Turn]] = {name: [] for name in PRIORITIES}
        for turn in waiting:
            by_class[turn.priority].append(turn)
        if not by_class["batch"]:
            self._batch_credit_s = 0.0
        is_batch = by_class["batch"] and (self._batch_credit_s > 0 or not by_class["interactive"])
        name: Priority = "batch" if is_batch else "interactive"
        start_of = self._rounds[name].start_of
        return min(by_class[name], key=lambda turn: (start_of(turn), turn.tenant_id), default=None)

    def charge(self, turn: Turn, cost_s: float) -> None:
        """A job of that tenant and class was started."""
        self._rounds[turn.priority].charge(turn, cost_s)
        if turn.priority == "batch":
            # Batch work that ran while nobody else waited owes nothing for it later.
            self._batch_credit_s = max(self._batch_credit_s - cost_s, -cost_s)
        else:
            self._batch_credit_s += cost_s * self._floor / (1 - self._floor)
