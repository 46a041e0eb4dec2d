"""Replicas on GPUs while a plan is being made: what lies where, what is free, what is spread."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.packing.bins.bounds import Sizes
from deployments.packing.demand import Demand
from deployments.packing.placement import UNITS, Gpu, Placement

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
        self.on_node = np.zeros((self.num_nodes, len(self.demands)), np.int64)
        self.on_gpu = np.zeros((len(self.gpus), len(self.demands)), np.int64)

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
        self.on_node[self.node_of[gpu], demand] += 1
        self.on_gpu[gpu, demand] += 1
        self.gpu_of[replica] = gpu

    def take(self, replica: int) -> None:
        gpu, demand = int(self.gpu_of[replica]), self.owner[replica]
        self.free[gpu] += self.size(replica, gpu)
        self.count[gpu] -= 1
        self.on_node[self.node_of[gpu], demand] -= 1
        self.on_gpu[gpu, demand] -= 1
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
        crowd = self.on_node[np.ix_(nodes, demands)].sum(axis=1)
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
        kin = self.on_node[self.node_of[fits], demand]
        kin_here = self.on_gpu[fits, demand]
        gap = (self.free - wanted)[fits]
        keys = (fits, gap, kin_here, kin, ~self.held[fits, demand], self.count[fits] == 0)
        best = np.lexsort(keys)[0]
        self.put(replica, int(fits[best]))
        return True

    def spread(self) -> None:
        """Move replicas of a deployment apart, over the nodes and then over the GPUs of a node,
        without using another GPU or moving a fixed one."""
        sizes = np.array(
            [
                [self.sizes_on(kind, demand) for demand in range(len(self.demands))]
                for kind in range(self.num_kinds)
            ]
        )
        movable = np.flatnonzero(~self.fixed & (self.gpu_of != NOWHERE)).tolist()
        for replica in movable:
            node, demand = self.node_of[self.gpu_of[replica]], self.owner[replica]
            if self.on_node[node, demand] > 1:
                self._spread_one(replica, self.on_node[self.node_of, demand], sizes)
        for replica in movable:
            gpu, demand = self.gpu_of[replica], self.owner[replica]
            if self.on_gpu[gpu, demand] > 1:
                same_node = self.node_of == self.node_of[gpu]
                kin = np.where(same_node, self.on_gpu[:, demand], UNITS)
                self._spread_one(replica, kin, sizes)

    def _spread_one(self, replica: int, kin: Sizes, sizes: Sizes) -> None:
        """Move one to where there is less of its kin.

        Args:
            kin: (gpus,) replicas of its deployment there.
            sizes: (kinds, demands) of a replica.
        """
        gpu = int(self.gpu_of[replica])
        better = (kin <= kin[gpu] - 2) & (self.kind_of == self.kind_of[gpu]) & (self.count > 0)
        if not better.any():
            return
        better &= kin == kin[better].min()
        if not self._move(replica, better):
            self._swap(replica, better, sizes[self.kind_of[gpu], self.owner])

    def _move(self, replica: int, targets: NDArray[np.bool_]) -> bool:
        size = self.size(replica, int(self.gpu_of[replica]))
        fits = np.flatnonzero(targets & (self.free >= size) & (self.count < self.most))
        if not len(fits):
            return False
        self.take(replica)
        self.put(replica, int(fits[np.argmin(self.free[fits])]))
        return True

    def _swap(self, replica: int, targets: NDArray[np.bool_], sizes: Sizes) -> None:
        """With one whose own kin do not get closer by it.

        Args:
            sizes: (replicas,) on this kind of GPU.
        """
        gpu, size = int(self.gpu_of[replica]), int(sizes[replica])
        there = self.gpu_of
        good = ~self.fixed & (there != NOWHERE) & targets[there]
        good &= sizes <= self.free[gpu] + size
        good &= size <= self.free[there] + sizes
        node, nodes = self.node_of[gpu], self.node_of[there]
        on_node, on_gpu = self.on_node[node, self.owner], self.on_gpu[gpu, self.owner]
        good &= (nodes == node) | (on_node < self.on_node[nodes, self.owner])
        good &= (nodes != node) | (on_gpu < self.on_gpu[there, self.owner])
        if not good.any():
            return
        other = int(np.argmax(good))
        target = int(there[other])
        self.take(replica)
        self.take(other)
        self.put(replica, target)
        self.put(other, gpu)
