"""Accepts a job: checks all that can be checked now, keeps its pictures, writes it down.

What it answers is durable. Fetches nothing: pictures come as bytes.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from deployments.bundle import Bundle
from serve.catalog import Choice
from serve.choosing import Chooser, dump_choice, party_of
from serve.errors import Conflict, InvalidImage, NotFound, NotSupported
from serve.imaging.inspection import PictureFacts, inspect_picture
from serve.imaging.limits import ImageLimits
from serve.imaging.mask import check_mask_size, decode_mask
from serve.jobs.quote import PredictUnits, quote_s, whole_ms
from serve.messages import Expert
from serve.observing.tracing import TRACEPARENT, current_traceparent
from serve.policy import TenantPolicy
from serve.schemas.jobs import JobOptions
from serve.schemas.tryon import TryOnOptions
from serve.store.assets import get_asset
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.ids import new_id
from serve.store.job_states import tell_state
from serve.store.jobs import NewJob, get_job, insert_jobs
from serve.store.tables import AssetKind, Job, JobClass, JobState
from serve.tenancy.account import budget_of
from serve.tenancy.assets import AssetStore
from serve.tenancy.caller import Caller

# Where the tenant keeps no inputs, the sweeper may take a picture before its job is written.
NUM_TRIES = 3
PICTURES = ("person", "product", "mask")


@dataclass(frozen=True, slots=True)
class Pictures:
    """The encoded pictures of one job, and which of them are assets already."""

    person: bytes = field(repr=False)
    product: bytes = field(repr=False)
    mask: bytes | None = field(repr=False, default=None)
    asset_ids: Mapping[str, str] = field(default_factory=dict)
    """By name, of those that were uploaded before."""

    def by_name(self) -> dict[str, bytes]:
        named = {"person": self.person, "product": self.product, "mask": self.mask}
        return {name: data for name, data in named.items() if data is not None}


class Submission:
    """A job that it answers will end, whatever happens to this process."""

    def __init__(
        self,
        *,
        database: Database,
        assets: AssetStore,
        chooser: Chooser,
        limits: ImageLimits,
        predict: PredictUnits,
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._assets = assets
        self._chooser = chooser
        self._limits = limits
        self._predict = predict
        self._now = now

    def quote_s(self, bundle: Bundle, options: TryOnOptions) -> float:
        """Predicted GPU-seconds."""
        return quote_s(self._predict, bundle, options)

    async def choose(self, caller: Caller, options: TryOnOptions, request_id: str | None) -> Choice:
        """The version that will do it, also when it is tried again.

        Args:
            request_id: the job's; None for a batch, which has one version for all of its cells.

        Raises:
            NotFound, Forbidden: there is none, or none for this tenant.
            Conflict: its collection is pinned to what is not there any more.
            NotSupported: the tenant keeps no results, or the version makes none to keep.
        """
        check_results_kept(caller.policy)
        choice = await self._chooser.choose(
            options,
            party_of(caller, options, request_id),
            caller.policy,
            may_name_version=caller.may_name_version,
        )
        return check_makes_results(choice)

    def recall(
        self, caller: Caller, expert: Expert, version: str, kept: Mapping[str, Any] | None
    ) -> Choice:
        """What was chosen before, where the tenant may still have it.

        Args:
            kept: see `load_choice`.

        Raises:
            NotFound, Forbidden, Conflict, NotSupported: as in `choose`.
        """
        check_results_kept(caller.policy)
        return check_makes_results(self._chooser.recall(expert, version, kept, caller.policy))

    async def submit(
        self,
        caller: Caller,
        options: JobOptions,
        pictures: Pictures,
        choice: Choice,
        job_id: str,
    ) -> Job:
        """
        Args:
            choice: see `choose`.
            job_id: where the request may be a repeat, a job that has it already is the answer.

        Raises:
            RequestError: what would fail later fails now.
            QuotaExhausted, RateLimited: the tenant's budget or its queue is full.
        """
        facts = await asyncio.to_thread(self._inspect, options, pictures)
        for _ in range(NUM_TRIES - 1):
            try:
                return await self._accept(caller, options, choice, pictures, facts, job_id)
            except NotFound:
                continue
        return await self._accept(caller, options, choice, pictures, facts, job_id)

    async def repeat(self, caller: Caller, job_id: str, repeated_id: str | None = None) -> Job:
        """A new job that does what one that failed was to do.

        Args:
            repeated_id: of the new one, as in `submit`.

        Raises:
            NotFound: the tenant has no such job, or its pictures have gone.
            Conflict: it has not failed.
        """
        async with self._database.reading() as session:
            failed = await get_job(session, caller.tenant_id, job_id)
        if failed.state not in (JobState.FAILED, JobState.PARKED):
            raise Conflict(f"{job_id} has not failed: it is {tell_state(failed.state)}.")
        if failed.batch_id is not None:
            raise Conflict(
                f"{job_id} is a cell of {failed.batch_id}",
                remedy=f"POST /v1/batches/{failed.batch_id}/cells/{failed.cell}/retry",
            )
        request = failed.request
        options = TryOnOptions.model_validate({**request["options"], "version": failed.version})
        kept = request.get("choice")
        bundle = self.recall(caller, options.expert, failed.version, kept).bundle
        now = self._now()
        job = NewJob(
            id=repeated_id or new_id("job"),
            version=bundle.version,
            priority=max(failed.priority, JobClass[caller.priority().upper()]),
            request=with_trace(request),
            predicted_gpu_ms=whole_ms(self.quote_s(bundle, options)),
            num_images=options.num_images,
            subject=failed.subject,
            deadline_at=_after(now, request.get("deadline_s")),
        )
        references = [request[name] for name in PICTURES if request.get(name)]
        return await self._write(caller, job, references, now)

    def _inspect(self, options: JobOptions, pictures: Pictures) -> dict[str, PictureFacts]:
        facts = {}
        for name, data in pictures.by_name().items():
            try:
                facts[name] = inspect_picture(data, self._limits)
            except InvalidImage as exc:
                raise InvalidImage(f"{name}: {exc.detail}", remedy=exc.remedy) from exc
        if pictures.mask is not None:
            mask_hw = decode_mask(pictures.mask, options.mask_convention, self._limits)
            check_mask_size(mask_hw, facts["person"].width_px, facts["person"].height_px)
        return facts

    async def _accept(
        self,
        caller: Caller,
        options: JobOptions,
        choice: Choice,
        pictures: Pictures,
        facts: Mapping[str, PictureFacts],
        job_id: str,
    ) -> Job:
        references = {
            name: await self._keep(caller, name, data, pictures, facts[name], options.subject)
            for name, data in pictures.by_name().items()
        }
        now = self._now()
        job = NewJob(
            id=job_id,
            version=choice.bundle.version,
            priority=JobClass[caller.priority(options.priority).upper()],
            request=with_trace(write_request(options, references, choice)),
            predicted_gpu_ms=whole_ms(self.quote_s(choice.bundle, options)),
            num_images=options.num_images,
            subject=options.subject,
            deadline_at=_after(now, options.deadline_s),
        )
        return await self._write(caller, job, list(references.values()), now)

    async def _write(
        self,
        caller: Caller,
        job: NewJob,
        references: Sequence[Mapping[str, str]],
        now: datetime,
    ) -> Job:
        key = caller.tenant_id, job.id
        try:
            async with self._database.transaction() as session:
                if await session.get(Job, key) is None:
                    await hold_assets(session, caller.tenant_id, references)
                    await insert_jobs(
                        session,
                        caller.tenant_id,
                        caller.key_id,
                        [job],
                        budget=budget_of(caller.policy),
                        max_queued=caller.policy.max_queued_jobs,
                        now=now,
                    )
        except Conflict:
            # A router that was taken for dead has written the same job just now.
            async with self._database.reading() as session:
                if await session.get(Job, key) is None:
                    raise
        async with self._database.reading() as session:
            return await get_job(session, *key)

    async def _keep(
        self,
        caller: Caller,
        name: str,
        data: bytes,
        pictures: Pictures,
        facts: PictureFacts,
        subject: str,
    ) -> dict[str, str]:
        known = pictures.asset_ids.get(name)
        if known is not None:
            return {"asset": known}
        asset = await self._assets.store(
            caller.tenant_id,
            caller.policy,
            AssetKind.INPUT,
            data,
            facts.media_type,
            subject,
            width_px=facts.width_px,
            height_px=facts.height_px,
        )
        return {"asset": asset.id}


def write_request(
    options: JobOptions, references: Mapping[str, Mapping[str, str]], choice: Choice
) -> dict[str, object]:
    """What a job's row says it is asked to do."""
    chosen = options.model_dump(mode="json", include=set(TryOnOptions.model_fields))
    return {
        "options": chosen,
        "person": references["person"],
        "product": references["product"],
        "mask": references.get("mask"),
        "webhook_url": options.webhook_url,
        "deadline_s": options.deadline_s,
        "choice": dump_choice(choice),
    }


def with_trace(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a job with what its attempts are linked to: the call that makes it."""
    return {**request, TRACEPARENT: current_traceparent()}


async def hold_assets(
    session: Session, tenant_id: str, references: Iterable[Mapping[str, str]]
) -> None:
    """Nobody removes what the job needs before it is written; afterwards it is needed.

    Raises:
        NotFound: one of them has just gone.
    """
    for asset_id in sorted({each["asset"] for each in references if "asset" in each}):
        await get_asset(session, tenant_id, asset_id, is_held=True)


def check_results_kept(policy: TenantPolicy) -> None:
    """
    Raises:
        NotSupported: the tenant keeps no results, so a job's would be gone before it is fetched.
    """
    if policy.result_retention_s == 0:
        raise NotSupported(
            "this tenant keeps no results: its result_retention_s is 0",
            remedy="ask POST /v1/tryon, which answers the picture itself",
        )


def check_makes_results(choice: Choice) -> Choice:
    """
    Raises:
        NotSupported: the version makes nothing to keep.
    """
    if choice.bundle.imaging == "passthrough":
        raise NotSupported(
            f"{choice.bundle.version} answers what it is sent: there is nothing to keep",
            remedy="ask POST /v1/tryon",
        )
    return choice


def _after(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)
