"""Everything up to what the expert is asked: decode, find the region, cut the crop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from deployments.bundle import Bundle
from deployments.cache import hold_alone
from serve.errors import SubjectNotFound
from serve.imaging.copies import CopyCounter
from serve.imaging.limits import ImageLimits
from serve.imaging.mask import check_mask_size
from serve.inputs import Inputs, decode_caller_mask, decode_person, prepare_product
from serve.messages import Landmarks, SegmentReply, SegmentRequest
from serve.observing.watch import Stopwatch
from serve.remembering import PictureMemory
from serve.steps import (
    Prepared,
    Region,
    TryOnWork,
    derive_seed,
    plan_work,
)
from serve.tenancy.memory import remembered_as

T = TypeVar("T")


class SegmentCaller(Protocol):
    """Asks the segmenter deployment."""

    async def __call__(self, request: SegmentRequest, /) -> SegmentReply: ...


class Preparer:
    """What training inputs are made by as well. The same with a memory and without."""

    def __init__(
        self,
        segment: SegmentCaller,
        threads: Executor,
        limits: ImageLimits,
        memory: PictureMemory | None = None,
        unix_time_s: Callable[[], float] = time.time,
    ):
        self._segment = segment
        self._threads = threads
        self._limits = limits
        self._memory = memory or PictureMemory()
        self._unix_time_s = unix_time_s

    async def prepare(self, work: TryOnWork, bundle: Bundle, watch: Stopwatch) -> Prepared:
        """
        Raises:
            RequestError: a picture, the mask or what they show cannot be used.
        """
        deadline_unix_s = self._unix_time_s() + work.timeout_s
        era = self._memory.regions.era
        with watch.stage("decode"):
            inputs = await self._decode(work, bundle)
        with watch.stage("segment") as span:
            tenant_id = work.share.tenant
            region = await self._find_region(tenant_id, bundle, inputs, era)
            span.note({"sm4ll.masker": region.masker, "sm4ll.cached": region.is_cached})
            product_landmarks = await self._find_product_landmarks(tenant_id, bundle, inputs, era)
        with watch.stage("plan"):
            seed = derive_seed(work, bundle, inputs)
            crop = await self._in_thread(
                plan_work, work, bundle, inputs, region, product_landmarks, seed, deadline_unix_s
            )
        return Prepared(inputs, region, crop)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        # Decoding takes tens of milliseconds: on the loop it would stall everyone.
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _decode(self, work: TryOnWork, bundle: Bundle) -> Inputs:
        tenant_id = work.share.tenant
        recall = partial(self._recall, tenant_id, person_way(bundle))
        copies, has_mask, limits = CopyCounter(), work.mask is not None, self._limits
        (person, copy_hwc, known), product, (mask_hw, mask_sha256) = await asyncio.gather(
            self._in_thread(copies.during, decode_person, work.person, limits, has_mask, recall),
            self._in_thread(
                prepare_product,
                *(work.product, limits, bundle.product, tenant_id, self._memory.products),
            ),
            self._in_thread(decode_caller_mask, work.mask, work.options.mask_convention, limits),
        )
        return Inputs(
            person=person,
            product=product.value,
            person_copy_hwc=copy_hwc,
            mask_hw=mask_hw,
            mask_sha256=mask_sha256,
            copies=copies,
            known=known,
            is_product_known=product.cached,
        )

    def _recall(self, tenant_id: str, way: str, sha256: str) -> SegmentReply | None:
        return self._memory.regions.find(remembered_as(tenant_id, sha256), way)

    async def _find_region(
        self, tenant_id: str, bundle: Bundle, inputs: Inputs, era: int
    ) -> Region:
        person = inputs.person
        if inputs.mask_hw is not None:
            check_mask_size(inputs.mask_hw, person.width, person.height)
            return Region(inputs.mask_hw, None)
        if inputs.known is not None:
            return Region(inputs.known.region_hw, inputs.known)
        assert inputs.person_copy_hwc is not None
        request = SegmentRequest(
            image_hwc=inputs.person_copy_hwc,
            expert=bundle.expert,
            content_hash=remembered_as(tenant_id, person.sha256),
            masker=bundle.masker.id,
            dilation=bundle.masker.dilation,
        )
        reply = await self._ask(request, person_way(bundle), era)
        return Region(reply.region_hw, reply)

    async def _find_product_landmarks(
        self, tenant_id: str, bundle: Bundle, inputs: Inputs, era: int
    ) -> Landmarks:
        if not bundle.product.landmarks:
            return Landmarks()
        content_hash = remembered_as(tenant_id, inputs.product.digest.sha256)
        way = f"{person_way(bundle)} {bundle.product.model_dump_json()}"
        if (known := self._memory.regions.find(content_hash, way)) is not None:
            return known.landmarks
        request = SegmentRequest(
            image_hwc=np.ascontiguousarray(inputs.product.rgba[:, :, :3]),
            expert=bundle.expert,
            content_hash=content_hash,
            masker=bundle.masker.id,
        )
        try:
            return (await self._ask(request, way, era)).landmarks
        except SubjectNotFound as exc:
            raise SubjectNotFound(
                f"in the product picture: {exc.detail}",
                remedy="send a portrait in which the face is seen from the front, unobstructed",
            ) from exc

    async def _ask(self, request: SegmentRequest, way: str, era: int) -> SegmentReply:
        reply = await self._segment(request)
        # What came by reference lies in Ray's object store, which has room for no memories.
        reply = await self._in_thread(hold_alone, reply)
        kept = replace(reply, cached=True, batch_size=1)
        self._memory.regions.keep(request.content_hash, way, kept, era)
        return reply


def person_way(bundle: Bundle) -> str:
    """What a region depends on besides the picture."""
    masker = bundle.masker
    return f"{masker.id} {bundle.expert} {masker.dilation}"
