"""How much one router may ask of each expert deployment at once: the gate of a family."""

import math
from collections.abc import Mapping

from deployments.bundle import Bundle
from deployments.options import ExpertGroup, group_experts, max_ongoing_requests
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.config import FamilyConfig, RouterConfig, VersionId


def plan_lane(group: ExpertGroup, router: RouterConfig) -> LaneLimits:
    """One router's part of a deployment, as if all routers there may be were at work."""
    num_replicas = group.deployed.autoscaling.max_replicas
    num_routers = router.autoscaling.max_replicas
    part = math.ceil(num_replicas * max_ongoing_requests(group) / num_routers)
    return LaneLimits(
        max_in_flight=router.max_in_flight_per_version or part,
        max_waiting=router.max_waiting_per_version,
        batch_floor=router.batch_floor,
        # A replica has one device and works off one second in a second.
        rate_guess=num_replicas / num_routers,
    )


def build_gate(family: FamilyConfig, bundles: Mapping[VersionId, Bundle]) -> Gate:
    """Versions that share replicas wait in one lane."""
    lanes: dict[str, Lane] = {}
    for group in group_experts(family, bundles):
        lane = Lane(plan_lane(group, family.router))
        lanes.update({bundle.version: lane for bundle in group.bundles})
    return Gate(lanes)
