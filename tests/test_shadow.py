"""A challenger paints what the control was asked, unasked; nobody waits for it or sees it."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from deployments.bundle import Bundle
from serve.admission.cost import CostModel
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import Share
from serve.catalog import Catalog, Choice
from serve.config import FamilyConfig
from serve.designs import ExperimentDesign
from serve.errors import (
    DeadlineExceeded,
    GenerationFailed,
    MaskRejected,
    Overloaded,
    ReplicaLost,
    Sm4llError,
)
from serve.evidence.repainting import Repainted, Repainter
from serve.evidence.shadow import ShadowRunner
from serve.experiments.allocation import allocate
from serve.experiments.assignment import Assignment, LiveExperiment
from serve.experiments.book import RoutingTable
from serve.experiments.shadow import find_challenger, is_sampled
from serve.imaging.limits import ImageLimits
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.watch import Stopwatch
from serve.pipeline import Pipeline
from serve.policy import TenantPolicy
from serve.schemas.tryon import TryOnOptions
from serve.steps import Sighting, TryOnResult, TryOnWork
from serve.store.columns import utc_now
from serve.store.experiment_tables import ExperimentState
from serve.store.experiments import insert_experiment
from serve.store.exposures import Seen, read_exposures
from serve.store.tables import Asset, AssetKind
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo

pytestmark = pytest.mark.anyio

DESIGN = ExperimentDesign.model_validate(
    {
        "id": "glasses",
        "expert": "eye",
        "arms": [
            {"name": "old", "version": "eye@1", "weight": 10_000},
            {"name": "new", "version": "eye@2", "weight": 0},
        ],
        "shadow": {"arm": "new", "share": 10_000},
    }
)
ASSIGNMENT = Assignment("glasses", 3, "old", "eye@1", "0" * 32)
REQUEST_ID = "req_1"


def bundle(version: str, **changes: Any) -> Bundle:
    expert, name = version.split("@")
    told = {
        **{"expert": expert, "name": name, "title": version, "status": "benchmark"},
        "licence": {"name": "none", "commercial_use": True},
        "backend": {"kind": "noop"},
        **changes,
    }
    return Bundle.model_validate(told)


class Expert:
    """Paints its colour over the crop, and waits to be told where a test wants it to."""

    def __init__(self, colour: int):
        self._colour = colour
        self.asked: list[ExpertRequest] = []
        self.error: Sm4llError | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.num_left = 0

    async def __call__(self, request: ExpertRequest, /) -> ExpertReply:
        self.asked.append(request)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        if self.error is not None:
            raise self.error
        images = np.full((request.num_images, *request.crop_hwc.shape), self._colour, np.uint8)
        return ExpertReply(images, None, request.version, generate_ms=40.0)


class Album:
    """Keeps assets in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, AssetKind, bytes, str, str]] = {}
        self.error: Sm4llError | None = None

    async def store(
        self,
        tenant_id: str,
        policy: TenantPolicy,
        kind: AssetKind,
        data: bytes,
        media_type: str,
        subject: str = "",
        *,
        width_px: int | None = None,
        height_px: int | None = None,
    ) -> Asset:
        if self.error is not None:
            raise self.error
        asset_id = f"ast_{len(self.kept)}"
        self.kept[asset_id] = (tenant_id, kind, data, media_type, subject)
        assert (width_px, height_px) == Image.open(io.BytesIO(data)).size
        return Asset(id=asset_id, tenant_id=tenant_id)

    async def delete(self, tenant_id: str, asset_id: str) -> None:
        assert self.kept.pop(asset_id)[0] == tenant_id

    def pixels(self, asset_id: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.kept[asset_id][2])).convert("RGB"))


class Book:
    def __init__(self) -> None:
        self.shadows: list[tuple[Sighting, Repainted]] = []

    def record_shadow(self, live: Sighting, shadow: Repainted, /) -> None:
        self.shadows.append((live, shadow))


