"""Every request in an experiment leaves one exposure, however it ends, and nobody waits for it."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from sqlalchemy import Connection

from deployments.bundle import Bundle
from serve import errors
from serve.admission.cost import CostModel
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import Share
from serve.catalog import Catalog, Choice
from serve.config import FamilyConfig
from serve.designs import ExperimentDesign, MetricName
from serve.errors import GenerationFailed, Sm4llError, StoreUnavailable
from serve.evidence import witness
from serve.evidence.background import STEPS_BACK, WEAKEST
from serve.evidence.exposure import describe_exposure, is_failure
from serve.evidence.repainting import Repainted
from serve.evidence.witness import MAX_WAITING, Recorder, Witnesses
from serve.evidence.writer import ExposureWriter
from serve.experiments.allocation import allocate
from serve.experiments.assignment import Assignment
from serve.imaging.limits import ImageLimits
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.watch import Stopwatch
from serve.pipeline import Pipeline
from serve.schemas.tryon import TryOnOptions
from serve.steps import Sighting, TryOnResult, TryOnWork
from serve.store.engine import Database, Session
from serve.store.experiment_tables import (
    Experiment,
    ExperimentAllocation,
    ExperimentState,
    Verdict,
)
from serve.store.exposures import Seen, read_exposures
from serve.store.outcomes import NewOutcome, record_outcomes
from serve.store.routing import bump_routing
from tests.pictures import box_mask, encoded, photo
from tests.stores import START, FakeClock, add_tenant

PICTURES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
T = TypeVar("T")
PAINTED = {"outside", "colour", "pattern", "seam"}
DESIGN = ExperimentDesign.model_validate(
    {
        "id": "shirts",
        "expert": "top",
        "unit": "user",
        "fallback": "request",
        "arms": [
            {"name": "old", "version": "top@a", "weight": 5_000},
            {"name": "new", "version": "top@b", "weight": 5_000},
        ],
    }
)
DAY_S = 86_400.0


def bundle(version: str) -> Bundle:
    expert, name = version.split("@")
    told = {
        **{"expert": expert, "name": name, "title": version, "status": "benchmark"},
        "licence": {"name": "none", "commercial_use": True},
        "backend": {"kind": "noop"},
    }
    return Bundle.model_validate(told)


async def add_experiment(session: Session) -> None:
    experiment = Experiment(
        id=DESIGN.id,
        design=DESIGN.model_dump(mode="json"),
        state=ExperimentState.RUNNING,
        revision=1,
        created_by="key",
        created_at=START,
        updated_at=START,
    )
    session.add(experiment)
    await session.flush()
    weights = {arm.name: arm.weight for arm in DESIGN.arms}
    session.add(
        ExperimentAllocation(
            experiment_id=DESIGN.id,
            revision=1,
            ranges=allocate(weights).dump(),
            reason="",
            at=START,
        )
    )
    await bump_routing(session)


class Away(Database):
    """Another database's transactions, which fail while a test says so."""

    def __init__(self, database: Database):
        self._inner = database
        self.is_away = False

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self.is_away:
            raise StoreUnavailable("The database does not answer.")
        return await self._inner.write(work)


class Rig:
    """One version behind the real pipeline, and who watches it."""

    def __init__(self, database: Database, **writing: Any):
        self.database = database
        self.clock = FakeClock()
        self.error: Exception | None = None
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.store = Away(database)
        self.writer = ExposureWriter(self.store, 400 * DAY_S, self.clock, **writing)
        self.recorder = Recorder(self.writer, self.clock)
        version = bundle("top@a")
        family = FamilyConfig.model_validate({"experts": [{"version": "top@a"}]})
        self.sightings: list[Sighting] = []
        self.pipeline = Pipeline(
            catalog=Catalog(family, {"top@a": version}),
            segment=self._segment,
            experts={"top@a": self._paint},
            gate=Gate({"top@a": Lane(LaneLimits(4))}, CostModel()),
            threads=ThreadPoolExecutor(1),
            limits=ImageLimits(),
            witness=Witnesses(self, self.recorder),
        )
        assignment = Assignment("shirts", 1, "old", "top@a", "0" * 32)
        self.choice = Choice(version, "old", assignment)

    def saw(self, sighting: Sighting, /) -> None:
        self.sightings.append(sighting)

    async def _segment(self, request: object, /) -> Any:
        raise AssertionError("the caller brought a mask")

    async def _paint(self, request: ExpertRequest, /) -> ExpertReply:
        self.is_asked.set()
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        images = np.full((request.num_images, *request.crop_hwc.shape), 90, np.uint8)
        return ExpertReply(images, None, request.version, generate_ms=40.0)

    async def run(self, request_id: str = "job_1", **changes: Any) -> TryOnResult:
        work = TryOnWork(
            **{
                "options": TryOnOptions(
                    expert="top", category="shirt", tags={"season": "ss27"}, seed=7, format="png"
                ),
                **PICTURES,
                "request_id": request_id,
                "timeout_s": 60.0,
                "share": Share("acme"),
                "choice": self.choice,
                **changes,
            }
        )
        return await self.pipeline.run(work, Stopwatch())

    async def seen(self) -> list[Seen]:
        await self.recorder.flush()
        async with self.database.reading() as session:
            return await read_exposures(session, "shirts")


