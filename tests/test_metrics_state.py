"""Gauges say what is so now: what went away is 0, and looking costs next to nothing."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event

from serve.admission.board import Board
from serve.admission.cost import CostModel, Line
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import Share
from serve.errors import StoreUnavailable
from serve.evidence.counts import MAX_EXPERIMENTS, ExposureCounts
from serve.experiments.controller import RolloutController
from serve.jobs.census import PAUSE, Census
from serve.observing.gauges import SHOWN_AS_NOTHING, Gauges
from serve.observing.meter import MemoryMeter
from serve.observing.sampling import TICK_S, TICKS_PER_LOOK, Sampler
from serve.store.batch_tables import HELD_UNTIL
from serve.store.engine import Database
from serve.store.exposures import NewExposure
from serve.store.jobs import count_open
from serve.store.tables import JobClass
from serve.tenancy.ledger import UsageLedger
from tests.rollout_world import World
from tests.stores import START, FakeClock, add_job, add_tenant
from tests.test_gate import request
from tests.test_ledger import NO_LIMIT, cost, wish
from tests.test_store_claims import explain
from tests.virtual_time import run_virtually


def of(meter: MemoryMeter, name: str) -> dict[str, float]:
    """Values of a gauge, by its labels' values."""
    return {
        "/".join(value for _, value in labels): value
        for (other, labels), value in meter.gauges.items()
        if other == name
    }


def test_a_series_that_went_is_zero_and_one_that_came_back_is_not() -> None:
    meter = MemoryMeter()
    permits = Gauges(meter, "sm4ll_permits")
    permits.show({(("version", "eye@1"),): 2.0, (("version", "eye@2"),): 1.0})
    permits.show({(("version", "eye@1"),): 3.0})
    assert of(meter, "sm4ll_permits") == {"eye@1": 3.0, "eye@2": 0.0}
    permits.show({(("version", "eye@2"),): 4.0})
    assert of(meter, "sm4ll_permits") == {"eye@1": 0.0, "eye@2": 4.0}
    for _ in range(SHOWN_AS_NOTHING):
        permits.show({(("version", "eye@2"),): 4.0})
    assert of(meter, "sm4ll_permits") == {"eye@2": 4.0}


def test_the_board_shows_who_waits_by_class_and_for_how_much_work() -> None:
    meter, lane = MemoryMeter(), Lane(LaneLimits(max_in_flight=1))
    second = CostModel(Line(0.0, 1.0))
    gate = Gate({"eye@1": lane, "eye@2": lane}, second, meter=meter)
    board = Board(meter)

    async def hold(version: str, share: Share, seconds: int) -> None:
        async with gate.admit(request(seconds, version=version), share):
            await asyncio.sleep(seconds)

    async def crowd() -> None:
        batch = Share("acme", priority="batch")
        tasks = [
            asyncio.create_task(hold(version, share, seconds))
            for version, share, seconds in (
                ("eye@1", Share("acme"), 4),
                ("eye@1", batch, 2),
                ("eye@2", Share("acme"), 1),
                ("eye@2", Share("acme"), 1),
            )
        ]
        await asyncio.sleep(1)
        board.show(gate.crowds(), {"eye@1": 1, "eye@2": 1})
        depth = of(meter, "sm4ll_queue_depth")
        waits = of(meter, "sm4ll_queue_gpu_seconds")
        assert {name: n for name, n in depth.items() if n} == {
            "batch/eye@1": 1,
            "interactive/eye@2": 2,
        }
        assert waits["batch/eye@1"] == pytest.approx(2)
        assert waits["interactive/eye@2"] == pytest.approx(2)
        assert of(meter, "sm4ll_permits_in_use") == {"eye@1": 1, "eye@2": 0}
        gate.drop_lane("eye@2")
        await asyncio.gather(*tasks)
        board.show(gate.crowds(), {"eye@1": 1})
        assert set(of(meter, "sm4ll_queue_depth").values()) == {0}
        assert of(meter, "sm4ll_permits") == {"eye@1": 1, "eye@2": 0}
        assert of(meter, "sm4ll_replicas") == {"eye@1": 1, "eye@2": 0}

    run_virtually(crowd())
    waits = {
        dict(labels)["version"] + "/" + dict(labels)["class"]: values
        for (_, labels), values in meter.histograms.items()
    }
    assert sorted(waits["eye@2/interactive"]) == pytest.approx([4, 5])
    assert waits["eye@1/interactive"] == [0]


def test_a_loop_that_comes_late_to_its_timer_is_measured() -> None:
    meter, now_s = MemoryMeter(), [0.0]
    late_s = iter([0.0, 0.25, *([0.0] * (2 * TICKS_PER_LOOK))])
    looks: list[float] = []

    async def sleep(seconds: float) -> None:
        now_s[0] += seconds + next(late_s)

    async def sample() -> None:
        sampler = Sampler(meter, "0", now_s=lambda: now_s[0], sleep=sleep)

        def fail() -> None:
            raise ZeroDivisionError

        sampler.also(fail)
        sampler.also(lambda: looks.append(now_s[0]))
        with pytest.raises(StopIteration):
            await sampler._run()

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(sample())
    lags_s = meter.histograms["sm4ll_event_loop_lag_seconds", ()]
    assert lags_s[:3] == pytest.approx([0, 0.25, 0], abs=1e-9)
    # One look that fails takes nothing from the others, and not the next look either.
    assert looks == pytest.approx([0, 0.25 + TICKS_PER_LOOK * TICK_S, 0.25 + 4])
    assert meter.gauges["sm4ll_replica_memory_bytes", ()] > 1e7


