"""Which replica gets an expert's next request: the one with the fewest, among all of them.

Serve's own choice looks at two replicas at random, which is right for requests that take
milliseconds. Here a wrong one waits for a whole pass while another device idles.
"""

import itertools
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

IdT = TypeVar("IdT", bound=Hashable)


class Turns:
    """Who is next among replicas, by their requests, and then by who waited longest for one.

    The second matters more than it seems: a choice is counted only when the request is on its
    way, and several are made before that; and what has ended is counted a little late, when
    the replica that was chosen longest ago is the one that is free.
    """

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self._last_turn: dict[Any, int] = {}

    def take(self, num_requests: Mapping[IdT, int | None]) -> list[IdT]:
        """All of them, the one whose turn it is first; None for what is not known: idle."""
        self._last_turn = {one: self._last_turn.get(one, 0) for one in num_requests}
        order = sorted(num_requests, key=lambda one: (num_requests[one] or 0, self._last_turn[one]))
        if order:
            self._last_turn[order[0]] = next(self._count)
        return order


class LeastLoadedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Requests keep their order."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._turns = Turns()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Serve takes the shortest queue of the first list that has room, then of the next."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        order = self._turns.take({one: known.get(one) for one in replicas})
        return [[replicas[one]] for one in order[:1]] + [[replicas[one] for one in order]]