class Rig:
    """Control, challenger and what runs the one after the other, on one device of one permit."""

    def __init__(self, challenger: Bundle, design: ExperimentDesign = DESIGN):
        control = bundle("eye@1")
        versions = {control.version: control, challenger.version: challenger}
        family = FamilyConfig.model_validate({"experts": [{"version": "eye@1"}]})
        catalog = Catalog(family, versions)
        lane = Lane(LaneLimits(1))
        self.gate = Gate({version: lane for version in versions}, CostModel())
        self.control, self.challenger = Expert(60), Expert(200)
        experts = {"eye@1": self.control, "eye@2": self.challenger}
        self.threads = ThreadPoolExecutor(1)
        self.pipeline = Pipeline(
            catalog, self._segment, experts, self.gate, self.threads, ImageLimits()
        )
        self.album, self.book = Album(), Book()
        self.erased: set[str] = set()
        self.choice = Choice(control, "old", ASSIGNMENT)
        self.runner = ShadowRunner(
            catalog=catalog,
            repainter=Repainter(
                gate=self.gate,
                experts=experts,
                prepare=self.pipeline.prepare,
                threads=self.threads,
                assets=self.album,
                is_erased=self._is_erased,
            ),
            book=self.book,
            head_start_s=0.0,
        )
        live = LiveExperiment(design, 3, allocate({"old": 10_000}))
        self.runner.follow(RoutingTable(1, {"eye": (live,)}, {}, ()))

    async def _is_erased(self, work: TryOnWork) -> bool:
        assert len(self.album.kept) >= 4, "asked before an erasure would have found them"
        return work.subject in self.erased

    async def _segment(self, request: object, /) -> Any:
        raise AssertionError("the caller brought a mask")

    async def answer(self, **changes: Any) -> Sighting:
        """A live request, as the witness is told of it."""
        work = TryOnWork(
            **{
                "options": TryOnOptions(expert="eye", num_images=2),
                "person": encoded(photo()),
                "product": encoded(photo(64, 64, seed=1)),
                "mask": encoded(box_mask()),
                "request_id": REQUEST_ID,
                "timeout_s": 60.0,
                "share": Share("acme"),
                "choice": self.choice,
                "subject": "ann",
                **changes,
            }
        )
        result = await self.pipeline.run(work, Stopwatch())
        prepared = await self.pipeline.prepare(work, self.choice.bundle, Stopwatch())
        reply = await self.control(prepared.crop.request)
        self.control.asked.clear()
        return Sighting(
            work=work,
            choice=self.choice,
            latency_ms=result.receipt.timings_ms["total"],
            result=result,
            prepared=prepared,
            reply=reply,
        )

    async def shadow(self, live: Sighting) -> Repainted | None:
        """What came of its shadow."""
        self.runner.saw(live)
        await self.runner.flush()
        return self.book.shadows[-1][1] if self.book.shadows else None


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig(bundle("eye@2", tiers={"normal": 7}, guidance=2.5))
    yield made
    await made.runner.close()
    made.threads.shutdown()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_challenger_gets_the_very_arrays_and_the_seed_of_the_control(rig: Rig) -> None:
    live = await rig.answer()
    assert await rig.shadow(live) is not None
    assert live.prepared is not None
    asked, (shadow,) = live.prepared.crop.request, rig.challenger.asked
    for name in ("crop_hwc", "region_hw", "product_hwc", "silhouette_hw", "landmarks"):
        assert getattr(shadow, name) is getattr(asked, name)
    assert (shadow.seed, shadow.num_images) == (asked.seed, 2)
    assert (shadow.version, shadow.num_steps, shadow.guidance) == ("eye@2", 7, 2.5)
    assert (shadow.request_id, shadow.is_spare) == ("req_1-shadow", True)
    assert rig.control.asked == []  # and the control is not asked again


async def test_what_came_of_it_is_recorded_beside_the_live_request(rig: Rig) -> None:
    live = await rig.answer()
    await rig.shadow(live)
    ((of, shadow),) = rig.book.shadows
    assert of is live
    seen = shadow.sighting
    assert seen.choice.assignment == replace(ASSIGNMENT, arm="new", version="eye@2")
    assert (seen.error, seen.result) == (None, None)
    assert seen.reply is not None
    assert seen.reply.version == "eye@2"
    assert seen.prepared is not None
    assert seen.prepared.crop.request is not None
    assert 0 < seen.latency_ms
    assert rig.runner.counts == {"answered": 1}


