"""Paints again, with a challenger, what the control has just answered: same inputs, same seed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from deployments.bundle import Bundle
from serve.admission.gate import Ask
from serve.catalog import Choice
from serve.errors import Cancelled, CapacityError, ReplicaLost, Sm4llError
from serve.evidence.composites import MEDIA_TYPE, compose_crop, encode_pictures
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.watch import Stopwatch
from serve.steps import Prepared, Sighting, TryOnWork, check_reply
from serve.store.tables import AssetKind
from serve.tenancy.assets import PictureStore

T = TypeVar("T")
logger = logging.getLogger("ray.serve")


class Spare(Protocol):
    """Permits that nobody needs; see `Gate.spare`."""

    async def spare(self, request: ExpertRequest, ask: Ask, /) -> ExpertReply: ...


class Prepare(Protocol):
    """`Pipeline.prepare`, on threads for which nobody waits."""

    async def __call__(self, work: TryOnWork, bundle: Bundle, watch: Stopwatch, /) -> Prepared: ...


class Pictures(PictureStore, Protocol):
    """The tenants' assets; see `serve.tenancy.assets.AssetStore`."""

    async def delete(self, tenant_id: str, asset_id: str, /) -> object: ...


IsErased = Callable[[TryOnWork], Awaitable[bool]]
"""Whether the subject of some work was erased since."""


@dataclass(frozen=True, slots=True)
class Repainted:
    """What a challenger made of a live request."""

    sighting: Sighting
    """Its choice, its reply or its error, and no result; its latency is that of the live request
    with the challenger's painting in it."""
    pictures: Mapping[str, str] | None
    """Assets of the tenant, where it keeps any: `live`, `shadow`, `before`, `product`."""


class Repainter:
    """Has spare permits only, charges nobody, and gives the result to nobody who asked."""

    def __init__(
        self,
        *,
        gate: Spare,
        experts: Mapping[str, Ask],
        prepare: Prepare,
        threads: Executor,
        assets: Pictures,
        is_erased: IsErased,
        unix_time_s: Callable[[], float] = time.time,
    ):
        """
        Args:
            experts: of every version; a mapping that changes as versions come and go.
            threads: for pictures; nobody's who is waited for.
        """
        self._gate = gate
        self._experts = experts
        self._prepare = prepare
        self._threads = threads
        self._assets = assets
        self._is_erased = is_erased
        self._unix_time_s = unix_time_s

    def can_paint(self, bundle: Bundle) -> bool:
        return bundle.imaging == "full" and bundle.version in self._experts

    async def paint(self, live: Sighting, choice: Choice) -> Repainted:
        """
        Args:
            live: that was answered.
            choice: the challenger.

        Raises:
            Cancelled: other work needed the permit.
            CapacityError: there was none, or no time left.
        """
        prepared: Prepared | None = None
        reply: ExpertReply | None = None
        error: Sm4llError | None = None
        started_s = time.perf_counter()
        try:
            prepared = await self._prepare_again(live, choice.bundle)
            request = prepared.crop.request
            started_s = time.perf_counter()
            answer = await self._gate.spare(request, self._experts[request.version])
            check_reply(answer, request)
            reply = answer
        except Sm4llError as exc:
            if not is_evidence(exc):
                raise
            error = exc
        painted_ms = (time.perf_counter() - started_s) * 1e3
        pictures = None
        if prepared is not None and reply is not None:
            pictures = await self._keep_pictures(live, choice.bundle, prepared, reply)
        sighting = Sighting(
            work=live.work,
            choice=choice,
            latency_ms=live.latency_ms - _painting_ms(live) + painted_ms,
            error=error,
            prepared=prepared,
            reply=reply,
        )
        return Repainted(sighting, pictures)

    async def _prepare_again(self, live: Sighting, bundle: Bundle) -> Prepared:
        """What the challenger is asked: the very arrays, where it wants them as the control does.

        Raises:
            RequestError: it cannot use what the control could.
        """
        assert live.prepared is not None
        asked = live.prepared.crop.request
        prepared = live.prepared
        if not is_prepared_alike(live.choice.bundle, bundle):
            prepared = await self._prepare(live.work, bundle, Stopwatch())
        request = replace(
            prepared.crop.request,
            request_id=f"{asked.request_id}-shadow",
            version=bundle.version,
            seed=asked.seed,
            num_steps=bundle.num_steps(live.work.options.quality),
            guidance=bundle.guidance,
            deadline_unix_s=self._unix_time_s() + live.work.timeout_s,
        )
        return replace(prepared, crop=replace(prepared.crop, request=request))

    async def _keep_pictures(
        self, live: Sighting, challenger: Bundle, prepared: Prepared, reply: ExpertReply
    ) -> Mapping[str, str] | None:
        """None for a tenant that keeps nothing; the numbers count without them."""
        if live.work.policy.result_retention_s <= 0:
            return None
        files = await self._in_thread(_draw_pair, live, challenger, prepared, reply)
        try:
            kept = {name: await self._store(live.work, *file) for name, file in files.items()}
            # Now that an erasure would find them: one that came before did not.
            if live.work.subject and await self._is_erased(live.work):
                for asset_id in kept.values():
                    await self._assets.delete(live.work.share.tenant, asset_id)
                return None
            return kept
        except Sm4llError as exc:
            logger.warning("the pictures of a shadow were not kept: %s", exc.detail)
            return None

    async def _store(self, work: TryOnWork, data: bytes, size: tuple[int, int]) -> str:
        asset = await self._assets.store(
            work.share.tenant,
            work.policy,
            AssetKind.RESULT,
            data,
            MEDIA_TYPE,
            work.subject,
            width_px=size[0],
            height_px=size[1],
        )
        return asset.id

    def _in_thread(self, function: Callable[..., T], *args: object) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def is_evidence(error: Sm4llError) -> bool:
    """Whether an error says something about the version: not that it had to make room."""
    if isinstance(error, Cancelled):
        return False
    return not isinstance(error, CapacityError) or isinstance(error, ReplicaLost)


def is_prepared_alike(one: Bundle, other: Bundle) -> bool:
    """Whether two versions are asked with the same arrays."""
    return (one.expert, one.masker, one.crop, one.product) == (
        other.expert,
        other.masker,
        other.crop,
        other.product,
    )


def _painting_ms(live: Sighting) -> float:
    return 0.0 if live.result is None else live.result.receipt.timings_ms.get("expert", 0.0)


def _draw_pair(
    live: Sighting, challenger: Bundle, prepared: Prepared, reply: ExpertReply
) -> Mapping[str, tuple[bytes, tuple[int, int]]]:
    assert live.prepared is not None
    assert live.reply is not None
    asked, blend = live.prepared.crop.request, live.work.options.blend
    return encode_pictures(
        compose_crop(asked, live.reply, live.choice.bundle, blend),
        compose_crop(prepared.crop.request, reply, challenger, blend),
        asked,
    )
