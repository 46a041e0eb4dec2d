"""A deployment in simulated time behind the real scheduler: no clock, no event loop, no sleep."""

import heapq
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from serve.admission.lane import Lane
from serve.admission.ticket import Ticket
from serve.errors import CapacityError

Ending = Literal["done", "refused", "expired", "late"]


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Outcome:
    ticket: Ticket
    arrived_s: float
    ended_s: float
    ending: Ending
    """`expired` while it waited, `late` when its deadline came on the device."""
    device_s: float = 0.0
    retry_after_s: float | None = None

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.arrived_s


class Deployment:
    """Replicas with one device each and one queue; what misses its deadline is stopped there."""

    def __init__(self, lane: Lane, num_replicas: int, noise: float, bias: float, seed: int):
        self._lane = lane
        self._num_idle = num_replicas
        self._dice = random.Random(seed)
        self._noise = noise
        self._bias = bias
        self._behind: deque[Ticket] = deque()
        self._ends: list[tuple[float, int, Ticket, float]] = []
        self._num_begun = 0
        self._arrived_s: dict[Ticket, float] = {}
        self.outcomes: list[Outcome] = []

    def next_s(self) -> float:
        """When something happens here without an arrival."""
        expiry_s = self._lane.next_expiry_s()
        times = [self._ends[0][0]] if self._ends else []
        return min([*times, *([expiry_s] if expiry_s is not None else [])], default=float("inf"))

    def arrive(self, ticket: Ticket, now_s: float) -> None:
        self._arrived_s[ticket] = now_s
        try:
            if self._lane.offer(ticket, now_s):
                self._behind.append(ticket)
        except CapacityError as exc:
            self._end(ticket, now_s, "refused", retry_after_s=exc.retry_after_s)
        self._begin(now_s)

    def happen(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            ended_s, _, ticket, began_s = heapq.heappop(self._ends)
            self._num_idle += 1
            self._lane.end(ticket, now_s)
            ending: Ending = "late" if ended_s >= ticket.deadline_s else "done"
            self._end(ticket, ended_s, ending, device_s=ended_s - began_s)
        turns = self._lane.advance(now_s)
        self._behind.extend(turns.started)
        for ticket in turns.expired:
            self._end(ticket, now_s, "expired")
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        while self._num_idle and self._behind:
            ticket = self._behind.popleft()
            takes_s = (
                ticket.cost_s * self._bias * self._dice.uniform(1 - self._noise, 1 + self._noise)
            )
            self._num_idle -= 1
            self._num_begun += 1
            end_s = max(now_s, min(now_s + takes_s, ticket.deadline_s))
            heapq.heappush(self._ends, (end_s, self._num_begun, ticket, now_s))

    def _end(
        self,
        ticket: Ticket,
        now_s: float,
        ending: Ending,
        device_s: float = 0.0,
        retry_after_s: float | None = None,
    ) -> None:
        arrived_s = self._arrived_s.pop(ticket)
        self.outcomes.append(Outcome(ticket, arrived_s, now_s, ending, device_s, retry_after_s))


def simulate(
    lane: Lane,
    arrivals: Iterable[Arrival],
    num_replicas: int,
    *,
    noise: float = 0.2,
    bias: float = 1.0,
    seed: int = 1,
) -> list[Outcome]:
    """Play the arrivals to the end.

    Args:
        noise: service times lie within this fraction of the prediction.
        bias: how many times as long as predicted everything takes.
    """
    deployment = Deployment(lane, num_replicas, noise, bias, seed)
    for arrival in sorted(arrivals, key=lambda one: one.at_s):
        while (next_s := deployment.next_s()) <= arrival.at_s:
            deployment.happen(next_s)
        deployment.arrive(arrival.ticket, arrival.at_s)
    while (next_s := deployment.next_s()) < float("inf"):
        deployment.happen(next_s)
    return deployment.outcomes


def poisson(rate_hz: float, until_s: float, seed: int) -> list[float]:
    """Arrival times of independent callers."""
    dice, now_s, times = random.Random(seed), 0.0, []
    while (now_s := now_s + dice.expovariate(rate_hz)) < until_s:
        times.append(now_s)
    return times


def percentile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]