async def test_its_latency_is_the_live_ones_with_its_own_painting(rig: Rig) -> None:
    live = await rig.answer()
    assert isinstance(live.result, TryOnResult)
    timings_ms = {**live.result.receipt.timings_ms, "expert": 4_000.0}
    receipt = live.result.receipt.model_copy(update={"timings_ms": timings_ms})
    live = replace(live, result=replace(live.result, receipt=receipt), latency_ms=5_000.0)
    shadow = await rig.shadow(live)
    assert shadow is not None
    assert 1_000.0 < shadow.sighting.latency_ms < 3_000.0


async def test_the_pair_is_kept_as_pictures_that_differ_in_the_region_only(rig: Rig) -> None:
    live = await rig.answer()
    shadow = await rig.shadow(live)
    assert shadow is not None
    assert shadow.pictures is not None
    assert set(shadow.pictures) == {"live", "shadow", "before", "product"}
    kept = rig.album.kept.values()
    assert {(one[0], one[1], one[3], one[4]) for one in kept} == {
        ("acme", AssetKind.RESULT, "image/webp", "ann")
    }
    assert live.prepared is not None
    asked = live.prepared.crop.request
    of_live, of_shadow, before = (
        rig.album.pixels(shadow.pictures[name]) for name in ("live", "shadow", "before")
    )
    assert np.array_equal(before, asked.crop_hwc)
    outside = asked.region_hw == 0
    for picture in (of_live, of_shadow):
        assert np.array_equal(picture[outside], before[outside])
    middle = tuple(np.argwhere(asked.region_hw).mean(axis=0).astype(int))
    assert (of_live[middle].mean(), of_shadow[middle].mean()) == (60, 200)
    assert rig.album.pixels(shadow.pictures["product"]).shape == (64, 64, 3)


@pytest.mark.parametrize("store_error", [None, Overloaded("full")], ids=["keeps none", "store"])
async def test_a_shadow_counts_without_pictures(rig: Rig, store_error: Sm4llError | None) -> None:
    """Of a tenant that keeps nothing, and where the store is away."""
    rig.album.error = store_error
    policy = TenantPolicy() if store_error else TenantPolicy(result_retention_s=0)
    shadow = await rig.shadow(await rig.answer(policy=policy))
    assert shadow is not None
    assert (shadow.pictures, rig.album.kept) == (None, {})
    assert rig.runner.counts == {"answered": 1}


async def test_pictures_of_a_subject_that_was_erased_meanwhile_go_as_well(rig: Rig) -> None:
    rig.erased.add("ann")
    shadow = await rig.shadow(await rig.answer(subject="ann"))
    assert shadow is not None
    assert (shadow.pictures, rig.album.kept) == (None, {})


async def test_a_challenger_that_wants_other_inputs_gets_its_own_with_the_same_seed() -> None:
    rig = Rig(bundle("eye@2", crop={"size_px": 512}))
    live = await rig.answer()
    shadow = await rig.shadow(live)
    assert live.prepared is not None
    asked, (request,) = live.prepared.crop.request, rig.challenger.asked
    assert max(request.crop_hwc.shape[:2]) == 512 != max(asked.crop_hwc.shape[:2])
    assert request.seed == asked.seed
    assert shadow is not None
    assert shadow.pictures is not None
    rig.threads.shutdown()


@pytest.mark.parametrize(
    "error",
    [GenerationFailed("no"), ReplicaLost("gone"), MaskRejected("too large")],
    ids=lambda error: error.code,
)
async def test_a_challenger_that_fails_is_evidence(rig: Rig, error: Sm4llError) -> None:
    rig.challenger.error = error
    shadow = await rig.shadow(await rig.answer())
    assert shadow is not None
    assert (shadow.sighting.error, shadow.sighting.reply, shadow.pictures) == (error, None, None)
    assert shadow.sighting.latency_ms > 0
    assert rig.runner.counts == {"failed": 1}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Overloaded("closing"), "busy"), (DeadlineExceeded("behind others"), "late")],
)
async def test_a_challenger_that_had_to_make_room_is_none(
    rig: Rig, error: Sm4llError, reason: str
) -> None:
    rig.challenger.error = error
    assert await rig.shadow(await rig.answer()) is None
    assert rig.runner.counts == {reason: 1}