@pytest.fixture
async def rig(database: Database) -> AsyncIterator[Rig]:
    async with database.transaction() as session:
        await add_tenant(session)
        await add_experiment(session)
    rig = Rig(database)
    yield rig
    await rig.recorder.shut_down()


@pytest.mark.anyio
async def test_an_answer_leaves_its_arm_and_measures(rig: Rig) -> None:
    result = await rig.run()
    (seen,) = await rig.seen()
    assert (seen.tenant_id, seen.id, seen.request_id) == ("acme", "job_1", result.receipt.id)
    assert (seen.arm, seen.revision, seen.unit) == ("old", 1, "0" * 32)
    assert (seen.category, seen.tags) == ("shirt", {"season": "ss27"})
    assert (seen.code, seen.is_failure, seen.gpu_ms, seen.at) == ("", False, 40, START)
    assert seen.latency_ms >= result.receipt.timings_ms["total"]
    assert set(seen.metrics) == PAINTED
    assert seen.metrics["outside"] == 0.0
    assert seen.metrics["colour"] > 5.0  # grey is not what the product has


@pytest.mark.anyio
async def test_a_job_that_failed_first_counts_as_answered(rig: Rig) -> None:
    rig.error = GenerationFailed("no luck")
    with pytest.raises(GenerationFailed):
        await rig.run()
    (failed,) = await rig.seen()
    assert (failed.id, failed.code, failed.is_failure) == ("job_1", "generation_failed", True)
    assert failed.metrics == {}
    rig.error = None
    await rig.run()
    (seen,) = await rig.seen()
    assert (seen.code, seen.is_failure, set(seen.metrics)) == ("", False, PAINTED)


@pytest.mark.anyio
async def test_a_caller_who_leaves_and_a_mistake_of_ours_are_seen_as_such(rig: Rig) -> None:
    rig.may_answer.clear()
    request = asyncio.create_task(rig.run("job_left"))
    await rig.is_asked.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    rig.may_answer.set()
    rig.error = ZeroDivisionError("a mistake")
    with pytest.raises(ZeroDivisionError):
        await rig.run("job_broken")
    ends = {seen.id: (seen.code, seen.is_failure) for seen in await rig.seen()}
    assert ends == {"job_left": ("cancelled", False), "job_broken": ("internal", True)}
    left, broken = rig.sightings
    assert left.prepared is not None
    assert left.reply is broken.reply is None


@pytest.mark.anyio
async def test_who_takes_no_part_leaves_nothing(rig: Rig) -> None:
    await rig.run(choice=Choice(rig.choice.bundle, "default"))
    assert rig.sightings == []
    assert await rig.seen() == []


@pytest.mark.anyio
async def test_while_the_store_is_away_exposures_wait(rig: Rig) -> None:
    rig.store.is_away = True
    await rig.run("job_1")
    await rig.run("job_2")
    assert await rig.seen() == []
    rig.store.is_away = False
    assert [seen.id for seen in await rig.seen()] == ["job_1", "job_2"]
    assert rig.writer.num_lost == 0


@pytest.mark.anyio
async def test_what_waits_is_bounded_and_the_newest_stay(rig: Rig) -> None:
    await rig.run("job_0")
    (sighting,) = rig.sightings
    writer = ExposureWriter(rig.store, DAY_S, rig.clock, max_waiting=3)
    for number in range(1, 6):
        writer.add(described(sighting, f"job_{number}"))
    assert writer.num_lost == 2
    await writer.shut_down()
    assert [seen.id for seen in await rig.seen()] == ["job_0", "job_3", "job_4", "job_5"]


@pytest.mark.anyio
async def test_what_cannot_be_written_takes_nothing_with_it(rig: Rig) -> None:
    await rig.run("job_0")
    (sighting,) = rig.sightings
    gone = replace(described(sighting, "job_1"), experiment_id="gone")
    for one in (described(sighting, "job_2"), gone, described(sighting, "job_3")):
        rig.writer.add(one)
    assert [seen.id for seen in await rig.seen()] == ["job_0", "job_2", "job_3"]
    assert rig.writer.num_lost == 1


def described(sighting: Sighting, request_id: str) -> Any:
    work = replace(sighting.work, request_id=request_id)
    return describe_exposure(replace(sighting, work=work), START)


