"""How much /dev/shm a pod needs: what Ray's object store holds of the calls that are under way.

An array above 100 KiB does not travel inside a call: its sender puts it into the object store of
its own node, and its reader's node gets a copy. Both keep it until the call is over.
"""

from collections.abc import Iterable, Sequence
from math import ceil, log2

from deployments.bundle import Bundle
from deployments.options import ExpertGroup, max_ongoing_requests
from deployments.packing.demand import largest_size
from serve.config import FamilyConfig
from serve.permits import count_permits

GIB = 2**30
SMALLEST_GIB = 1.0
STORE_SHARE = 0.9
"""Of /dev/shm that the object store is given: Ray refuses a store that is larger than what is free
there, and other libraries put a little there as well."""

MAX_PICTURES = 4
"""Of one request (`num_images`)."""
PERSON_SIDE_PX = 1024
"""Longer side of what a segmenter is shown; the original stays in the router."""
RGB, MASK, RGBA = 3, 1, 4
"""Bytes of a pixel."""


def expert_call_bytes(bundle: Bundle) -> int:
    """Of one call: crop, mask and product there, the painted crops back."""
    width_px, height_px = largest_size(bundle)
    crop = width_px * height_px
    canvas = bundle.product.canvas
    if canvas is None:
        product = bundle.product.max_side_px**2 * RGBA
    else:
        product = canvas.size[0] * canvas.size[1] * RGB
    return crop * (RGB + MASK) + product + MAX_PICTURES * crop * RGB


def segmenter_call_bytes() -> int:
    """Of one call: the person there, a region and a silhouette back."""
    return PERSON_SIDE_PX**2 * (RGB + 2 * MASK)


def in_router_bytes(
    family: FamilyConfig, groups: Sequence[ExpertGroup], num_segmenters: int
) -> int:
    """In one router's pod: what its permits let it have at all replicas there may be, and full
    batches at every segmenter."""
    router = family.router
    num_routers = max(1, router.autoscaling.min_replicas)
    at_experts = sum(
        count_permits(group, router, group.deployed.autoscaling.max_replicas, num_routers)
        * max(map(expert_call_bytes, group.bundles))
        for group in groups
    )
    return at_experts + in_segmenters_bytes(family, num_segmenters)


def in_segmenters_bytes(family: FamilyConfig, num_replicas: int) -> int:
    """In a pod of so many segmenters, each with two full batches."""
    return num_replicas * 2 * family.segmenter.max_batch_size * segmenter_call_bytes()


def in_experts_bytes(groups: Iterable[ExpertGroup], num_places: int) -> int:
    """In a pod with so many places, when the hungriest replicas there may be meet in it."""
    each = sorted(
        (
            max_ongoing_requests(group) * max(map(expert_call_bytes, group.bundles))
            for group in groups
            for _ in range(group.deployed.autoscaling.max_replicas)
        ),
        reverse=True,
    )
    return sum(each[:num_places])


def needed_volume_gib(in_flight_bytes: int) -> float:
    return in_flight_bytes / GIB / STORE_SHARE


def volume_gib(in_flight_bytes: int) -> float:
    """The next power of two.

    In steps, because another size is another pod, and so another cluster: a version or a replica
    more should not make one.
    """
    needed_gib = needed_volume_gib(in_flight_bytes)
    if needed_gib <= SMALLEST_GIB:
        return SMALLEST_GIB
    return float(2 ** ceil(log2(needed_gib)))