async def test_while_live_work_has_the_permits_nothing_is_painted_again(rig: Rig) -> None:
    live = await rig.answer()
    assert live.prepared is not None
    async with rig.gate.admit(live.prepared.crop.request, Share("acme")):
        assert await rig.shadow(live) is None
    assert (rig.challenger.asked, rig.runner.counts) == ([], {"busy": 1})


async def test_live_work_takes_the_permit_back_and_the_call_is_cancelled(rig: Rig) -> None:
    live = await rig.answer()
    rig.challenger.may_answer.clear()
    rig.runner.saw(live)
    while not rig.challenger.asked:
        await asyncio.sleep(0)
    await rig.answer(request_id="req_2")  # the only permit, without a wait
    await rig.runner.flush()
    assert (rig.challenger.num_left, rig.book.shadows) == (1, [])
    assert rig.runner.counts == {"taken_back": 1}


async def test_a_challenger_without_a_replica_is_left_alone_in_time(rig: Rig) -> None:
    live = await rig.answer(timeout_s=5.0)
    rig.challenger.may_answer.clear()
    assert await rig.shadow(replace(live, work=replace(live.work, timeout_s=0.05))) is None
    assert (rig.challenger.num_left, rig.runner.counts) == (1, {"late": 1})


async def test_no_more_than_two_run_and_two_wait(rig: Rig) -> None:
    live = await rig.answer()
    rig.gate.resize({"eye@1": 8})
    rig.challenger.may_answer.clear()
    for number in range(6):
        rig.runner.saw(replace(live, work=replace(live.work, request_id=f"req_{number}")))
    while len(rig.challenger.asked) < 2:
        await asyncio.sleep(0)
    await settle()
    assert (len(rig.challenger.asked), rig.runner.counts) == (2, {"full": 2})
    rig.challenger.may_answer.set()
    await rig.runner.flush()
    assert rig.runner.counts == {"full": 2, "answered": 4}


def changed(live: Sighting, what: str) -> Sighting:
    changes: Mapping[str, Mapping[str, Any]] = {
        "no experiment": {"choice": replace(live.choice, assignment=None)},
        "another experiment": {
            "choice": replace(live.choice, assignment=replace(ASSIGNMENT, experiment="other"))
        },
        "the challenger itself": {
            "choice": replace(live.choice, assignment=replace(ASSIGNMENT, arm="new"))
        },
        "no answer": {"result": None, "error": GenerationFailed("no")},
    }
    return replace(live, **changes[what])


@pytest.mark.parametrize(
    "what", ["no experiment", "another experiment", "the challenger itself", "no answer"]
)
async def test_these_have_no_shadow(rig: Rig, what: str) -> None:
    assert await rig.shadow(changed(await rig.answer(), what)) is None
    assert (rig.challenger.asked, rig.runner.counts) == ([], {})


async def test_bytes_that_are_passed_through_have_no_shadow() -> None:
    rig = Rig(bundle("eye@2", imaging="passthrough"))
    assert await rig.shadow(await rig.answer()) is None
    assert rig.challenger.asked == []
    rig.threads.shutdown()


async def test_nothing_runs_on_after_the_end(rig: Rig) -> None:
    live = await rig.answer()
    rig.challenger.may_answer.clear()
    rig.runner.saw(live)
    while not rig.challenger.asked:
        await asyncio.sleep(0)
    await rig.runner.close()
    assert (rig.challenger.num_left, rig.gate.running()["eye@2"]) == (1, 0.0)


def test_a_larger_share_keeps_those_it_had_and_is_what_it_says() -> None:
    ids = [f"req_{number}" for number in range(5_000)]
    few = {one for one in ids if is_sampled(DESIGN, one, 1_000)}
    more = {one for one in ids if is_sampled(DESIGN, one, 2_500)}
    assert few < more
    # Five standard deviations of a binomial on either side.
    assert abs(len(few) - 500) < 107
    assert abs(len(more) - 1_250) < 154
    assert not any(is_sampled(DESIGN, one, 0) for one in ids)
    assert all(is_sampled(DESIGN, one, 10_000) for one in ids)