@pytest.mark.anyio
async def test_jobs_are_counted_from_the_indexes(database: Database) -> None:
    meter, clock, now_s = MemoryMeter(), FakeClock(), [0.0]
    async with database.transaction() as session:
        await add_tenant(session)
        for at in (START, START, HELD_UNTIL):
            await add_job(session, at=at)
        await add_job(session, at=START + timedelta(seconds=3), priority=JobClass.BATCH)
    clock.advance(60)
    took_s = iter([0.0, 0.1, 0.2])  # counting takes 0.1 s
    census = Census(database, meter, clock, lambda: next(took_s, now_s[0]))
    await census.turn()
    counts = of(meter, "sm4ll_jobs")
    assert {name: count for name, count in counts.items() if count} == {
        "interactive/queued": 2,
        "interactive/delayed": 1,
        "batch/queued": 1,
    }
    assert len(counts) == 6
    assert of(meter, "sm4ll_job_oldest_seconds") == {"interactive": 60, "batch": 57}
    # Not again so soon after counting that took long.
    clock.advance(10)
    await census.turn()
    assert of(meter, "sm4ll_job_oldest_seconds") == {"interactive": 60, "batch": 57}
    now_s[0] = 0.1 + PAUSE * 0.1
    await census.turn()
    assert of(meter, "sm4ll_job_oldest_seconds") == {"interactive": 70, "batch": 67}

    seen: list[tuple[str, tuple[object, ...]]] = []

    def note(
        _: object, __: object, statement: str, values: tuple[object, ...], *___: object
    ) -> None:
        seen.append((statement, values))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    async with database.reading() as session:
        await count_open(session, clock.now)
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    waiting, running = [each for each in seen if "FROM jobs" in each[0]]
    assert "ix_jobs_runnable" in await explain(database, *waiting)
    assert "ix_jobs_leases" in await explain(database, *running)


@pytest.mark.anyio
async def test_a_rollouts_share_is_shown_while_it_is_under_way(database: Database) -> None:
    world, meter = World(database), MemoryMeter()
    rollout_id = await world.begin()
    controller = RolloutController(
        database,
        world.probe,
        now=world.clock,
        clock_s=lambda: (world.clock.now - START).total_seconds(),
        meter=meter,
    )
    shares = []
    for _ in range(3):
        await controller.turn()
        await world.expose(rollout_id)
        shares.append(of(meter, "sm4ll_rollout_share_ratio"))
    name = f"{rollout_id}/eye@2"
    assert shares == [{name: 0.0}, {name: 0.0}, {name: 0.2}]
    await world.steering.pause("key", rollout_id)
    await controller.turn()
    assert of(meter, "sm4ll_rollout_share_ratio") == {name: 0.5}
    await world.steering.abort("key", rollout_id)
    await controller.turn()
    assert of(meter, "sm4ll_rollout_share_ratio") == {name: 0.0}
    assert meter.total("sm4ll_rollout_decisions_total", decision="start") == 1
    assert meter.total("sm4ll_rollout_decisions_total", decision="promote") == 2


@pytest.mark.anyio
async def test_charges_are_counted_by_how_they_end(database: Database) -> None:
    meter = MemoryMeter()
    ledger = UsageLedger(database, FakeClock(), meter)
    async with database.transaction() as session:
        await add_tenant(session)
    for item in ("tr_1", "tr_2"):
        await ledger.reserve(wish(item), NO_LIMIT)
        ledger.close(cost(item))
    ledger.close(cost("tr_1"))
    await ledger.flush()
    assert meter.total("sm4ll_settlements_total", outcome="settled") == 2
    assert meter.total("sm4ll_settlements_total", outcome="closed_before") == 1
    assert meter.total("sm4ll_settlements_total") == 3


@pytest.mark.anyio
async def test_a_database_that_is_away_is_counted_each_time() -> None:
    meter = MemoryMeter()
    database = Database("postgresql://nobody@127.0.0.1:9/none", meter=meter)

    async def read() -> None:
        async with database.reading():
            raise AssertionError

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await read()
    with pytest.raises(StoreUnavailable):
        await database.write(lambda connection: None)
    assert meter.total("sm4ll_store_errors_total") == 3
    await database.close()


def test_exposures_are_counted_by_arm_and_strangers_experiments_as_one() -> None:
    meter = MemoryMeter()
    counts = ExposureCounts(meter)
    seen = NewExposure(
        tenant_id="acme",
        id="tr_1",
        experiment_id="shirts",
        revision=1,
        arm="new",
        version="top@2",
        unit="u",
        request_id="req",
        latency_ms=250.0,
        at=START,
    )
    by = {"experiment": "shirts", "arm": "new"}
    counts.count(seen)
    counts.count(replace(seen, code="generation_failed", is_failure=True))
    counts.count(replace(seen, code="invalid_image"))
    assert [
        meter.total("sm4ll_exposures_total", **by, outcome=outcome)
        for outcome in ("ok", "failure", "other")
    ] == [1, 1, 1]
    labels = (("arm", "new"), ("experiment", "shirts"))
    assert meter.histograms["sm4ll_exposure_duration_seconds", labels] == [0.25]
    for index in range(500):
        counts.count(replace(seen, experiment_id=f"experiment-{index}", arm=f"arm-{index % 7}"))
    series = [key for key in meter.counters if key[0] == "sm4ll_exposures_total"]
    assert len(series) == 3 + MAX_EXPERIMENTS - 1 + 1