@pytest.mark.anyio
async def test_beyond_what_can_be_measured_exposures_are_written_without(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, is_begun = threading.Event(), threading.Event()
    priorities: list[int] = []

    def measure(request: ExpertRequest, reply: ExpertReply) -> dict[MetricName, float]:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        is_begun.set()
        may_go.wait()
        return {"colour": 1.0}

    monkeypatch.setattr(witness, "measure", measure)
    await rig.run("job_0")
    await asyncio.to_thread(is_begun.wait)
    (sighting,) = rig.sightings
    costs_us = []
    for number in range(1, 1_000):
        work = replace(sighting.work, request_id=f"job_{number}")
        started_s = time.perf_counter()
        rig.recorder.saw(replace(sighting, work=work))
        costs_us.append((time.perf_counter() - started_s) * 1e6)
    print(f"saw(): p50 {np.median(costs_us):.1f} us, p99 {np.quantile(costs_us, 0.99):.1f} us")
    may_go.set()
    seen = await rig.seen()
    assert len(seen) == 1_000
    assert sum("colour" in one.metrics for one in seen) == 1 + MAX_WAITING
    assert all(one.metrics["outside"] == 0.0 for one in seen)
    assert rig.recorder.counts == {"measured": 1 + MAX_WAITING, "unmeasured": 999 - MAX_WAITING}
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert set(priorities) == {min(WEAKEST, own + STEPS_BACK)}


@pytest.mark.anyio
async def test_a_judge_adds_what_it_knows_and_its_failure_takes_nothing(rig: Rig) -> None:
    async def judge(request: ExpertRequest, reply: ExpertReply) -> Mapping[MetricName, float]:
        if rig.sightings[-1].work.request_id == "job_2":
            raise StoreUnavailable("the judge is not there")
        return {"embedding": 0.75}

    rig.recorder.use_judge(judge)
    for request_id in ("job_1", "job_2"):
        await rig.run(request_id)
        await rig.recorder.flush()
    first, second = await rig.seen()
    assert set(first.metrics) == PAINTED | {"embedding"}
    assert set(second.metrics) == PAINTED
    assert rig.recorder.counts["unjudged"] == 1


@pytest.mark.anyio
async def test_a_shadow_is_a_row_beside_its_request(rig: Rig) -> None:
    await rig.run("job_1")
    (live,) = rig.sightings
    challenger = replace(
        rig.choice,
        arm="new",
        assignment=replace(
            live.choice.assignment,
            arm="new",
            version="top@b",  # type: ignore[type-var]
        ),
    )
    shadow = replace(live, choice=challenger, result=None, latency_ms=3.0)
    rig.recorder.record_shadow(live, Repainted(shadow, {"live": "ast_1", "shadow": "ast_2"}))
    async with rig.database.transaction() as session:
        said = [NewOutcome(request_id="job_1", verdict=Verdict.ACCEPTED)]
        await record_outcomes(session, "acme", said, START, START)
    first, second = sorted(await rig.seen(), key=lambda one: one.is_shadow)
    assert (first.id, first.request_id) == (second.id, second.request_id)
    assert (first.arm, second.arm, second.latency_ms) == ("old", "new", 3.0)
    assert second.pictures == {"live": "ast_1", "shadow": "ast_2"}
    assert set(second.metrics) == PAINTED - {"outside"}
    assert (set(first.verdicts), set(second.verdicts)) == ({"accepted"}, set())


@pytest.mark.anyio
async def test_at_the_end_all_that_was_seen_is_measured_and_written(rig: Rig) -> None:
    for number in range(3):
        await rig.run(f"job_{number}")
    await rig.recorder.shut_down()
    async with rig.database.reading() as session:
        seen = await read_exposures(session, "shirts")
    assert [set(one.metrics) for one in seen] == [PAINTED] * 3


@pytest.mark.anyio
async def test_a_witness_never_raises(rig: Rig) -> None:
    await rig.run("job_1")
    (sighting,) = rig.sightings
    rig.recorder.saw(replace(sighting, choice=Choice(rig.choice.bundle, "default")))
    assert len(await rig.seen()) == 1


NOT_ITS_FAULT = {
    *("InvalidRequest", "Unauthenticated", "Forbidden", "NotFound", "Conflict", "ImageTooLarge"),
    *("InvalidImage", "FetchRefused", "RateLimited", "QuotaExhausted", "StoreUnavailable"),
    *("Cancelled", "MaskRejected", "RequestError", "CapacityError"),
    *("ClusterError", "PackingImpossible", "RolloutFailed", "RolloutTimedOut", "RolloutRefused"),
    *("ControlPlaneUnreachable", "ControlPlaneRefused", "FieldConflict"),
}


def test_what_may_be_a_versions_fault_is_said_of_every_error() -> None:
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Sm4llError)
    }
    brought = TryOnWork(TryOnOptions(expert="top"), b"", b"", b"mask", "r", 1.0)
    blameless = {name for name, kind in kinds.items() if not is_failure(kind("why"), brought)}
    assert blameless == NOT_ITS_FAULT
    assert is_failure(kinds["MaskRejected"]("why"), replace(brought, mask=None))
