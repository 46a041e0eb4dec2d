"""Batches: a matrix of jobs that is made, started, paused, cancelled and tried again as one.

Every call is idempotent where a person might click twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from serve.choosing import dump_choice
from serve.config import FetchConfig
from serve.errors import Conflict, FetchRefused, InvalidRequest, NotFound
from serve.fetching.post import check_webhook_url
from serve.fetching.target import Target
from serve.jobs.matrix import read_spec, write_cells, write_spec
from serve.jobs.quote import whole_ms
from serve.jobs.submission import Submission
from serve.observing.tracing import current_traceparent
from serve.schemas.batches import MAX_SPEC_BYTES, BatchEstimate, BatchRequest
from serve.schemas.tryon import TryOnOptions
from serve.store.assets import unknown_asset
from serve.store.batch_progress import note_ended
from serve.store.batch_tables import HELD_UNTIL, Batch, BatchState
from serve.store.batches import (
    UNDER_WAY,
    begin,
    cancel_cells,
    find_missing_assets,
    free_waiting,
    get_batch,
    hold_waiting,
    lock_batches,
    read_cells,
    reopen_cells,
    set_state,
)
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.ids import new_id
from serve.store.jobs import insert_jobs
from serve.store.ledger import read_counter
from serve.store.tables import JobClass, JobState
from serve.tenancy.account import budget_of
from serve.tenancy.caller import Caller

FAILED = (JobState.FAILED, JobState.PARKED)


@dataclass(frozen=True, kw_only=True)
class UrlRules:
    """What may be asked for pictures, and what may be told about the end."""

    pictures: FetchConfig
    webhooks: FetchConfig


class Batches:
    """
    Args:
        num_replicas: the most there may be, by version; an estimate supposes them.
    """

    def __init__(
        self,
        *,
        database: Database,
        submission: Submission,
        rules: UrlRules,
        num_replicas: Mapping[str, int],
        now: Callable[[], datetime] = utc_now,
    ):
        self.database = database
        self._submission = submission
        self._rules = rules
        self._num_replicas = dict(num_replicas)
        self._now = now

    async def make(
        self, caller: Caller, request: BatchRequest, batch_id: str | None = None
    ) -> Batch:
        """A draft, or a started batch where the request says so.

        Args:
            batch_id: of a request that may be a repeat: a batch that has it already is the answer.

        Raises:
            RequestError: what would fail in every cell fails now; an asset is not the tenant's.
            QuotaExhausted, RateLimited: it was to start, and does not fit.
        """
        options = TryOnOptions(
            expert=request.expert, version=request.version, **request.options.model_dump()
        )
        choice = await self._submission.choose(caller, options, None)
        bundle = choice.bundle
        chosen = options.model_copy(update={"version": bundle.version})
        spec = write_spec(request, chosen, dump_choice(choice))
        if len(json.dumps(spec)) > MAX_SPEC_BYTES:
            raise InvalidRequest(
                f"the batch is described in more than {MAX_SPEC_BYTES // 2**20} MiB",
                remedy="upload the pictures and name them by their ast_ ids",
            )
        self._check_urls(request)
        cell_ms = whole_ms(self._submission.quote_s(bundle, options))
        num_cells = len(request.products) * len(request.persons)
        batch = Batch(
            tenant_id=caller.tenant_id,
            id=batch_id or new_id("bat"),
            key_id=caller.key_id,
            state=BatchState.DRAFT,
            priority=JobClass[caller.priority(request.priority).upper()],
            version=bundle.version,
            spec=spec,
            num_cells=num_cells,
            num_ended=0,
            predicted_gpu_ms=cell_ms * num_cells,
            created_at=self._now(),
        )
        async with self.database.transaction() as session:
            await lock_batches(session, caller.tenant_id)
            made = await session.get(Batch, (batch.tenant_id, batch.id))
            if made is not None:
                return made
            await self._find_assets(session, batch, is_held=request.start)
            session.add(batch)
            await session.flush()
            if request.start:
                await self._start(session, caller, batch)
        return batch

    async def start(self, caller: Caller, batch_id: str) -> None:
        """All cells become jobs or none does; a second start changes nothing.

        Raises:
            Conflict: it was cancelled.
            NotFound: no such batch, or an asset has gone since it was made.
            QuotaExhausted, RateLimited: it does not fit.
        """
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            if batch.state is BatchState.CANCELLED:
                raise Conflict("The batch is cancelled and cannot be started any more.")
            if batch.state is BatchState.DRAFT:
                await self._find_assets(session, batch, is_held=True)
                await self._start(session, caller, batch)

    async def pause(self, caller: Caller, batch_id: str) -> None:
        """Cells that run go on; nothing that waits is begun.

        Two steps: no cell's end waits for us while we wait for a cell. Whoever dies between them
        asks once more.

        Raises:
            Conflict: it is not under way.
        """
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            await set_state(session, batch, UNDER_WAY, BatchState.PAUSED)
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            if batch.state is BatchState.PAUSED:
                await hold_waiting(session, caller.tenant_id, batch_id)

    async def resume(self, caller: Caller, batch_id: str) -> None:
        """
        Raises:
            Conflict: it is not under way.
        """
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            await set_state(session, batch, UNDER_WAY, BatchState.RUNNING)
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            if batch.state is BatchState.RUNNING:
                await free_waiting(session, caller.tenant_id, batch_id, self._now())

    async def cancel(self, caller: Caller, batch_id: str) -> None:
        """Cells that wait end now, those that run at their next step; what is done stays.

        Raises:
            Conflict: it has finished.
        """
        now = self._now()
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            if batch.state is BatchState.CANCELLED:
                return
            is_draft = batch.state is BatchState.DRAFT
            num_cancelled = await cancel_cells(session, batch, now)
            allowed = (BatchState.DRAFT, *UNDER_WAY)
            await set_state(session, batch, allowed, BatchState.CANCELLED)
            if is_draft:
                num_cancelled = batch.num_cells
            if num_cancelled:
                await note_ended(session, caller.tenant_id, batch_id, now, num_cancelled)

    async def retry(self, caller: Caller, batch_id: str, cell: int | None = None) -> int:
        """A new job for a cell that failed, or for all that did; says for how many.

        Raises:
            NotFound: no such batch or cell.
            Conflict: the one cell has not failed, or the batch is a draft or cancelled.
            QuotaExhausted, RateLimited: they do not fit.
        """
        async with self.database.transaction() as session:
            batch = await self._locked(session, caller, batch_id)
            if batch.state in (BatchState.DRAFT, BatchState.CANCELLED):
                raise Conflict(f"The batch is {batch.state.value}: no cell is tried again.")
            cells = () if cell is None else (cell,)
            jobs = await read_cells(session, batch, cells=cells)
            if cell is not None and not jobs:
                raise NotFound("There is no such cell.")
            failed = [job.cell for job in jobs if job.state in FAILED and job.cell is not None]
            if cell is not None and not failed:
                raise Conflict(f"Cell {cell} has not failed: it is {jobs[0].state.value}.")
            if failed:
                await self._find_assets(session, batch, is_held=True)
                await self._insert(session, caller, batch, failed)
                await reopen_cells(session, batch, len(failed))
        return len(failed)

    async def estimate(self, caller: Caller, batch: Batch) -> BatchEstimate:
        budget, now = budget_of(caller.policy), self._now()
        images = batch.num_cells * read_spec(batch).options.num_images
        async with self.database.reading() as session:
            used = await read_counter(session, caller.tenant_id, now)
        gpu_ms = used.reserved_gpu_ms + used.settled_gpu_ms + batch.predicted_gpu_ms
        num_images = used.reserved_images + used.settled_images + images
        is_new = batch.state is BatchState.DRAFT
        fits = (budget.gpu_ms is None or gpu_ms <= budget.gpu_ms) and (
            budget.images is None or num_images <= budget.images
        )
        num_replicas = max(1, self._num_replicas.get(batch.version, 1))
        return BatchEstimate(
            cells=batch.num_cells,
            gpu_s=batch.predicted_gpu_ms / 1e3,
            images=images,
            fits_budget=fits if is_new else True,
            estimated_duration_s=batch.predicted_gpu_ms / 1e3 / num_replicas,
        )

    async def _locked(self, session: Session, caller: Caller, batch_id: str) -> Batch:
        await lock_batches(session, caller.tenant_id)
        return await get_batch(session, caller.tenant_id, batch_id)

    async def _start(self, session: Session, caller: Caller, batch: Batch) -> None:
        await begin(session, batch.tenant_id, batch.id, self._now())
        await session.refresh(batch)
        await self._insert(session, caller, batch, range(batch.num_cells))

    async def _insert(
        self, session: Session, caller: Caller, batch: Batch, cells: Sequence[int]
    ) -> None:
        spec = read_spec(batch)
        options = spec.options
        kept = spec.choice
        bundle = self._submission.recall(caller, options.expert, batch.version, kept).bundle
        # As of now: a draft may be older than what its version was measured to cost, and than the
        # tenant's ceiling. The budget would be checked against nothing otherwise.
        cell_ms = whole_ms(self._submission.quote_s(bundle, options))
        batch.predicted_gpu_ms = cell_ms * batch.num_cells
        batch.priority = max(batch.priority, JobClass[caller.priority().upper()])
        held_until = HELD_UNTIL if batch.state is BatchState.PAUSED else None
        await insert_jobs(
            session,
            caller.tenant_id,
            caller.key_id,
            write_cells(batch, cells, held_until, current_traceparent()),
            budget=budget_of(caller.policy),
            max_queued=caller.policy.max_queued_jobs,
            now=self._now(),
        )

    async def _find_assets(self, session: Session, batch: Batch, *, is_held: bool) -> None:
        asset_ids = read_spec(batch).asset_ids
        missing = await find_missing_assets(session, batch.tenant_id, asset_ids, is_held=is_held)
        if missing:
            raise unknown_asset(min(missing))

    def _check_urls(self, request: BatchRequest) -> None:
        if request.webhook_url is not None:
            check_webhook_url(request.webhook_url, self._rules.webhooks)
        pictures = self._rules.pictures
        for url in request.references:
            if not url.startswith("ast_"):
                if not pictures.enabled:
                    raise FetchRefused("images by URL are not fetched here")
                Target.read(url, pictures)
