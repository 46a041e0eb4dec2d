"""One try-on, step by step: decode, segment, plan, paint, paste back, encode, prove.

Pure async with its collaborators passed in; knows neither HTTP nor Ray.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from deployments.bundle import Bundle
from serve.admission.gate import Permit
from serve.admission.ticket import Share
from serve.catalog import Catalog, Choice
from serve.errors import Cancelled, DeadlineExceeded, Sm4llError
from serve.imaging.encode import MEDIA_TYPES
from serve.imaging.limits import ImageLimits
from serve.imaging.room import LARGE_PIXELS, PixelRoom
from serve.imaging.spool import SpooledFile
from serve.inputs import Inputs
from serve.messages import ExpertReply, ExpertRequest, Landmarks
from serve.observing.tryons import TryOns
from serve.observing.watch import Stopwatch
from serve.preparing import Preparer, SegmentCaller
from serve.receipts import passthrough_receipt, tryon_receipt
from serve.remembering import PictureMemory
from serve.steps import (
    Answer,
    CropWork,
    Prepared,
    Progress,
    Region,
    Sighting,
    TryOnResult,
    TryOnWork,
    Witness,
    check_answers,
    check_reply,
    deliver,
    drop_large,
    measure_gpu_ms,
    pack,
)
from serve.tally import tell_end
from serve.tenancy.account import Charge, Quote

COPIED_ON_LOOP_BYTES = 2**20
HEAVY_AT_ONCE = 2
"""Of files that wait on disk, so many are decoded and waiting for the segmenter."""
T = TypeVar("T")


class ExpertCaller(Protocol):
    """Asks the deployment of one expert version."""

    async def __call__(self, request: ExpertRequest, /) -> ExpertReply: ...


OnStep = Callable[[int, int], None]
"""Called with (step, num_steps)."""


class ExpertFollower(Protocol):
    """Asks the deployment of one expert version and says how far it is meanwhile."""

    async def __call__(self, request: ExpertRequest, on_step: OnStep, /) -> ExpertReply: ...


class Admission(Protocol):
    """Says when an expert may be asked, and whether at all."""

    def admit(
        self, request: ExpertRequest, share: Share, /
    ) -> AbstractAsyncContextManager[Permit]: ...

    def quote(self, request: ExpertRequest, /) -> float:
        """Predicted GPU-seconds."""


@dataclass(slots=True)
class _Trace:
    """How far one request has come."""

    choice: Choice | None = None
    prepared: Prepared | None = None
    reply: ExpertReply | None = None
    answers: Sequence[Answer] = ()


class Pipeline:
    """Runs try-ons; keeps every pixel outside the region as it was and proves it."""

    def __init__(
        self,
        catalog: Catalog,
        segment: SegmentCaller,
        experts: Mapping[str, ExpertCaller],
        gate: Admission,
        threads: Executor,
        limits: ImageLimits,
        unix_time_s: Callable[[], float] = time.time,
        followers: Mapping[str, ExpertFollower] | None = None,
        witness: Witness | None = None,
        tryons: TryOns | None = None,
        memory: PictureMemory | None = None,
    ):
        """
        Args:
            followers: for work with a `progress`; without one it is told what it painted only.
            witness: is told of requests in experiments, however they end.
            tryons: is told of all of them.
            memory: of pictures; none is kept without one.
        """
        self._followers = {} if followers is None else followers
        self._witness = witness
        self._tryons = tryons or TryOns()
        self._catalog = catalog
        self._preparer = Preparer(segment, threads, limits, memory, unix_time_s)
        self._experts = experts
        self._gate = gate
        self._threads = threads
        self._room = PixelRoom()
        self._large = asyncio.Semaphore(1)
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._unix_time_s = unix_time_s

    async def run(self, work: TryOnWork, watch: Stopwatch) -> TryOnResult:
        """Serve one request.

        Raises:
            RequestError: the caller must change something.
            CapacityError: no capacity, or not finished within work.timeout_s.
            BackendError: the expert failed.
        """
        trace = _Trace()
        try:
            result = await self._run(work, watch, trace)
        except asyncio.CancelledError:
            self._tell(work, watch, trace, error=Cancelled("the caller left"))
            raise
        except Exception as exc:
            foreseen = exc if isinstance(exc, Sm4llError) else Sm4llError(f"{exc!r}")
            self._tell(work, watch, trace, error=foreseen)
            raise
        self._tell(work, watch, trace, result=result)
        return result

    async def _run(self, work: TryOnWork, watch: Stopwatch, trace: _Trace) -> TryOnResult:
        try:
            async with asyncio.timeout(work.timeout_s):
                choice = trace.choice = work.choice or self._catalog.choose(
                    work.options.expert, work.options.version, work.policy
                )
                if choice.bundle.imaging == "passthrough":
                    return await self._pass_through(work, choice, watch, trace)
                return await self._try_on(work, choice, watch, trace)
        except TimeoutError as exc:
            raise DeadlineExceeded(
                f"not finished within {work.timeout_s:.0f} s", retry_after_s=work.timeout_s
            ) from exc

    def _tell(
        self,
        work: TryOnWork,
        watch: Stopwatch,
        trace: _Trace,
        *,
        error: Sm4llError | None = None,
        result: TryOnResult | None = None,
    ) -> None:
        choice = trace.choice
        is_wrong = any(answer.is_wrong for answer in trace.answers)
        tell_end(self._tryons, work, choice, error or result, is_wrong=is_wrong)
        if self._witness is None or choice is None or choice.assignment is None:
            return
        self._witness.saw(
            Sighting(
                work=work,
                choice=choice,
                latency_ms=watch.total_ms,
                error=error,
                result=result,
                prepared=trace.prepared,
                reply=trace.reply,
            )
        )

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        # Decoding and pasting take tens of milliseconds: on the loop they would stall everyone.
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _try_on(
        self, work: TryOnWork, choice: Choice, watch: Stopwatch, trace: _Trace
    ) -> TryOnResult:
        bundle = choice.bundle
        # Or all large pictures that are here would be decoded before the first is cut to its crop.
        is_heavy = isinstance(work.person, SpooledFile)
        async with _turn(self._heavy, watch, "decode") if is_heavy else nullcontext():
            prepared = await self.prepare(work, bundle, watch)
        async with AsyncExitStack() as stack:
            person = stack.enter_context(self._room.keeping(prepared.inputs.person))
            prepared = trace.prepared = drop_large(prepared)
            inputs, region = replace(prepared.inputs, person=person), prepared.region
            crop = prepared.crop
            charge = await stack.enter_async_context(
                self._charge(work, crop.request, bundle, watch)
            )
            reply = trace.reply = await self._paint(crop.request, work, watch, charge)
            check_reply(reply, crop.request)
            if work.progress is not None:
                work.progress.on_painted(reply.images_nhwc)
            is_large = person.width * person.height > LARGE_PIXELS
            async with _turn(self._large, watch, "paste") if is_large else nullcontext():
                answers = trace.answers = [
                    await self._in_thread(
                        *(inputs.copies.during, deliver, work, bundle, inputs, crop, reply),
                        *(index, watch),
                    )
                    for index in range(work.options.num_images)
                ]
            self._tryons.copied(inputs.copies.full_size(inputs.person.pixels.size))
            check_answers(answers)
            result = await self._result(work, choice, inputs, region, crop, reply, answers, watch)
            await self._settle(charge, result, watch)
        return result

    @asynccontextmanager
    async def _charge(
        self, work: TryOnWork, request: ExpertRequest, bundle: Bundle, watch: Stopwatch
    ) -> AsyncIterator[Charge | None]:
        """Reserve what it will cost; whatever ends the block without a result costs nothing."""
        if work.account is None:
            yield None
            return
        quote = Quote(
            expert=bundle.expert,
            version=bundle.version,
            gpu_s=self._gate.quote(request),
            images=work.options.num_images,
            timeout_s=work.timeout_s,
        )
        async with AsyncExitStack() as stack:
            with watch.stage("reserve"):
                charge = await stack.enter_async_context(work.account.charge(quote))
            yield charge

    async def _settle(self, charge: Charge | None, result: TryOnResult, watch: Stopwatch) -> None:
        if charge is None:
            return
        with watch.stage("settle"):
            await charge.settle(
                gpu_ms=result.gpu_ms,
                images=result.num_images,
                upstream_microusd=result.upstream_microusd,
            )

    async def _paint(
        self, request: ExpertRequest, work: TryOnWork, watch: Stopwatch, charge: Charge | None
    ) -> ExpertReply:
        """Ask the expert when it is this request's turn; the permit is held until it answers."""
        async with AsyncExitStack() as stack:
            with watch.stage("queue"):
                permit = await stack.enter_async_context(self._gate.admit(request, work.share))
            if charge is not None:
                charge.check()
            watch.note({"gen_ai.request.seed": request.seed})
            with watch.stage("expert") as span:
                reply = await self._ask(request, work.progress)
                span.note({"sm4ll.batch_size": reply.batch_size})
            permit.learn(reply)
        return reply

    async def _ask(self, request: ExpertRequest, progress: Progress | None) -> ExpertReply:
        follow = self._followers.get(request.version)
        if progress is None or follow is None:
            return await self._experts[request.version](request)
        return await follow(request, progress.on_step)

    async def prepare(self, work: TryOnWork, bundle: Bundle, watch: Stopwatch) -> Prepared:
        """Everything up to what the expert is asked; see `Preparer`."""
        return await self._preparer.prepare(work, bundle, watch)

    async def _result(
        self,
        work: TryOnWork,
        choice: Choice,
        inputs: Inputs,
        region: Region,
        crop: CropWork,
        reply: ExpertReply,
        answers: list[Answer],
        watch: Stopwatch,
    ) -> TryOnResult:
        receipt = tryon_receipt(work, choice, inputs, region, crop, reply, answers, watch)
        layers = None
        if work.options.output == "layers":
            layers = await self._in_thread(pack, inputs, crop, answers[0], receipt)
        return TryOnResult(
            files=tuple(answer.file for answer in answers),
            media_type=MEDIA_TYPES[receipt.format],
            receipt=receipt,
            width=inputs.person.width,
            height=inputs.person.height,
            layers=layers,
            gpu_ms=measure_gpu_ms(reply),
        )

    async def _pass_through(
        self, work: TryOnWork, choice: Choice, watch: Stopwatch, trace: _Trace
    ) -> TryOnResult:
        """The person's bytes through the expert and back, for the gateway benchmark."""
        nothing, data = np.zeros((1, 1), np.uint8), work.person
        if isinstance(data, SpooledFile):
            data = await self._in_thread(data.read)
        request = ExpertRequest(
            request_id=work.request_id,
            version=choice.bundle.version,
            crop_hwc=np.frombuffer(data, np.uint8)[None, :, None],
            region_hw=nothing,
            silhouette_hw=None,
            landmarks=Landmarks(),
            product_hwc=nothing[:, :, None],
            product_landmarks=Landmarks(),
            seed=0,
            deadline_unix_s=self._unix_time_s() + work.timeout_s,
        )
        async with self._charge(work, request, choice.bundle, watch) as charge:
            reply = trace.reply = await self._paint(request, work, watch, charge)
            receipt = passthrough_receipt(work, choice, reply, watch)
            images = reply.images_nhwc
            is_small = images.nbytes <= COPIED_ON_LOOP_BYTES
            file = images.tobytes() if is_small else await self._in_thread(images.tobytes)
            gpu_ms = measure_gpu_ms(reply)
            media_type = "application/octet-stream"
            result = TryOnResult((file,), media_type, receipt, 0, 0, None, gpu_ms)
            await self._settle(charge, result, watch)
        return result


@asynccontextmanager
async def _turn(places: asyncio.Semaphore, watch: Stopwatch, stage: str) -> AsyncIterator[None]:
    """One of the places; the wait for it is time of the stage that it is for."""
    async with AsyncExitStack() as stack:
        with watch.stage(stage):
            await stack.enter_async_context(places)
        yield
