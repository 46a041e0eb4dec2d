"""Replicas on GPUs while a plan is being made: what lies where, what is free, what is spread."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.binpacking.bounds import Sizes
from deployments.demand import Demand
from deployments.placement import UNITS, Gpu, Placement

NOWHERE = -1
NEVER = UNITS + 1
"""Units of a deployment on a kind of GPU that it cannot run on."""


class Board:
    """Never holds more on a GPU than it may be given; a deployment's replicas all get the same
    share, because that is one number in Ray, so they lie only where that share is enough."""

    def __init__(self, demands: Sequence[Demand], placement: Placement) -> None:
        self.demands = tuple(demands)
        self.gpus: tuple[Gpu, ...] = placement.gpus
        kinds = placement.kinds
        nodes = list(dict.fromkeys(gpu.node for gpu in self.gpus))
        self.num_kinds = len(kinds)
        self.kind_of = np.array([list(kinds).index(gpu.kind) for gpu in self.gpus])
        self.node_of = np.array([nodes.index(gpu.node) for gpu in self.gpus])
        self.capacity = np.array([placement.usable_units(gib) for gib in kinds.values()])
        """By kind; what a replica that gets a whole GPU takes."""
        self.units = np.array(
            [[d.needs[k].units if k in d.needs else NEVER for d in self.demands] for k in kinds]
        ).reshape(len(kinds), len(self.demands))
        """(kinds, demands): what is needed there."""
        self.most = placement.max_replicas_per_gpu or UNITS
        counts = [demand.num_replicas for demand in self.demands]
        self.owner = np.repeat(np.arange(len(self.demands)), counts)
        """Which demand each replica belongs to."""
        self.held = np.zeros((len(self.gpus), len(self.demands)), bool)
        """Where the previous plan had which demand."""
        self.num_nodes = len(nodes)
        self.clear()

    def clear(self) -> None:
        """Take every replica off."""
        self.gpu_of = np.full(len(self.owner), NOWHERE)
        self.share = np.full(len(self.demands), 0)
        """Units that every replica of a demand is given; 0 while none lies anywhere."""
        self.fixed = np.zeros(len(self.owner), bool)
        """Replicas that stay where the previous plan had them."""
        self.free = self.capacity[self.kind_of].copy()
        self.count = np.zeros(len(self.gpus), np.int64)
        self.num_on = np.zeros((self.num_nodes, len(self.demands)), np.int64)

    @property
    def unplaced(self) -> Sizes:
        """Replicas that lie nowhere."""
        return np.flatnonzero(self.gpu_of == NOWHERE)

    def sizes_on(self, kind: int, demand: int) -> int:
        """What one replica takes of the free units of a GPU of that kind."""
        share = int(self.share[demand] or self.units[kind, demand])
        if self.units[kind, demand] > share:
            return NEVER
        return int(self.capacity[kind]) if share == UNITS else share

    def takes(self, kind: int, demand: int) -> bool:
        """Whether such a GPU can hold a replica at all."""
        return self.sizes_on(kind, demand) <= int(self.capacity[kind])

    def size(self, replica: int, gpu: int) -> int:
        return self.sizes_on(int(self.kind_of[gpu]), int(self.owner[replica]))

    def put(self, replica: int, gpu: int) -> None:
        demand = self.owner[replica]
        if not self.share[demand]:
            self.share[demand] = self.units[self.kind_of[gpu], demand]
        self.free[gpu] -= self.size(replica, gpu)
        self.count[gpu] += 1
        self.num_on[self.node_of[gpu], demand] += 1
        self.gpu_of[replica] = gpu

    def take(self, replica: int) -> None:
        gpu = int(self.gpu_of[replica])
        self.free[gpu] += self.size(replica, gpu)
        self.count[gpu] -= 1
        self.num_on[self.node_of[gpu], self.owner[replica]] -= 1
        self.gpu_of[replica] = NOWHERE

    def put_together(self, replicas: Sequence[int], kind: int) -> bool:
        """Put them on one empty GPU of that kind, if there is one: where they were before, else
        where the fewest of their own kin are, else on the node least in use."""
        empty = np.flatnonzero((self.count == 0) & (self.kind_of == kind))
        if not len(empty):
            return False
        demands = self.owner[list(replicas)]
        nodes = self.node_of[empty]
        used = np.bincount(self.node_of[self.count > 0], minlength=self.num_nodes)
        stayed = self.held[np.ix_(empty, demands)].sum(axis=1)
        crowd = self.num_on[np.ix_(nodes, demands)].sum(axis=1)
        best = np.lexsort((empty, used[nodes], crowd, -stayed))[0]
        for replica in replicas:
            self.put(replica, int(empty[best]))
        return True

    def put_somewhere(self, replica: int) -> bool:
        """Put one where it fits: on a GPU in use, on a node without kin, in the tightest gap."""
        demand = int(self.owner[replica])
        sizes = np.array([self.sizes_on(kind, demand) for kind in range(self.num_kinds)])
        wanted = sizes[self.kind_of]
        fits = np.flatnonzero((wanted <= self.free) & (self.count < self.most))
        if not len(fits):
            return False
        crowd = self.num_on[self.node_of[fits], demand]
        gap = (self.free - wanted)[fits]
        best = np.lexsort((fits, gap, crowd, ~self.held[fits, demand], self.count[fits] == 0))[0]
        self.put(replica, int(fits[best]))
        return True

    def spread(self) -> None:
        """Move replicas apart, node by node, without using another GPU or moving a fixed one."""
        for replica in np.flatnonzero(~self.fixed & (self.gpu_of != NOWHERE)).tolist():
            gpu, demand = int(self.gpu_of[replica]), int(self.owner[replica])
            if self.num_on[self.node_of[gpu], demand] <= 1:
                continue
            elsewhere = self.num_on[self.node_of, demand] == 0
            elsewhere &= (self.kind_of == self.kind_of[gpu]) & (self.count > 0)
            if elsewhere.any():
                self._move(replica, elsewhere) or self._swap(replica, elsewhere)

    def _move(self, replica: int, elsewhere: NDArray[np.bool_]) -> bool:
        size = self.size(replica, int(self.gpu_of[replica]))
        fits = np.flatnonzero(elsewhere & (self.free >= size) & (self.count < self.most))
        if not len(fits):
            return False
        self.take(replica)
        self.put(replica, int(fits[np.argmin(self.free[fits])]))
        return True

    def _swap(self, replica: int, elsewhere: NDArray[np.bool_]) -> bool:
        gpu = int(self.gpu_of[replica])
        kind = int(self.kind_of[gpu])
        by_demand = np.array([self.sizes_on(kind, demand) for demand in range(len(self.demands))])
        size, sizes = self.size(replica, gpu), by_demand[self.owner]
        there = self.gpu_of
        good = ~self.fixed & (there != NOWHERE) & elsewhere[there]
        good &= sizes <= self.free[gpu] + size
        good &= size <= self.free[there] + sizes
        good &= self.num_on[self.node_of[gpu], self.owner] == 0
        if not good.any():
            return False
        other = int(np.argmax(good))
        target = int(there[other])
        self.take(replica)
        self.take(other)
        self.put(replica, target)
        self.put(other, gpu)
        return True
