"""The gate as the router builds it, and what a request sees of it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from deployments.bundle import load_family
from deployments.options import ExpertGroup, group_experts
from serve.admission.gate import Gate
from serve.admission.lane import LaneLimits
from serve.admission.ticket import Share
from serve.catalog import Catalog
from serve.config import RouterConfig
from serve.errors import Overloaded
from serve.imaging.limits import ImageLimits
from serve.messages import ExpertReply, ExpertRequest, SegmentReply, SegmentRequest
from serve.observing.watch import Stopwatch
from serve.permits import Fleet, Seats, build_gate, count_permits, plan_lane
from serve.pipeline import Pipeline
from serve.schemas.tryon import TryOnOptions
from serve.steps import TryOnWork
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo

VERSION = "top@noop"


def limits_of(family_file: Path, version: str, router: RouterConfig) -> LaneLimits:
    groups = group_experts(*load_family(family_file))
    (group,) = (one for one in groups if version in {bundle.version for bundle in one.bundles})
    return plan_lane(group, router)


def group_named(family_file: Path, name: str) -> ExpertGroup:
    (group,) = (one for one in group_experts(*load_family(family_file)) if one.name == name)
    return group


@pytest.mark.parametrize(
    ("name", "num_replicas", "num_routers", "permits"),
    [
        ("Expert-top@1", 0, 1, 2),  # whoever comes first wakes it
        ("Expert-top@1", 1, 1, 2),
        ("Expert-top@1", 8, 1, 8),
        ("Expert-top@1", 8, 3, 3),
        ("Expert-top@1", 1, 4, 1),
        ("Experts-klein", 1, 1, 8),  # batches of 4: one runs, the next is full behind it
        ("Experts-klein", 3, 2, 12),
    ],
)
def test_permits_keep_the_running_replicas_at_work_and_no_more(
    family: Path, name: str, num_replicas: int, num_routers: int, permits: int
) -> None:
    group = group_named(family, name)
    assert count_permits(group, RouterConfig(), num_replicas, num_routers) == permits
    named = RouterConfig(max_in_flight_per_version=3)
    assert count_permits(group, named, num_replicas, num_routers) == 3


def test_a_router_starts_with_the_permits_of_the_fewest_replicas(family: Path) -> None:
    limits = limits_of(family, "top@1", RouterConfig())
    assert (limits.max_in_flight, limits.rate_guess) == (2, 1.0)


def test_permits_follow_the_replicas_and_what_waited_for_them_starts(family: Path) -> None:
    async def main() -> None:
        served = Served(family, 10, num_permits=None)
        calls = [served.begin(f"call {number}") for number in range(6)]
        await served.until_waiting(4)
        served.seats.follow(Fleet(1, {"Expert-top@noop": 5}))
        await served.until_waiting(1)
        served.seats.follow(Fleet(1, {"Expert-top@1": 8}))
        assert served.gate._lanes[VERSION].limits.max_in_flight == 5
        served.seats.follow(Fleet(1, {"Expert-top@noop": 1}))
        served.expert.let_go.set()
        await asyncio.gather(*calls)
        assert served.gate.running()[VERSION] == 0

    asyncio.run(main())


def test_permits_and_places_can_be_named(family: Path) -> None:
    named = RouterConfig(max_in_flight_per_version=3, max_waiting_per_version=7, batch_floor=0.3)
    limits = limits_of(family, "top@1", named)
    assert (limits.max_in_flight, limits.max_waiting, limits.batch_floor) == (3, 7, 0.3)


def test_versions_on_the_same_replicas_wait_in_one_lane_and_others_in_their_own(
    family: Path,
) -> None:
    config, bundles = load_family(family)
    lanes = build_gate(config, bundles)._lanes
    assert set(lanes) == set(bundles)
    groups = group_experts(config, bundles)
    assert max(len(group.bundles) for group in groups) > 1
    assert len(set(lanes.values())) == len(groups)
    for group in groups:
        assert len({lanes[bundle.version] for bundle in group.bundles}) == 1


@dataclass
class HeldExpert:
    """Answers when it is let go."""

    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, request: ExpertRequest, /) -> ExpertReply:
        self.asked.append(request.request_id)
        await self.let_go.wait()
        return ExpertReply(np.full((1, *request.crop_hwc.shape), 7, np.uint8), None, VERSION)


async def refuse_to_segment(request: SegmentRequest, /) -> SegmentReply:
    raise AssertionError("the request brought its mask")


class Served:
    """The pipeline with few permits and places in front of a held expert."""

    def __init__(self, family_file: Path, num_places: int, num_permits: int | None = 1):
        family, bundles = load_family(family_file)
        router = RouterConfig(
            max_in_flight_per_version=num_permits, max_waiting_per_version=num_places
        )
        family = family.model_copy(update={"router": router})
        self.seats = Seats(family, bundles)
        self.gate: Gate = self.seats.gate
        self.expert = HeldExpert()
        self.pipeline = Pipeline(
            catalog=Catalog(family, bundles),
            segment=refuse_to_segment,
            experts={VERSION: self.expert},
            gate=self.gate,
            threads=ThreadPoolExecutor(2),
            limits=ImageLimits(),
        )

    def begin(self, name: str, tenant: str = "a") -> asyncio.Task[object]:
        options = TryOnOptions(expert="top", version="noop")
        pictures = [encoded(image) for image in (photo(), photo(64, 64), box_mask())]
        work = TryOnWork(options, *pictures, name, 60.0, Share(tenant))
        return asyncio.create_task(self.pipeline.run(work, Stopwatch()))

    async def until_waiting(self, num: int) -> None:
        async with asyncio.timeout(30):
            while self.gate._lanes[VERSION].num_waiting != num or not self.expert.asked:
                await asyncio.sleep(0)


def test_requests_wait_before_the_expert_and_one_that_leaves_is_never_asked_of_it(
    family: Path,
) -> None:
    async def main() -> None:
        served = Served(family, 10)
        first = served.begin("first")
        await served.until_waiting(0)
        leaver = served.begin("leaver")
        await served.until_waiting(1)
        stayer = served.begin("stayer", tenant="b")
        await served.until_waiting(2)
        leaver.cancel()
        await served.until_waiting(1)
        assert served.expert.asked == ["first"]
        served.expert.let_go.set()
        await asyncio.gather(first, stayer)
        assert served.expert.asked == ["first", "stayer"]
        assert served.gate.running()[VERSION] == served.gate.backlog()[VERSION] == 0

    asyncio.run(main())


def test_a_request_without_a_place_is_overloaded_and_told_when_to_come_back(family: Path) -> None:
    async def main() -> None:
        served = Served(family, 0)
        first = served.begin("first")
        await served.until_waiting(0)
        with pytest.raises(Overloaded) as refused:
            await served.begin("second")
        assert (refused.value.retry_after_s or 0) >= 1
        served.expert.let_go.set()
        await first

    asyncio.run(main())


def test_the_wait_for_the_expert_is_a_stage_of_its_own(family: Path) -> None:
    files = {"person": encoded(photo()), "product": encoded(photo(64, 64))}
    files["mask"] = encoded(box_mask())
    with TestClient(build_local_api(family)) as http:
        response = http.post("/v1/tryon", data={"expert": "top", "version": "noop"}, files=files)
    assert ", queue;dur=" in response.headers["server-timing"]
