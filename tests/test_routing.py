"""What routers choose by is at most seconds old, and stays while the database is away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve.errors import StoreUnavailable
from serve.experiments.book import RoutingBook, RoutingTable
from serve.store.engine import Database, Session
from serve.store.experiment_tables import (
    Experiment,
    ExperimentAllocation,
    ExperimentState,
    ExpertDefault,
    ServedState,
    ServedVersion,
)
from serve.store.routing import bump_routing, read_revision, read_routing
from tests.stores import START

pytestmark = pytest.mark.anyio

PATIENCE_S = 5.0


class Seconds:
    """A monotonic clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Moody(Database):
    """Another database's reads, which fail or hang where a test says so."""

    def __init__(self, database: Database):
        self._inner = database
        self.num_reads = 0
        self.is_away = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        self.num_reads += 1
        if self.is_away:
            raise StoreUnavailable("The database does not answer.")
        await self.may_answer.wait()
        async with self._inner.reading() as session:
            yield session


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def moody(database: Database) -> Moody:
    return Moody(database)


@pytest.fixture
def book(moody: Moody, clock: Seconds) -> RoutingBook:
    return RoutingBook(moody, clock)


def design(name: str = "frames", expert: str = "eye", weight: int = 9_000) -> dict[str, Any]:
    return {
        "id": name,
        "expert": expert,
        "arms": [
            {"name": "control", "version": f"{expert}@1", "weight": weight},
            {"name": "challenger", "version": f"{expert}@2", "weight": 10_000 - weight},
        ],
    }


def add_experiment(
    session: Session, document: dict[str, Any], state: ExperimentState, revision: int = 1
) -> None:
    session.add(
        Experiment(
            id=document["id"],
            design=document,
            state=state,
            revision=revision,
            created_by="tests",
            created_at=START,
            updated_at=START,
        )
    )


async def set_default(database: Database, version: str) -> int:
    async with database.transaction() as session:
        expert = version.partition("@")[0]
        await session.merge(
            ExpertDefault(expert=expert, version=version, changed_by="tests", changed_at=START)
        )
        return await bump_routing(session)


async def bump(database: Database, error: Exception | None = None) -> int:
    async with database.transaction() as session:
        revision = await bump_routing(session)
        if error is not None:
            raise error
    return revision


async def test_change_raises_the_revision_with_it_or_not_at_all(database: Database) -> None:
    async with database.reading() as session:
        before = await read_revision(session)
    assert await set_default(database, "eye@2") == before + 1
    with pytest.raises(RuntimeError, match="undone"):
        await bump(database, RuntimeError("undone"))
    async with database.reading() as session:
        assert await read_revision(session) == before + 1


async def test_changes_at_once_raise_it_one_after_the_other(database: Database) -> None:
    revisions = await asyncio.gather(*(bump(database) for _ in range(5)))
    assert sorted(revisions) == list(range(min(revisions), min(revisions) + 5))


async def test_only_what_assigns_is_read_with_its_newest_allocation(database: Database) -> None:
    async with database.transaction() as session:
        for name, state in (
            ("on", ExperimentState.RUNNING),
            ("ice", ExperimentState.FROZEN),
            ("draft", ExperimentState.DRAFT),
            ("paused", ExperimentState.PAUSED),
            ("ended", ExperimentState.ENDED),
        ):
            add_experiment(session, design(name), state, revision=2)
        add_experiment(session, design("later") | {"unit": "moon phase"}, ExperimentState.RUNNING)
        await session.flush()
        for name in ("on", "ice", "draft", "paused", "ended", "later"):
            for revision, end in ((1, 9_000), (2, 5_000)):
                ranges = [[end, "control"], [10_000, "challenger"]]
                session.add(
                    ExperimentAllocation(
                        experiment_id=name, revision=revision, ranges=ranges, at=START
                    )
                )
        session.add(
            ServedVersion(
                version="eye@2",
                bundle={"version": "eye@2"},
                deployed={"version": "eye@2"},
                state=ServedState.READY,
                created_by="tests",
                created_at=START,
                updated_at=START,
            )
        )
    await set_default(database, "shoes@2")
    async with database.reading() as session:
        rows = await read_routing(session)
    assert [row.id for row, _ in rows.experiments] == ["ice", "later", "on"]
    table = await RoutingBook(database).fresh()
    assert table.defaults == {"shoes": "shoes@2"}
    assert [served.version for served in table.served] == ["eye@2"]
    # One that this version of the system cannot read assigns nobody; the others go on.
    assert [live.design.id for live in table.experiments["eye"]] == ["ice", "on"]
    assert {live.revision for live in table.experiments["eye"]} == {2}
    assert table.experiments["eye"][0].allocation.shares() == {
        "control": 5_000,
        "challenger": 5_000,
    }


