"""What an experiment's requests left behind them is read as it was written, once each."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from serve.errors import Conflict
from serve.evidence.writer import ExposureWriter
from serve.store.engine import Database, Session
from serve.store.experiment_tables import Experiment, ExperimentState, Outcome, Verdict
from serve.store.exposures import (
    NewExposure,
    count_exposures,
    insert_exposures,
    read_exposures,
    remove_expired_exposures,
)
from serve.store.ids import new_id
from tests.stores import START, add_tenant

pytestmark = pytest.mark.anyio

LATER = START + timedelta(days=400)


async def prepare(database: Database, *experiments: str) -> None:
    async with database.transaction() as session:
        for tenant_id in ("acme", "zeta"):
            await add_tenant(session, tenant_id)
        for experiment in experiments or ("look",):
            add_experiment(session, experiment)


def add_experiment(session: Session, experiment_id: str) -> None:
    session.add(
        Experiment(
            id=experiment_id,
            design={},
            state=ExperimentState.RUNNING,
            revision=1,
            created_by="key",
            created_at=START,
            updated_at=START,
        )
    )


def exposure(number: int, **changes: Any) -> NewExposure:
    fields: dict[str, Any] = {
        "tenant_id": "acme",
        "id": f"tr_{number:03}",
        "experiment_id": "look",
        "revision": 1,
        "arm": "control",
        "version": "eye@1",
        "unit": f"{number:032x}",
        "request_id": f"req-{number}",
        "latency_ms": 12.5,
        "at": START + timedelta(seconds=number),
    }
    return NewExposure(**{**fields, **changes})


async def write(database: Database, *exposures: NewExposure) -> int:
    async with database.transaction() as session:
        return await insert_exposures(session, exposures, LATER)


async def say(database: Database, request_id: str, verdict: Verdict, second: int = 0) -> None:
    async with database.transaction() as session:
        session.add(
            Outcome(
                tenant_id="acme",
                id=new_id("out"),
                request_id=request_id,
                verdict=verdict,
                at=START + timedelta(seconds=second),
                expires_at=LATER,
            )
        )


async def test_what_was_written_is_read_oldest_first(database: Database) -> None:
    await prepare(database)
    full = exposure(
        2,
        is_shadow=True,
        category="sun",
        tags={"season": "ss27"},
        code="generation_failed",
        is_failure=True,
        gpu_ms=7,
        upstream_microusd=5,
        seed=2**32 - 1,
        metrics={"colour": 3.25},
        pictures={"painted": "ast_1"},
    )
    assert await write(database, full, exposure(1)) == 2
    async with database.reading() as session:
        first, second = await read_exposures(session, "look")
    assert (first.id, first.tags, first.metrics, first.pictures) == ("tr_001", {}, {}, None)
    assert first.verdicts == frozenset()
    names = set(second.__dataclass_fields__) - {"verdicts"}
    assert {name: getattr(second, name) for name in names} == {
        name: getattr(full, name) for name in names
    }


async def test_written_again_it_is_the_same_row_and_counted_once(database: Database) -> None:
    await prepare(database)
    assert await write(database, exposure(1), exposure(1), exposure(1, is_shadow=True)) == 2
    assert await write(database, exposure(1, latency_ms=99.0), exposure(2)) == 1
    async with database.reading() as session:
        assert await count_exposures(session, "look", 1) == (3, START + timedelta(seconds=2))
        assert await count_exposures(session, "look", 2) == (0, None)
        assert {seen.latency_ms for seen in await read_exposures(session, "look")} == {12.5}


@pytest.mark.parametrize("is_turned", [False, True])
async def test_a_job_counts_as_its_best_attempt(database: Database, is_turned: bool) -> None:
    await prepare(database)
    cancelled = exposure(1, code="cancelled")
    failed = exposure(1, code="generation_failed", is_failure=True)
    answered = exposure(1, metrics={"colour": 1.0})
    expected = ["cancelled", "generation_failed", ""]
    attempts = [cancelled, failed, answered]
    if is_turned:
        attempts, expected = attempts[::-1], ["", "", ""]
    for attempt, code in zip(attempts, expected, strict=True):
        await write(database, attempt)
        async with database.reading() as session:
            (seen,) = await read_exposures(session, "look")
        assert (seen.code, seen.is_failure) == (code, code == "generation_failed")
    assert seen.metrics == {"colour": 1.0}


async def test_verdicts_are_joined_by_request_or_answer_and_the_latest_opinion_counts(
    database: Database,
) -> None:
    await prepare(database)
    shadow = exposure(1, is_shadow=True, arm="challenger")
    elsewhere = exposure(1, tenant_id="zeta")
    await write(database, exposure(1), shadow, elsewhere, exposure(2), exposure(3))
    await say(database, "req-1", Verdict.REJECTED, 2)
    await say(database, "tr_001", Verdict.ACCEPTED, 1)
    await say(database, "req-1", Verdict.RETURNED, 1)
    await say(database, "tr_002", Verdict.CONVERTED)
    async with database.reading() as session:
        seen = await read_exposures(session, "look")
    said = {(one.tenant_id, one.id, one.is_shadow): set(one.verdicts) for one in seen}
    assert said == {
        ("acme", "tr_001", False): {"rejected", "returned"},
        ("acme", "tr_001", True): set(),
        ("acme", "tr_002", False): {"converted"},
        ("acme", "tr_003", False): set(),
        ("zeta", "tr_001", False): set(),
    }


async def test_reading_is_narrowed_and_the_newest_are_kept(database: Database) -> None:
    await prepare(database, "look", "other")
    await write(
        database,
        exposure(1),
        exposure(2, revision=2),
        exposure(3, tenant_id="zeta"),
        exposure(4, experiment_id="other"),
        exposure(5),
    )
    async with database.reading() as session:

        async def ids(**narrow: Any) -> list[str]:
            return [seen.id for seen in await read_exposures(session, "look", **narrow)]

        assert await ids() == ["tr_001", "tr_002", "tr_003", "tr_005"]
        assert await ids(revision=1, tenant_id="acme") == ["tr_001", "tr_005"]
        assert await ids(since=START + timedelta(seconds=3)) == ["tr_003", "tr_005"]
        assert await ids(limit=2) == ["tr_003", "tr_005"]


async def test_an_exposure_of_nothing_is_refused_and_the_group_undone(database: Database) -> None:
    await prepare(database)
    with pytest.raises(Conflict):
        await write(database, exposure(1), exposure(2, experiment_id="gone"))
    async with database.reading() as session:
        assert await count_exposures(session, "look", 1) == (0, None)


async def test_what_has_expired_goes_and_only_of_that_tenant(database: Database) -> None:
    await prepare(database)
    await write(database, exposure(1), exposure(1, is_shadow=True), exposure(2, tenant_id="zeta"))
    async with database.transaction() as session:
        await insert_exposures(session, [exposure(3)], LATER + timedelta(days=1))
    for expected in (1, 1, 0):
        async with database.transaction() as session:
            assert await remove_expired_exposures(session, "acme", LATER, 1) == expected
    async with database.reading() as session:
        assert [seen.id for seen in await read_exposures(session, "look")] == ["tr_002", "tr_003"]


class SlowWriter(ExposureWriter):
    """Begins to write, and ends when a test says so."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, 60.0, linger_s=0.0)
        self.is_asked, self.is_free = asyncio.Event(), asyncio.Event()
        self.groups: list[int] = []

    async def _insert(self, exposures: list[NewExposure]) -> None:
        self.groups.append(len(exposures))
        self.is_asked.set()
        await self.is_free.wait()


async def test_what_comes_while_a_group_is_written_waits_for_company(database: Database) -> None:
    writer, one = SlowWriter(database), exposure(1)
    writer.add(one)
    await writer.is_asked.wait()
    for _ in range(3):
        writer.add(one)
    first, writer._linger_s = writer._task, 3_600.0
    writer.is_free.set()
    assert first is not None
    await first
    assert writer.groups == [1], "each request would be a transaction of its own"
    await writer.flush()
    assert writer.groups == [1, 3]
