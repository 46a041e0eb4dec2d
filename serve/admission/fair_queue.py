"""Who is next: weighted deficit round robin over tenants, in predicted GPU-seconds.

A tenant goes into debt by the cost of what was started for it and pays off its weight per
round; its next item may start in the round in which it is out of debt. Rounds in which nobody
is are skipped at once (a heap knows the next that matters), so the quantum can be as small as
one likes, an expensive item costs no more decisions than a cheap one, and a tenant that comes
with nothing waiting is next, however much somebody else has queued.

Source: Shreedhar and Varghese, Efficient Fair Queueing using Deficit Round Robin (1995); in the
limit of a small quantum it is Goyal, Vin and Cheng, Start-time Fair Queueing (1996).
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from serve.admission.ticket import Ticket


class _Line:
    """One tenant's items in the order they came."""

    __slots__ = ("debt_round", "fresh_s", "is_in_heap", "items", "waiting_s", "weight")

    def __init__(self) -> None:
        self.items: OrderedDict[Ticket, None] = OrderedDict()
        self.debt_round = 0.0
        """The round in which all that was started for it is paid."""
        self.waiting_s = 0.0
        self.weight = 1.0
        self.is_in_heap = False
        self.fresh_s = 0.0
        """Cost of its first item while that stands in the current round."""


class FairQueue:
    """One class of work; every decision is O(log tenants)."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        # (round, place, tenant): a line has at most one entry, also when it has become empty.
        self._heap: list[tuple[float, int, str]] = []
        self._num_placed = 0
        self._round = 0.0
        self._last_round = 0.0
        self._prune_above = 64
        self._num_items = 0
        self._waiting_s = 0.0
        self._weights = 0.0
        self._fresh_s = 0.0

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for line in self._lines.values() for ticket in line.items)

    @property
    def waiting_s(self) -> float:
        """Predicted GPU-seconds of everything that waits."""
        return self._waiting_s if self._num_items else 0.0

    def num_of(self, tenant: str) -> int:
        """How many items of a tenant wait."""
        line = self._lines.get(tenant)
        return 0 if line is None else len(line.items)

    def push(self, ticket: Ticket) -> None:
        """Put an item behind its tenant's others."""
        line = self._lines.get(ticket.share.tenant)
        if line is None:
            self._prune()
            line = self._lines[ticket.share.tenant] = _Line()
        if not line.items:
            line.weight = ticket.share.weight
            self._weights += line.weight
        line.items[ticket] = None
        line.waiting_s += ticket.cost_s
        self._waiting_s += ticket.cost_s
        self._num_items += 1
        if not line.is_in_heap:
            self._place(ticket.share.tenant, line)

    def peek(self) -> Ticket | None:
        """The item that is next."""
        while self._heap:
            line = self._lines[self._heap[0][2]]
            if line.items:
                return next(iter(line.items))
            heapq.heappop(self._heap)
            line.is_in_heap = False
        return None

    def pop(self) -> Ticket | None:
        """Take the item that is next and put its cost on its tenant's debt."""
        ticket = self.peek()
        if ticket is None:
            return None
        self._round, _, tenant = heapq.heappop(self._heap)
        line = self._lines[tenant]
        line.is_in_heap = False
        weight = ticket.share.weight
        self._take(line, ticket)
        line.debt_round = self._round + ticket.cost_s / weight
        self._last_round = max(self._last_round, line.debt_round)
        if line.items:
            self._place(tenant, line)
        elif not self._num_items:
            self._forgive()
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take out an item that will not be started; it costs its tenant nothing.

        Raises:
            KeyError: it does not wait here.
        """
        line = self._lines[ticket.share.tenant]
        if ticket not in line.items:
            raise KeyError(ticket)
        was_fresh = line.fresh_s > 0
        self._take(line, ticket)
        if was_fresh and line.items:
            self._mark_fresh(line, next(iter(line.items)).cost_s)

    def ahead_s(self, ticket: Ticket) -> float:
        """About how many GPU-seconds would be started before an item that came now.

        Its tenant's own, and of each other's at most what that tenant's weight earns meanwhile.
        """
        line = self._lines.get(ticket.share.tenant)
        own_s, own_weight, own_fresh_s, rounds = 0.0, 0.0, 0.0, 0.0
        if line is not None:
            rounds = max(0.0, line.debt_round - self._round)
            own_s, own_fresh_s = line.waiting_s, line.fresh_s
            own_weight = line.weight if line.items else 0.0
        rounds += own_s / ticket.share.weight
        earned_s = self._fresh_s - own_fresh_s + (self._weights - own_weight) * rounds
        return own_s + max(0.0, min(self.waiting_s - own_s, earned_s))

    def _place(self, tenant: str, line: _Line) -> None:
        start_round = max(self._round, line.debt_round)
        self._num_placed += 1
        heapq.heappush(self._heap, (start_round, self._num_placed, tenant))
        line.is_in_heap = True
        if start_round == self._round:
            self._mark_fresh(line, next(iter(line.items)).cost_s)

    def _mark_fresh(self, line: _Line, cost_s: float) -> None:
        self._fresh_s += cost_s - line.fresh_s
        line.fresh_s = cost_s

    def _take(self, line: _Line, ticket: Ticket) -> None:
        self._mark_fresh(line, 0.0)
        del line.items[ticket]
        line.waiting_s -= ticket.cost_s
        self._waiting_s -= ticket.cost_s
        self._num_items -= 1
        if not line.items:
            line.waiting_s = 0.0
            self._weights -= line.weight
        if not self._num_items:
            # Sums of differences drift; nothing waiting is exactly nothing.
            self._waiting_s = self._weights = self._fresh_s = 0.0

    def _forgive(self) -> None:
        """Nobody waits, so nobody was wronged: all debts are paid."""
        self._round = self._last_round
        for _, _, tenant in self._heap:
            self._lines[tenant].is_in_heap = False
        self._heap.clear()

    def _prune(self) -> None:
        """Forget tenants that neither wait nor owe: amortised, and they lose nothing by it."""
        if len(self._lines) < self._prune_above:
            return
        self._lines = {
            tenant: line
            for tenant, line in self._lines.items()
            if line.items or line.is_in_heap or line.debt_round > self._round
        }
        self._prune_above = max(64, 2 * len(self._lines))