def test_the_draw_is_the_published_hash() -> None:
    """SHA-256 of "sm4ll/1\\nshadow\\nglasses\\n\\nreq_1": first 8 bytes, big-endian, mod 10000."""
    assert is_sampled(DESIGN, "req_1", 3_093)
    assert not is_sampled(DESIGN, "req_1", 3_092)


def test_only_the_controls_requests_are_shared() -> None:
    found = find_challenger(DESIGN, "old", "req_1")
    assert found is not None
    assert found.version == "eye@2"
    assert find_challenger(DESIGN, "new", "req_1") is None
    assert find_challenger(DESIGN.model_copy(update={"shadow": None}), "old", "req_1") is None


def write_family(folder: Path) -> Path:
    """Two versions of `top` that change nothing, the challenger in its own time."""
    (folder / "experts").mkdir()
    for name, seconds in (("old", 0.0), ("new", 0.4)):
        told = bundle(f"top@{name}", backend={"kind": "noop", "seconds": seconds, "steps": 4})
        path = folder / f"experts/top.{name}.yaml"
        path.write_text(yaml.safe_dump(told.model_dump(mode="json", exclude_unset=True)))
    family = folder / "family.yaml"
    family.write_text("experts: [{version: top@old}, {version: top@new}]\n")
    return family


def test_a_request_over_http_leaves_its_own_row_and_its_shadows_and_is_told_of_neither(
    tmp_path: Path,
) -> None:
    design = ExperimentDesign.model_validate(
        {
            "id": "tops",
            "expert": "top",
            "unit": "request",
            "arms": [
                {"name": "old", "version": "top@old", "weight": 10_000},
                {"name": "new", "version": "top@new", "weight": 0},
            ],
            "shadow": {"arm": "new", "share": 10_000},
        }
    )
    api = build_local_api(write_family(tmp_path))

    async def begin() -> None:
        async with api.state.services.database.transaction() as session:
            await insert_experiment(
                session,
                design,
                allocate({"old": 10_000}).dump(),
                state=ExperimentState.RUNNING,
                created_by="tests",
                now=utc_now(),
            )
        await api.state.services.routing.renew()

    async def read() -> list[Seen]:
        await api.state.shadows.flush()
        await api.state.services.recorder.flush()
        async with api.state.services.database.reading() as session:
            return await read_exposures(session, "tops")

    with TestClient(api) as http:
        assert http.portal is not None
        http.portal.call(begin)
        files = {
            "person": encoded(photo()),
            "product": encoded(photo(64, 64, seed=1)),
            "mask": encoded(box_mask()),
        }
        answer = http.post("/v1/tryon", data={"expert": "top"}, files=files)
        assert answer.status_code == 200, answer.text
        live, shadow = http.portal.call(read)
        assert shadow.pictures is not None
        shown = http.get(f"/v1/assets/{shadow.pictures['shadow']}/content")
        told = {"expert": "top", "subject": "ann", "seed": "3"}
        job = http.post("/v1/jobs", data=told, files=files).json()
        http.get(f"/v1/jobs/{job['id']}/events")  # until it has ended
        of_job = next(
            one for one in http.portal.call(read) if one.is_shadow and one.id == job["id"]
        )
        assert of_job.pictures is not None
        kept = http.get("/v1/assets", params={"subject": "ann", "kind": "result"}).json()
        assert set(of_job.pictures.values()) < {one["id"] for one in kept["items"]}
        erased = http.post("/v1/erasures", json={"subject": "ann"}).json()
    assert set(of_job.pictures.values()) < {one["id"] for one in erased["assets"]}
    assert answer.headers["sm4ll-version"] == "top@old"
    assert not set(answer.headers.values()) & {"new", "top@new"}
    assert (live.is_shadow, live.arm, live.pictures) == (False, "old", None)
    assert (shadow.is_shadow, shadow.arm, shadow.code) == (True, "new", "")
    assert live.id == shadow.id == answer.headers["sm4ll-id"]
    assert (live.unit, live.request_id) == (shadow.unit, shadow.request_id)
    assert shadow.latency_ms > live.latency_ms + 200  # it takes 0.4 s to paint
    assert {"seam"} <= set(live.metrics) == {*shadow.metrics, "outside"}
    assert shown.headers["content-type"] == "image/webp"
