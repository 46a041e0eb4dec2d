"""Two routers that write the same job at once: it is there once, and both say so."""

import asyncio

import pytest

from serve.errors import Conflict
from serve.imaging.limits import ImageLimits
from serve.jobs.submission import Submission
from serve.policy import SCOPES, TenantPolicy
from serve.store.engine import Database
from serve.tenancy.caller import Caller
from tests.stores import FakeClock, add_tenant
from tests.test_store_jobs import new_job

pytestmark = pytest.mark.anyio


def build(database: Database) -> Submission:
    """As far as a job is written down that is known already."""
    return Submission(
        database=database,
        assets=None,  # type: ignore[arg-type]
        chooser=None,  # type: ignore[arg-type]
        limits=ImageLimits(max_bytes=1, max_pixels=1, max_side_px=1),
        predict=lambda version, num_units: 1.0,
        now=FakeClock(),
    )


async def write(submission: Submission, caller: Caller, job_id: str) -> str:
    job = new_job(id=job_id)
    return (await submission._write(caller, job, [], FakeClock()())).id


async def test_same_job_written_at_once_is_one_job(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
    caller = Caller("acme", None, frozenset(SCOPES), TenantPolicy())  # type: ignore[arg-type]
    job_id = new_job().id
    submission = build(database)
    written = await asyncio.gather(*(write(submission, caller, job_id) for _ in range(5)))
    assert set(written) == {job_id}


async def test_other_contradictions_are_told(database: Database) -> None:
    caller = Caller("nobody", None, frozenset(SCOPES), TenantPolicy())  # type: ignore[arg-type]
    with pytest.raises(Conflict):
        await write(build(database), caller, new_job().id)
