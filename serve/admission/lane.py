"""The scheduler in front of one deployment: what starts, waits, is refused or comes too late.

Pure: time is an argument, nothing is awaited; `gate.py` puts it on an event loop.
"""

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from serve.admission.drain import DrainRate
from serve.admission.fair_queue import FairQueue
from serve.admission.ticket import PRIORITIES, Priority, Ticket
from serve.errors import DeadlineExceeded, Overloaded

MIN_RETRY_AFTER_S = 1.0
# A tenant may hold this many times the places that are still free, so a tenant that fills the
# queue always leaves room for those who come later (dynamic thresholds: Choudhury and Hahne,
# IEEE/ACM Transactions on Networking 6(2), 1998).
SHARE_OF_FREE = 8
# Who is admitted has so many times the time that its wait should take: others come meanwhile, and
# have their turns before it. At 5 x overload of 20 tenants, 1.0 broke a third of the promises.
CAUTION = 2.0
# Of a full queue: how much shall have gone when a refused caller comes back.
RETRY_AT_DRAINED = 0.1


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What one router may do with one deployment."""

    max_in_flight: int
    """Permits: requests that may be at the deployment at once."""
    max_waiting: int = 256
    batch_floor: float = 0.1
    """Fraction of the GPU-seconds that batch work gets while interactive work waits too."""
    rate_guess: float = 1.0
    """GPU-seconds per second that the deployment works off, until that is measured."""

    def __post_init__(self) -> None:
        if self.max_in_flight < 1 or self.max_waiting < 0:
            raise ValueError(f"no room: {self.max_in_flight} in flight, {self.max_waiting} waiting")
        if not 0 < self.batch_floor < 1 or self.rate_guess <= 0:
            raise ValueError("batch_floor must be in (0, 1), rate_guess above 0")


@dataclass(frozen=True, slots=True)
class Turns:
    """What became of waiting work."""

    started: tuple[Ticket, ...]
    expired: tuple[Ticket, ...]
    """Cannot be finished by its deadline any more; no longer waits."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one version has of a lane."""

    num_permits: int
    """Of the whole lane."""
    num_in_flight: int
    num_waiting: Mapping[Priority, int]
    waiting_s: Mapping[Priority, float]
    """Predicted GPU-seconds."""


