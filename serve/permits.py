"""How much one router may ask of each expert deployment at once: the gate of a family.

What is at a deployment is beyond fair order: somebody who comes now waits for it, whoever's it
is. So there are no more permits than keep the devices at work, and they follow the replicas that
run, not those that may.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from deployments.bundle import Bundle
from deployments.options import ExpertGroup, group_experts, max_batch_size, max_ongoing_requests
from serve.admission.board import Board
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.config import FamilyConfig, RouterConfig, VersionId
from serve.observing.meter import NO_METER, Meter


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs now."""

    num_routers: int
    num_replicas: Mapping[str, int]
    """Of every expert deployment, by name."""


def count_permits(
    group: ExpertGroup, router: RouterConfig, num_replicas: int, num_routers: int
) -> int:
    """One router's part of what keeps the devices of a deployment at work; at least 1.

    One request for each replica; where requests share a pass, a full one and the next behind it.
    Two for a replica that is alone: it would idle while the next request travels, and somebody
    who comes meanwhile waits for a pass either way.
    """
    if router.max_in_flight_per_version is not None:
        return router.max_in_flight_per_version
    per_replica = max_ongoing_requests(group) if max_batch_size(group) > 1 else 1
    busy = max(2, num_replicas * per_replica)
    return max(1, math.ceil(busy / max(1, num_routers)))


def plan_lane(group: ExpertGroup, router: RouterConfig) -> LaneLimits:
    """As if the fewest replicas and routers there may be were at work, until more are seen."""
    num_replicas = max(1, group.deployed.autoscaling.min_replicas)
    num_routers = max(1, router.autoscaling.min_replicas)
    return LaneLimits(
        max_in_flight=count_permits(group, router, num_replicas, num_routers),
        max_waiting=router.max_waiting_per_version,
        batch_floor=router.batch_floor,
        # A replica has one device and works off one second in a second.
        rate_guess=num_replicas / num_routers,
    )


class Seats:
    """The gate of a family, and how many permits it has."""

    def __init__(
        self,
        family: FamilyConfig,
        bundles: Mapping[VersionId, Bundle],
        meter: Meter = NO_METER,
    ):
        self._router = family.router
        self._groups = group_experts(family, bundles)
        lanes: dict[str, Lane] = {}
        for group in self._groups:
            lane = Lane(plan_lane(group, family.router))
            # Versions that share replicas wait in one lane.
            lanes.update({bundle.version: lane for bundle in group.bundles})
        self.gate = Gate(lanes, meter=meter)
        self._board = Board(meter)
        self._num_replicas: dict[str, int] = {}

    def add(self, group: ExpertGroup) -> None:
        """A deployment that came later; in place of one of the same name."""
        self._groups = (*(one for one in self._groups if one.name != group.name), group)
        lane = Lane(plan_lane(group, self._router))
        for bundle in group.bundles:
            self.gate.add_lane(bundle.version, lane)

    def remove(self, group: ExpertGroup) -> None:
        self._groups = tuple(one for one in self._groups if one.name != group.name)
        for bundle in group.bundles:
            self.gate.drop_lane(bundle.version)

    def follow(self, fleet: Fleet) -> None:
        """Have the permits for what runs; of a deployment that is not named they stay."""
        self._num_replicas = {
            bundle.version: fleet.num_replicas[group.name]
            for group in self._groups
            if group.name in fleet.num_replicas
            for bundle in group.bundles
        }
        self.gate.resize(
            {
                group.bundles[0].version: count_permits(
                    group, self._router, fleet.num_replicas[group.name], fleet.num_routers
                )
                for group in self._groups
                if group.name in fleet.num_replicas
            }
        )
        self.gate.let_sleep(
            [
                group.bundles[0].version
                for group in self._groups
                if fleet.num_replicas.get(group.name) == 0
            ]
        )

    def look(self) -> None:
        """For a sampler: show who waits, and what there is to wait for."""
        self._board.show(self.gate.crowds(), self._num_replicas)


def build_gate(
    family: FamilyConfig, bundles: Mapping[VersionId, Bundle], meter: Meter = NO_METER
) -> Gate:
    """With the permits of a start."""
    return Seats(family, bundles, meter).gate
