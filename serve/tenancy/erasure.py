"""Everything of one subject is forgotten, and the audit log proves it without naming them.

Jobs first, so that nothing makes new pictures; then pictures, kept answers and caches. Each step
can be repeated: after a crash, or while a job still runs, the same request is sent again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from serve.errors import Conflict
from serve.store.audit import Act, append_record
from serve.store.batches import remove_subject_batches
from serve.store.claims import Claims
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.retention import (
    expire_jobs,
    find_unfinished,
    remove_deliveries_about,
    remove_subject_jobs,
)
from serve.store.tables import JobState
from serve.tenancy.assets import AssetStore, Deleted
from serve.tenancy.idempotency import FirstAnswers
from serve.tenancy.memory import remembered_as

BATCH = 200
Forget = Callable[[Collection[str]], Awaitable[None]]
"""Makes every replica forget what it remembers of these pictures (`memory.py`)."""


async def forget_nothing(content_hashes: Collection[str]) -> None:
    """Where no replica is near, as in a command."""


@dataclass(frozen=True, kw_only=True)
class Erased:
    """The proof of one erasure."""

    subject_sha256: str
    assets: tuple[Deleted, ...]
    jobs_deleted: tuple[str, ...]
    jobs_cancelling: tuple[str, ...]
    num_answers: int
    num_deliveries: int
    erased_at: datetime
    actor: str
    audit_sequence: int
    audit_sha256: str

    @property
    def is_complete(self) -> bool:
        return not self.jobs_cancelling

    @property
    def num_bytes(self) -> int:
        return sum(asset.num_bytes for asset in self.assets if asset.is_blob_deleted)


class Erasure:
    """Reaches rows, blobs, kept answers and caches of one tenant's subject."""

    def __init__(
        self,
        database: Database,
        assets: AssetStore,
        answers: FirstAnswers,
        forget: Forget = forget_nothing,
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._assets = assets
        self._answers = answers
        self._forget = forget
        self._now = now
        self._claims = Claims(now=now)

    async def delete(self, tenant_id: str, asset_id: str, actor: str) -> Deleted:
        """One asset, and what is remembered of it, unless another asset has the same bytes.

        Raises:
            NotFound: the tenant has no such asset.
        """
        deleted = await self._assets.delete(tenant_id, asset_id, actor=actor)
        about = {deleted.id}
        if deleted.is_blob_deleted:
            about.add(deleted.sha256)
            await self._forget({remembered_as(tenant_id, deleted.sha256)})
        await self._answers.forget(tenant_id, about)
        return deleted

    async def erase(self, tenant_id: str, subject: str, actor: str) -> Erased:
        """
        Args:
            actor: the key that asked for it.
        """
        cancelling = await self._cancel(tenant_id, subject)
        jobs = await self._remove_jobs(tenant_id, subject)
        async with self._database.transaction() as session:
            batches = await remove_subject_batches(session, tenant_id, subject)
        told = [*jobs, *cancelling, *batches]
        num_deliveries = 0
        if told:
            async with self._database.transaction() as session:
                num_deliveries = await remove_deliveries_about(session, tenant_id, told)
        assets = tuple(await self._assets.erase_subject(tenant_id, subject))
        hashes = {asset.sha256 for asset in assets}
        references = {*hashes, *(asset.id for asset in assets), *told}
        num_answers = await self._answers.forget(tenant_id, references) if references else 0
        if hashes:
            await self._forget({remembered_as(tenant_id, one) for one in hashes})
        found: dict[str, Any] = {
            "subject_sha256": hashlib.sha256(subject.encode()).hexdigest(),
            "assets": assets,
            "jobs_deleted": tuple(jobs),
            "jobs_cancelling": tuple(cancelling),
            "num_answers": num_answers,
            "num_deliveries": num_deliveries,
        }
        return await self._prove(tenant_id, actor, found)

    async def _cancel(self, tenant_id: str, subject: str) -> list[str]:
        """Asks all to stop; those that run, and will have ended soon."""
        running = []
        async with self._database.reading() as session:
            unfinished = await find_unfinished(session, tenant_id, subject)
        for job_id in unfinished:
            async with self._database.transaction() as session:
                try:
                    state = await self._claims.cancel(session, tenant_id, job_id)
                except Conflict:
                    continue  # it ended by itself just now
                if state is JobState.RUNNING:
                    await expire_jobs(session, tenant_id, [job_id], self._now())
                    running.append(job_id)
        return running

    async def _remove_jobs(self, tenant_id: str, subject: str) -> list[str]:
        removed: list[str] = []
        while True:
            async with self._database.transaction() as session:
                batch = await remove_subject_jobs(session, tenant_id, subject, BATCH)
            removed += batch
            if len(batch) < BATCH:
                return removed

    async def _prove(self, tenant_id: str, actor: str, found: dict[str, Any]) -> Erased:
        now = self._now()
        assets = [
            {**asdict(asset), "kind": asset.kind.value}  # as JSON holds it
            for asset in found["assets"]
        ]
        detail = {
            **found,
            "assets": assets,
            "jobs_deleted": list(found["jobs_deleted"]),
            "jobs_cancelling": list(found["jobs_cancelling"]),
        }
        act = Act(
            actor=actor,
            action="subject.erase",
            tenant_id=tenant_id,
            target=found["subject_sha256"],
            detail=detail,
        )
        async with self._database.transaction() as session:
            record = await append_record(session, act, now)
        return Erased(
            **found,
            erased_at=now,
            actor=actor,
            audit_sequence=record.sequence,
            audit_sha256=record.sha256,
        )
