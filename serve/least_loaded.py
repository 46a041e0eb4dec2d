"""Which replica gets an expert's next request: the one with the fewest, among all of them.

Serve's own choice looks at two replicas at random, which is right for requests that take
milliseconds. Here a wrong one waits for a whole pass while another device idles.
"""

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class LeastLoadedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Requests keep their order; idle replicas, and those of which nothing is known, come first."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Serve takes the shortest queue of the first list that has room, then of the next.

        It asks a replica only where nobody of the list is known: one that just started would
        stay unknown for as long as another had room.
        """
        replicas = list(candidate_replicas)
        random.shuffle(replicas)  # among equals the first is taken
        known = self.replica_queue_len_cache
        idle = [replica for replica in replicas if not known.get(replica.replica_id)]
        return [idle, replicas] if idle else [replicas]