async def test_fresh_table_costs_no_read_and_an_older_one_is_read_beside(
    database: Database, book: RoutingBook, moody: Moody, clock: Seconds
) -> None:
    first = await book.fresh()
    clock.now_s += 0.9
    await set_default(database, "eye@2")
    assert await book.fresh() is first
    assert moody.num_reads == 1
    clock.now_s += 0.2
    assert await asyncio.gather(*(book.fresh() for _ in range(20))) == [first] * 20
    await book.flush()
    assert moody.num_reads == 2
    assert (await book.fresh()).defaults == {"eye": "eye@2"}


async def test_router_that_was_idle_waits_for_the_change(
    database: Database, book: RoutingBook, moody: Moody, clock: Seconds
) -> None:
    await book.fresh()
    await set_default(database, "eye@2")
    clock.now_s += 3_600
    tables = await asyncio.gather(*(book.fresh() for _ in range(20)))
    assert [table.defaults for table in tables] == [{"eye": "eye@2"}] * 20
    assert moody.num_reads == 2


async def test_nothing_changed_is_known_from_one_number(
    book: RoutingBook, clock: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await book.fresh()
    monkeypatch.delattr("serve.experiments.book.read_routing")
    clock.now_s += 60
    assert await book.fresh() is first


async def test_first_read_must_succeed(moody: Moody, book: RoutingBook) -> None:
    moody.is_away = True
    outcomes = await asyncio.gather(*(book.fresh() for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert moody.num_reads == 1
    moody.is_away = False
    assert (await book.fresh()).revision >= 1


async def test_old_table_stays_in_force_while_the_database_is_away(
    database: Database,
    book: RoutingBook,
    moody: Moody,
    clock: Seconds,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = await book.fresh()
    moody.is_away = True
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            clock.now_s += 10
            assert await book.fresh() is first
        num_reads = moody.num_reads
        clock.now_s += 0.5
        assert await book.fresh() is first  # asked again every second at most
    assert moody.num_reads == num_reads
    assert len([r for r in caplog.records if "stays in force" in r.getMessage()]) == 1
    await set_default(database, "eye@2")
    moody.is_away = False
    clock.now_s += 3
    assert (await book.fresh()).defaults == {"eye": "eye@2"}


async def test_database_that_hangs_is_waited_for_once(
    book: RoutingBook, moody: Moody, clock: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.experiments.book.PATIENCE_S", 0.01)
    first = await book.fresh()
    moody.may_answer.clear()
    clock.now_s += 60
    assert await book.fresh() is first
    monkeypatch.setattr("serve.experiments.book.PATIENCE_S", 1e9)
    async with asyncio.timeout(PATIENCE_S):
        assert await book.fresh() is first
    moody.may_answer.set()
    await book.flush()


async def test_who_asked_is_told_every_other_table(
    database: Database, book: RoutingBook, clock: Seconds
) -> None:
    told: list[RoutingTable] = []
    book.on_change(told.append)
    await book.fresh()
    clock.now_s += 10
    await book.fresh()
    await set_default(database, "eye@2")
    clock.now_s += 10
    await book.fresh()
    assert [table.defaults for table in told] == [{}, {"eye": "eye@2"}]
    late: list[RoutingTable] = []
    book.on_change(late.append)
    assert late == told[-1:]


async def test_fresh_table_is_had_in_microseconds(book: RoutingBook) -> None:
    await book.fresh()

    async def took_s(num: int = 2_000) -> float:
        began_s = time.perf_counter()
        for _ in range(num):
            await book.fresh()
        return (time.perf_counter() - began_s) / num

    assert min([await took_s() for _ in range(10)]) < 5e-6
