"""What has outlived its time goes: in batches, from as many processes at once as like to."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta

from serve.errors import Sm4llError
from serve.policy import DAY_S, TenantPolicy
from serve.store.blobs import BlobKey, Blobs
from serve.store.columns import utc_now
from serve.store.contents import ASSET_KINDS, find_needed
from serve.store.engine import Database
from serve.store.exposures import remove_expired_exposures
from serve.store.ledger import release_expired
from serve.store.outcomes import remove_expired_outcomes
from serve.store.retention import (
    list_policies,
    remove_expired_jobs,
    remove_old_batches,
    remove_old_deliveries,
    remove_old_previews,
)
from serve.tenancy.assets import AssetStore
from serve.tenancy.idempotency import ANSWER_KIND, KEPT_S, FirstAnswers

BATCH = 200
MAX_BATCHES = 50
"""Of one kind and tenant in one run, so that none keeps the others waiting."""
ORPHAN_AGE_S = DAY_S
DELIVERIES_KEPT_S = 30 * DAY_S
MIN_JOB_KEPT_S = DAY_S
"""Somebody may still ask how a job ended whose results are kept for no time at all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """How many of each are gone."""

    num_assets: int = 0
    num_jobs: int = 0
    num_batches: int = 0
    num_previews: int = 0
    num_answers: int = 0
    num_reservations: int = 0
    num_deliveries: int = 0
    num_exposures: int = 0
    num_outcomes: int = 0
    num_orphans: int = 0
    num_failures: int = 0
    """Tenants whose turn failed and comes again with the next run."""

    def __add__(self, other: "SweepReport") -> "SweepReport":
        fields = self.__dataclass_fields__
        sums = map(sum, zip(astuple(self), astuple(other), strict=True))
        return SweepReport(**dict(zip(fields, sums, strict=True)))


class Sweeper:
    """Every step is a transaction of its own and may be repeated."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        assets: AssetStore,
        answers: FirstAnswers,
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._blobs = blobs
        self._assets = assets
        self._answers = answers
        self._now = now

    async def run_once(self) -> SweepReport:
        """
        Raises:
            StoreUnavailable: the tenants cannot be read.
        """

        async def release() -> int:
            async with self._database.transaction() as session:
                return await release_expired(session, self._now(), BATCH)

        report = SweepReport(num_reservations=await _repeat(release))
        after = ""
        while True:
            async with self._database.reading() as session:
                tenants = await list_policies(session, after, BATCH)
            for tenant_id, policy in tenants:
                try:
                    swept = await self._sweep(tenant_id, TenantPolicy.model_validate(policy))
                except Sm4llError as exc:
                    logger.warning("%s could not be swept: %s", tenant_id, exc.detail)
                    swept = SweepReport(num_failures=1)
                except Exception:  # an unreadable policy among them: those behind it have turns too
                    logger.exception("%s could not be swept", tenant_id)
                    swept = SweepReport(num_failures=1)
                report += swept
            if len(tenants) < BATCH:
                return report
            after = tenants[-1][0]

    async def run_forever(self, interval_s: float = 300.0) -> None:
        """Until it is cancelled; a database that is away is tried again at the next turn."""
        while True:
            try:
                report = await self.run_once()
                if any(astuple(report)):
                    logger.info("swept: %s", report)
            except Sm4llError as exc:
                logger.warning("nothing was swept: %s", exc.detail)
            await asyncio.sleep(interval_s)

    async def _sweep(self, tenant_id: str, policy: TenantPolicy) -> SweepReport:
        now = self._now()
        job_kept_s = max(policy.result_retention_s, MIN_JOB_KEPT_S)

        async def jobs() -> int:
            finished_before = now - timedelta(seconds=job_kept_s)
            async with self._database.transaction() as session:
                gone = await remove_expired_jobs(session, tenant_id, now, finished_before, BATCH)
            return len(gone)

        async def batches() -> int:
            finished_before = now - timedelta(seconds=job_kept_s)
            async with self._database.transaction() as session:
                return await remove_old_batches(session, tenant_id, finished_before, BATCH)

        async def previews() -> int:
            if policy.result_retention_s >= job_kept_s:
                return 0  # they go with their jobs
            before = now - timedelta(seconds=policy.result_retention_s)
            async with self._database.transaction() as session:
                return await remove_old_previews(session, tenant_id, before, BATCH)

        async def deliveries() -> int:
            before = now - timedelta(seconds=DELIVERIES_KEPT_S)
            async with self._database.transaction() as session:
                return await remove_old_deliveries(session, tenant_id, before, BATCH)

        async def exposures() -> int:
            async with self._database.transaction() as session:
                return await remove_expired_exposures(session, tenant_id, now, BATCH)

        async def outcomes() -> int:
            async with self._database.transaction() as session:
                return await remove_expired_outcomes(session, tenant_id, now, BATCH)

        async def assets() -> int:
            return len(await self._assets.drop_expired(tenant_id, BATCH))

        return SweepReport(
            num_jobs=await _repeat(jobs),
            num_batches=await _repeat(batches),
            num_previews=await _repeat(previews),
            num_assets=await _repeat(assets),
            num_answers=await _repeat(lambda: self._answers.drop_expired(tenant_id, BATCH)),
            num_deliveries=await _repeat(deliveries),
            num_exposures=await _repeat(exposures),
            num_outcomes=await _repeat(outcomes),
            num_orphans=await self._drop_orphans(tenant_id),
        )

    async def _drop_orphans(self, tenant_id: str) -> int:
        """Blobs that a crash left without a row; young ones may be waiting for theirs."""
        num_dropped = 0
        for kind in ASSET_KINDS:
            batch: list[BlobKey] = []
            async for key in self._old_blobs(tenant_id, kind, ORPHAN_AGE_S):
                batch.append(key)
                if len(batch) == BATCH:
                    num_dropped += await self._drop_unneeded(tenant_id, kind, batch)
                    batch = []
            num_dropped += await self._drop_unneeded(tenant_id, kind, batch)
        # Each belongs to one row, which lives a day from before the blob was put.
        async for key in self._old_blobs(tenant_id, ANSWER_KIND, KEPT_S + ORPHAN_AGE_S):
            await self._blobs.delete(key)
            num_dropped += 1
        return num_dropped

    async def _old_blobs(self, tenant_id: str, kind: str, age_s: float) -> AsyncIterator[BlobKey]:
        before = self._now() - timedelta(seconds=age_s)
        async for info in self._blobs.list(tenant_id, kind):
            if info.modified_at < before:
                yield info.key

    async def _drop_unneeded(self, tenant_id: str, kind: str, keys: list[BlobKey]) -> int:
        if not keys:
            return 0
        async with self._database.reading() as session:
            hashes = [key.sha256 for key in keys]
            needed = await find_needed(session, tenant_id, kind, hashes)
        orphans = [key for key in keys if key.sha256 not in needed]
        return sum([await self._assets.drop_blob(key) for key in orphans])


async def _repeat(step: Callable[[], Awaitable[int]]) -> int:
    """Batch after batch while they are full."""
    total = 0
    for _ in range(MAX_BATCHES):
        count = await step()
        total += count
        if count < BATCH:
            break
    return total
