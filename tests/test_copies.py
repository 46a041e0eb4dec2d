"""One request makes one full-size copy of its picture beyond decoding and encoding; the counter
that says so is checked against what NumPy, and the whole process, really allocate."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import cache
from typing import Any, ParamSpec, TypeVar

import cv2
import numpy as np
import pytest

from deployments.bundle import load_bundle
from serve.admission.cost import CostModel
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.catalog import Catalog
from serve.config import FamilyConfig
from serve.imaging.copies import CopyCounter, note_copy
from serve.imaging.decode import decode_image
from serve.imaging.encode import encode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.room import PixelRoom
from serve.imaging.spool import Encoded, SpooledFile
from serve.jobs.routine import end_all
from serve.messages import ExpertReply, ExpertRequest, Landmarks, SegmentReply, SegmentRequest
from serve.observing.meter import MemoryMeter
from serve.observing.tryons import TryOns
from serve.observing.watch import Stopwatch
from serve.pipeline import Pipeline
from serve.preparing import SegmentCaller
from serve.schemas.receipt import Blend, Format
from serve.schemas.tryon import TryOnOptions
from serve.settings import CONFIGS_DIR
from serve.steps import TryOnResult, TryOnWork
from tests.allocations import numpy_allocations, peak_memory
from tests.image_files import build_exif, make_rgb

SMALL, LARGE = (2000, 1500), (6000, 4000)
P = ParamSpec("P")
T = TypeVar("T")


class Inline(Executor):
    """Runs at once, in the caller's thread and context: allocations are counted by thread."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


async def segment(request: SegmentRequest, /) -> SegmentReply:
    region_hw = np.zeros(request.image_hwc.shape[:2], np.uint8)
    region_hw[200:260, 300:360] = 255  # small: what blending takes grows with the region
    return SegmentReply(region_hw, region_hw, Landmarks(), "none/1")


async def paint(request: ExpertRequest, /) -> ExpertReply:
    return ExpertReply(255 - request.crop_hwc[None], None, request.version)


def build_pipeline(meter: MemoryMeter, segment: SegmentCaller = segment) -> Pipeline:
    bundle = load_bundle(CONFIGS_DIR / "experts/top.1.yaml")
    version = bundle.version
    family = FamilyConfig.model_validate({"experts": [{"version": version}]})
    return Pipeline(
        catalog=Catalog(family, {version: bundle}),
        segment=segment,
        experts={version: paint},
        gate=Gate({version: Lane(LaneLimits(4))}, CostModel()),
        threads=Inline(),
        limits=ImageLimits(),
        tryons=TryOns(meter),
    )


def describe(person: Encoded, blend: Blend) -> TryOnWork:
    product = encode_image(make_rgb(), None, format="png")
    options = TryOnOptions(expert="top", blend=blend)
    return TryOnWork(options, person, product, None, "req_copies", 60.0)


def run(person: bytes, blend: Blend, meter: MemoryMeter) -> TryOnResult:
    return asyncio.run(build_pipeline(meter).run(describe(person, blend), Stopwatch()))


@cache
def make_file(
    format: Format,
    size: tuple[int, int],
    depth: int = 8,
    alpha: bool = False,
    orientation: int = 1,
) -> bytes:
    pixels: Any = cv2.resize(make_rgb(8, 6, depth=depth), size)  # smooth: quick to write
    cover = np.ascontiguousarray(pixels[..., 1]) if alpha else None
    exif = build_exif(orientation)
    return encode_image(pixels, cover, format=format, bit_depth=depth, exif=exif)