class Lane:
    """Never has a free permit while something waits; what was offered ends exactly once.

    Spare work holds permits that nobody needs, for as long as nobody does. Nothing that is decided
    about other work looks at it: who starts, waits or is refused, and when, is as without it.
    """

    def __init__(self, limits: LaneLimits):
        self.limits = limits
        self._queues: Mapping[Priority, FairQueue] = {name: FairQueue() for name in PRIORITIES}
        self._drain = DrainRate(limits.rate_guess)
        self._in_flight: dict[Ticket, float] = {}
        self._in_flight_s = 0.0
        self._spare: dict[Ticket, None] = {}
        self.is_asleep = False
        """No replica runs. Other work wakes one; nothing is lent for it."""
        self._waiting: set[Ticket] = set()
        self._expiries: list[tuple[float, int, Ticket]] = []
        self._num_offered = 0
        self._batch_credit_s = 0.0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_spare(self) -> int:
        return len(self._spare)

    def waiting_s(self) -> Counter[str]:
        """Predicted GPU-seconds that wait, per version."""
        return _sum_by_version(self._waiting)

    def running_s(self) -> Counter[str]:
        """Predicted GPU-seconds at the deployment, per version, as if just begun."""
        return _sum_by_version(self._in_flight)

    def crowd(self, version: str) -> Crowd:
        waiting = [ticket for ticket in self._waiting if ticket.version == version]
        classes = {
            name: [each.cost_s for each in waiting if each.share.priority == name]
            for name in PRIORITIES
        }
        return Crowd(
            num_permits=self.limits.max_in_flight,
            num_in_flight=sum(ticket.version == version for ticket in self._in_flight),
            num_waiting={name: len(costs) for name, costs in classes.items()},
            waiting_s={name: sum(costs) for name, costs in classes.items()},
        )

    def resize(self, max_in_flight: int, now_s: float) -> None:
        """Have so many permits from now on; call `advance` afterwards.

        What is beyond them ends in its own time. The deployment is taken to be faster or slower
        by as much, until that is measured.
        """
        if max_in_flight != self.limits.max_in_flight:
            self._drain.scale(max_in_flight / self.limits.max_in_flight)
            self.limits = replace(self.limits, max_in_flight=max_in_flight)
            self._mark_busy(now_s)

    def offer(self, ticket: Ticket, now_s: float) -> bool:
        """Start work, or let it wait.

        Returns:
            True when it has a permit; False when it waits for `advance` to name it.

        Raises:
            DeadlineExceeded: its deadline has passed.
            Overloaded: it would not be done in time, or too much waits; with the time to retry.
        """
        if ticket.deadline_s <= now_s:
            raise DeadlineExceeded(
                "the deadline passed before the expert was asked",
                retry_after_s=max(MIN_RETRY_AFTER_S, self.predict_wait_s(ticket, now_s)),
            )
        queue = self._queues[ticket.share.priority]
        # Whether it could be done in time is asked only where it would wait: an estimate that
        # is too high must not keep away the work that would correct it.
        if len(self._in_flight) < self.limits.max_in_flight and not self._waiting:
            queue.push(ticket)
            self._start(ticket, now_s)
            return True
        self._check_deadline(ticket, now_s)
        self._check_room(ticket, now_s)
        queue.push(ticket)
        self._waiting.add(ticket)
        if ticket.deadline_s < math.inf:
            self._num_offered += 1
            heapq.heappush(self._expiries, (ticket.latest_start_s, self._num_offered, ticket))
        return False

    def lend(self, ticket: Ticket) -> bool:
        """Start spare work on a free permit; it never waits.

        Returns:
            False where none is free, and so wherever something waits; or where nobody is there.
        """
        if self.is_asleep or len(self._in_flight) + len(self._spare) >= self.limits.max_in_flight:
            return False
        self._spare[ticket] = None
        return True

    def reclaim(self) -> tuple[Ticket, ...]:
        """Take back what was lent and is needed now: call it whenever other work has started.

        Returns:
            The spare work that must end: the newest, of which least is lost.
        """
        num_over = len(self._in_flight) + len(self._spare) - self.limits.max_in_flight
        num_taken = max(0, min(num_over, len(self._spare)))
        return tuple(self._spare.popitem()[0] for _ in range(num_taken))

    def end(self, ticket: Ticket, now_s: float) -> None:
        """Take back the permit or the place of work that is done or whose caller left.

        Does nothing for work that has neither; call `advance` afterwards.
        """
        if ticket in self._spare:
            del self._spare[ticket]
            return
        started_s = self._in_flight.pop(ticket, None)
        if started_s is not None:
            self._in_flight_s = self._in_flight_s - ticket.cost_s if self._in_flight else 0.0
            self._drain.retire(ticket.cost_s, started_s, now_s)
            if not self._waiting:  # otherwise `advance` gives the permit away in this moment
                self._mark_busy(now_s)
        elif ticket in self._waiting:
            self._drop(ticket)

    def advance(self, now_s: float) -> Turns:
        """Give every free permit away and take out what comes too late."""
        expired = self._expire(now_s)
        started: list[Ticket] = []
        while len(self._in_flight) < self.limits.max_in_flight:
            ticket = self._peek()
            if ticket is None:
                break
            if now_s + self._predict_stay_s(ticket, now_s) > ticket.deadline_s:
                self._drop(ticket)
                expired.append(ticket)
                continue
            self._waiting.discard(ticket)
            self._start(ticket, now_s)
            started.append(ticket)
        self._mark_busy(now_s)
        return Turns(tuple(started), tuple(expired))

    def next_expiry_s(self) -> float | None:
        """When the first waiting item will be too late; None when nothing can be."""
        while self._expiries and self._expiries[0][2] not in self._waiting:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def predict_wait_s(self, ticket: Ticket, now_s: float) -> float:
        """Seconds until work that came now would start on a device."""
        ahead_s = self._queues[ticket.share.priority].ahead_s(ticket)
        floor, batch = self.limits.batch_floor, self._queues["batch"]
        if ticket.share.priority == "interactive":
            others_s = min(batch.waiting_s, self._batch_credit_s + ahead_s * floor / (1 - floor))
        else:
            # Interactive work that is yet to come is not known: what waits, and no more than
            # the floor lets in front.
            slowed_s = ahead_s * (1 - floor) / floor
            others_s = min(self._queues["interactive"].waiting_s, slowed_s)
        return (self._in_flight_s + ahead_s + others_s) / self._drain.rate(now_s)

    def _check_deadline(self, ticket: Ticket, now_s: float) -> None:
        wait_s = self.predict_wait_s(ticket, now_s)
        late_s = now_s + CAUTION * wait_s + ticket.cost_s - ticket.deadline_s
        if late_s > 0:
            raise Overloaded(
                f"about {wait_s:.1f} s of work wait before this request to {ticket.version}, "
                f"which has {ticket.deadline_s - now_s:.1f} s",
                retry_after_s=max(
                    MIN_RETRY_AFTER_S, late_s / CAUTION
                ),  # the wait shrinks meanwhile
            )

    def _check_room(self, ticket: Ticket, now_s: float) -> None:
        num_free = self.limits.max_waiting - len(self._waiting)
        num_own = sum(queue.num_of(ticket.share.tenant) for queue in self._queues.values())
        if num_own >= SHARE_OF_FREE * num_free:
            waiting_s = sum(queue.waiting_s for queue in self._queues.values())
            drained_s = RETRY_AT_DRAINED * waiting_s / self._drain.rate(now_s)
            raise Overloaded(
                f"{len(self._waiting)} requests wait for {ticket.version}, {num_own} of them yours",
                retry_after_s=max(MIN_RETRY_AFTER_S, drained_s),
            )

    def _predict_stay_s(self, ticket: Ticket, now_s: float) -> float:
        """How long the deployment will take for it, behind what is there already."""
        held_s = (self._in_flight_s + ticket.cost_s) / self._drain.rate(now_s)
        return max(ticket.cost_s, held_s)

    def _peek(self) -> Ticket | None:
        interactive, batch = (self._queues[name].peek() for name in PRIORITIES)
        if batch is None or interactive is None:
            return interactive or batch
        return batch if self._batch_credit_s >= batch.cost_s else interactive

    def _start(self, ticket: Ticket, now_s: float) -> None:
        """Start what is next in its class."""
        popped = self._queues[ticket.share.priority].pop()
        assert popped is ticket
        self._settle_credit(ticket)
        self._in_flight[ticket] = now_s
        self._in_flight_s += ticket.cost_s
        self._mark_busy(now_s)

    def _settle_credit(self, started: Ticket) -> None:
        if not len(self._queues["batch"]):
            self._batch_credit_s = 0.0
        elif started.share.priority == "batch":
            self._batch_credit_s = max(0.0, self._batch_credit_s - started.cost_s)
        else:
            floor = self.limits.batch_floor
            self._batch_credit_s += started.cost_s * floor / (1 - floor)

    def _expire(self, now_s: float) -> list[Ticket]:
        expired = []
        while (expiry_s := self.next_expiry_s()) is not None and expiry_s <= now_s:
            ticket = self._expiries[0][2]
            self._drop(ticket)
            expired.append(ticket)
        return expired

    def _drop(self, ticket: Ticket) -> None:
        self._waiting.discard(ticket)
        self._queues[ticket.share.priority].remove(ticket)
        if len(self._expiries) > 64 + 2 * len(self._waiting):
            # Callers who left stay in the heap until their deadline, which may be hours away.
            self._expiries = [entry for entry in self._expiries if entry[2] in self._waiting]
            heapq.heapify(self._expiries)

    def _mark_busy(self, now_s: float) -> None:
        self._drain.mark(len(self._in_flight) >= self.limits.max_in_flight, now_s)


def _sum_by_version(tickets: set[Ticket] | dict[Ticket, float]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for ticket in tickets:
        sums[ticket.version] += ticket.cost_s  # type: ignore[assignment]
    return sums