@pytest.mark.parametrize(
    ("format", "more", "blend", "beyond"),
    [
        ("jpeg", {}, "exact", {}),
        ("jpeg", {}, "seamless", {}),
        ("jpeg", {"orientation": 6}, "exact", {"turn": 1}),
        ("png", {}, "exact", {}),
        ("png", {"depth": 16}, "exact", {}),
        # Decoders give four channels; the segmenter's copy lies on white.
        ("png", {"alpha": True}, "exact", {"convert": 3, "encode": 1}),
        ("webp", {}, "exact", {"encode": 1}),
    ],
)
def test_one_copy_beyond_decoding_and_encoding(
    format: Format, more: Mapping[str, Any], blend: Blend, beyond: Mapping[str, int]
) -> None:
    person, meter = make_file(format, SMALL, **more), MemoryMeter()
    full_bytes = SMALL[0] * SMALL[1] * 3 * more.get("depth", 8) // 8
    with numpy_allocations() as sizes:
        run(person, blend, meter)
    counted = {
        dict(labels)["kind"]: num
        for (name, labels), num in meter.counters.items()
        if name == "sm4ll_image_copies_total"
    }
    assert counted == {"decode": 1, "paste": 1, "proof": 1, **beyond}
    in_pillow = 1 if format == "webp" else 0
    num_allocated = sum(size >= 0.9 * full_bytes for size in sizes)
    assert num_allocated == sum(counted.values()) - in_pillow


@pytest.mark.parametrize(
    ("format", "num_at_once"),
    [
        ("jpeg", 2),  # the original with its painted copy, or with the decoded answer
        ("png", 3),  # of the answer OpenCV holds one of its own for a moment
    ],
)
def test_no_library_hides_a_copy(format: Format, num_at_once: int) -> None:
    run(make_file(format, SMALL), "exact", MemoryMeter())  # what is imported on first use
    person = make_file(format, LARGE)
    with peak_memory() as peak_bytes:
        run(person, "exact", MemoryMeter())
    full_bytes = LARGE[0] * LARGE[1] * 3
    assert peak_bytes[0] < (num_at_once + 0.9) * full_bytes


def test_copies_of_parts_do_not_count() -> None:
    copies, whole = CopyCounter(), np.zeros((100, 10, 3), np.uint8)
    copies.during(note_copy, "paste", whole)
    copies.during(note_copy, "paste", whole[:89])
    note_copy("paste", whole)  # of nobody's request
    assert copies.full_size(whole.size) == {"paste": 1}


def test_a_picture_there_is_no_room_for_is_decoded_again_to_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = make_file("jpeg", SMALL, orientation=6)
    kept = run(person, "exact", MemoryMeter())
    monkeypatch.setattr("serve.pipeline.PixelRoom", lambda: PixelRoom(max_bytes=1000))
    meter = MemoryMeter()
    again = run(person, "exact", meter)
    assert again.files == kept.files
    assert meter.total("sm4ll_image_copies_total", kind="decode") == 2
    assert (again.width, again.height) == (kept.width, kept.height)


def test_room_is_given_back_however_the_work_ends() -> None:
    image = decode_image(make_file("png", (64, 32)), ImageLimits())
    room = PixelRoom(max_bytes=image.pixels.nbytes)
    with suppress(ZeroDivisionError), room.keeping(image) as first:
        assert first is image
        with room.keeping(image) as second:
            assert not second.has_pixels
            assert second.pixels.shape == image.pixels.shape
        raise ZeroDivisionError
    with room.keeping(image) as third:
        assert third.has_pixels


def test_the_wait_for_a_turn_among_large_pictures_is_time_of_a_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.pipeline.HEAVY_AT_ONCE", 1)
    watches = [Stopwatch(), Stopwatch()]
    file = SpooledFile()
    file.write(make_file("jpeg", (64, 48)))

    async def play() -> None:
        asked = asyncio.Event()

        async def hang(request: SegmentRequest, /) -> SegmentReply:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        pipeline = build_pipeline(MemoryMeter(), hang)
        work = describe(file, "exact")
        running = [asyncio.create_task(pipeline.run(work, watch)) for watch in watches]
        await asked.wait()
        await end_all(running)

    asyncio.run(play())
    assert [[*watch.stages_ms] for watch in watches] == [["decode", "segment"], ["decode"]]
