"""A version is promoted or goes back by itself, whatever dies meanwhile.

A crash is an exception at the n-th thing that reaches the database, before the commit among them;
whoever comes after it is another controller, and knows only the rows.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, event, select

from serve.designs import Guardrail, RolloutPlan, Stage
from serve.errors import Conflict, StoreUnavailable
from serve.experiments.allocation import load_allocation
from serve.experiments.controller import BETWEEN_WORDS
from serve.experiments.rollout import READY, Readiness
from serve.store.batch_tables import WebhookDelivery
from serve.store.engine import READING, Database
from serve.store.experiment_tables import Experiment, ExperimentState, ExpertDefault
from serve.store.experiments import read_ranges
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.rollouts import Note, get_rollout, list_decisions, lock_rollout, log_decision
from serve.store.tables import AuditRecord
from tests.rollout_world import ADMIN, PLAN, World
from tests.stores import opened

pytestmark = pytest.mark.anyio

WHOLE_WAY = ["create", "start", "promote", "promote", "promote", "finish"]


def changed(**fields: Any) -> RolloutPlan:
    return RolloutPlan.model_validate({**PLAN.model_dump(), **fields})


async def test_an_equal_version_becomes_the_default(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    controller = world.controller()
    assert (await world.read_experiment(rollout_id)).state is ExperimentState.DRAFT
    shares = []
    for _ in range(4):
        await controller.turn()
        await controller.turn()  # nothing new was seen: nothing happens
        shares.append((await world.read_shares(rollout_id)).get("challenger", 0))
        design = (await world.read_experiment(rollout_id)).design
        assert design["arms"][1]["weight"] == shares[-1]
        assert (design["shadow"] is not None) == (shares[-1] == 0)
        if shares[-1] < 10_000:
            await world.expose(rollout_id)
    assert shares == [0, 2_000, 5_000, 10_000]
    default = await world.read_default()
    assert default is not None
    assert (default.version, default.previous) == ("eye@2", "eye@1")
    rollout, experiment = await world.read(rollout_id), await world.read_experiment(rollout_id)
    assert rollout.state is RolloutState.PROMOTED
    assert rollout.finished_at == world.clock.now
    assert experiment.state is ExperimentState.ENDED
    told = [one for one in await world.list_actions(rollout_id) if one != "hold"]
    assert told == WHOLE_WAY
    decisions = await world.list_decisions(rollout_id)
    promoted = next(row for row in decisions if row.to_stage == 2)
    assert promoted.numbers["exposures"] == 40
    assert promoted.numbers["metrics"]["colour"]["challenger_units"] == 40


async def test_a_harmful_colour_goes_back_at_once_and_is_told_everywhere(
    database: Database,
) -> None:
    world = World(database)
    rollout_id = await world.begin(changed(stages=PLAN.stages[1:]))
    controller = world.controller()
    await controller.turn()
    before = await world.read_routing_revision()
    await world.expose(rollout_id, challenger={"colour": 7.0, "outside": 0.0})
    await controller.turn()
    rollout = await world.read(rollout_id)
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "eye@2 is worse: colour 7." in rollout.reason
    assert await world.read_shares(rollout_id) == {"control": 10_000}
    assert (await world.read_experiment(rollout_id)).state is ExperimentState.ENDED
    assert await world.read_default() is None
    assert await world.read_routing_revision() > before
    last = (await world.list_decisions(rollout_id))[-1]
    assert last.action == "roll_back"
    assert last.numbers["metrics"]["colour"]["effect"] == pytest.approx(6.0, abs=0.2)
    async with database.reading() as session:
        audited = (await session.scalars(select(AuditRecord.action))).all()
        messages = (await session.scalars(select(WebhookDelivery))).all()
    assert audited[-1] == "rollout.roll_back"
    events = {message.event: message.payload for message in messages}
    assert {"rollout.created", "rollout.started", "rollout.rolled_back"} <= events.keys()
    told = events["rollout.rolled_back"]["data"]
    assert told["rollout"]["status"] == "rolled_back"
    assert told["decision"]["action"] == "roll_back"
    await controller.turn()
    assert len(await world.list_decisions(rollout_id)) == last.sequence


async def test_a_version_that_errs_is_back_before_it_gets_more(database: Database) -> None:
    world = World(database)
    one_percent = Stage(share=100, min_exposures=20)
    plan = changed(
        stages=(one_percent, *PLAN.stages[1:]), guardrails=(Guardrail(metric="errors", margin=0),)
    )
    rollout_id = await world.begin(plan)
    controller = world.controller()
    await controller.turn()
    # Twenty exposures would do, and one error of twenty proves nothing: it must not go up.
    await world.expose(rollout_id, 2_000, errors=0.05)
    await controller.turn()
    rollout = await world.read(rollout_id)
    assert (rollout.state, rollout.stage) == (RolloutState.RUNNING, 0)
    assert "looks worse" in rollout.reason
    await world.expose(rollout_id, 2_000, errors=0.05)
    await controller.turn()
    assert (await world.read(rollout_id)).state is RolloutState.ROLLED_BACK
    assert (await world.list_actions(rollout_id))[-3:] == ["start", "hold", "roll_back"]


async def test_a_pixel_outside_the_region_needs_no_statistics(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    controller = world.controller()
    await controller.turn()
    await world.expose(rollout_id, 1, challenger={"outside": 3.0})
    await controller.turn()
    assert (await world.read(rollout_id)).state is RolloutState.ROLLED_BACK


async def test_lost_exposures_freeze_until_a_person_begins_the_stage_anew(
    database: Database,
) -> None:
    world = World(database)
    rollout_id = await world.begin(changed(stages=(PLAN.stages[2], PLAN.stages[3])))
    controller = world.controller()
    await controller.turn()
    await world.expose(rollout_id, 2_000, lost=0.3)
    await controller.turn()
    rollout, experiment = await world.read(rollout_id), await world.read_experiment(rollout_id)
    assert rollout.state is RolloutState.PAUSED
    assert "split" in rollout.reason
    assert experiment.state is ExperimentState.FROZEN
    assert await world.read_shares(rollout_id) == {"control": 5_000, "challenger": 5_000}
    await controller.turn()
    resumed = await world.steering.resume(ADMIN, rollout_id)
    assert resumed.revision == rollout.revision + 1
    assert (await world.read_experiment(rollout_id)).state is ExperimentState.RUNNING
    await world.expose(rollout_id)
    await controller.turn()
    actions = await world.list_actions(rollout_id)
    assert actions == ["create", "start", "freeze", "resume", "promote"]


async def test_golden_drift_keeps_the_first_stage_from_beginning(database: Database) -> None:
    world = World(database)
    world.readiness = Readiness(is_ready=False, reason="does not reproduce its golden sample")
    rollout_id = await world.begin()
    controller = world.controller()
    for _ in range(3):
        await controller.turn()
    rollout = await world.read(rollout_id)
    assert "golden sample" in rollout.reason
    assert await world.list_actions(rollout_id) == ["create", "hold"]
    assert (await world.read_experiment(rollout_id)).state is ExperimentState.DRAFT
    world.readiness = READY
    await controller.turn()
    assert (await world.read(rollout_id)).stage == 0


async def test_a_dry_run_says_what_it_would_do_and_moves_nothing(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin(changed(is_dry_run=True, stages=PLAN.stages[1:]))
    controller = world.controller()
    await controller.turn()
    revision = (await world.read(rollout_id)).revision
    await world.expose(rollout_id)
    for _ in range(3):
        await controller.turn()
    await world.expose(rollout_id, challenger={"colour": 9.0})
    await controller.turn()
    assert len(await world.list_decisions(rollout_id)) == 3  # numbers may swing: not every second
    world.clock.advance(BETWEEN_WORDS.total_seconds())
    await controller.turn()
    decisions = await world.list_decisions(rollout_id)
    assert [(row.action, row.is_dry_run) for row in decisions] == [
        *(("create", False), ("start", False), ("promote", True), ("roll_back", True))
    ]
    rollout = await world.read(rollout_id)
    assert (rollout.stage, rollout.revision) == (0, revision)
    assert rollout.state is RolloutState.RUNNING
    assert await world.read_shares(rollout_id) == {"control": 8_000, "challenger": 2_000}


async def test_people_approve_pause_and_abort_once_however_often_they_click(
    database: Database,
) -> None:
    world = World(database)
    gate = Stage(share=5_000, min_exposures=30, approval=True)
    rollout_id = await world.begin(changed(stages=(gate, PLAN.stages[3])))
    controller = world.controller()
    with pytest.raises(Conflict):
        await world.steering.approve(ADMIN, rollout_id)  # nothing has begun
    await controller.turn()
    await world.expose(rollout_id)
    await controller.turn()
    assert (await world.read(rollout_id)).reason == "waits for approval"
    for _ in range(2):
        await world.steering.pause(ADMIN, rollout_id)
        await world.steering.approve(ADMIN, rollout_id)
    await controller.turn()
    assert (await world.read(rollout_id)).stage == 0
    for _ in range(2):
        await world.steering.resume(ADMIN, rollout_id)
    await controller.turn()
    assert (await world.read(rollout_id)).stage == 1
    for _ in range(2):
        await world.steering.abort(ADMIN, rollout_id)
    await controller.turn()
    assert await world.read_shares(rollout_id) == {"control": 10_000}
    assert await world.list_actions(rollout_id) == [
        *("create", "start", "hold", "pause", "approve", "resume", "promote", "abort")
    ]
    with pytest.raises(Conflict):
        await world.steering.resume(ADMIN, rollout_id)


async def test_one_open_rollout_for_an_expert_and_no_other_experiment(database: Database) -> None:
    world = World(database)
    first = await world.begin()
    with pytest.raises(Conflict, match=first):
        await world.steering.begin(ADMIN, "acme", PLAN)
    await world.steering.abort(ADMIN, first)
    second = (await world.steering.begin(ADMIN, "acme", PLAN)).id
    await world.steering.abort(ADMIN, second)
    async with database.transaction() as session:
        foreign = await session.get_one(Experiment, (await world.read(first)).experiment_id)
        foreign.state = ExperimentState.PAUSED
    with pytest.raises(Conflict, match="experiment"):
        await world.steering.begin(ADMIN, "acme", PLAN)


async def test_of_two_controllers_one_decides_until_its_lease_lapses(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    first, second = world.controller(), world.controller()
    await first.turn()
    await world.expose(rollout_id)
    await second.turn()
    assert (await world.read(rollout_id)).stage == 0
    world.outlive_lease()
    await second.turn()
    assert (await world.read(rollout_id)).stage == 1
    await world.expose(rollout_id)
    await first.turn()
    assert (await world.read(rollout_id)).stage == 1
    await second.stop()
    await first.turn()
    assert (await world.read(rollout_id)).stage == 2


async def test_controllers_that_begin_at_once_decide_once(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    await asyncio.gather(*(world.controller().turn() for _ in range(4)))
    assert await world.list_actions(rollout_id) == ["create", "start"]
    aborting = world.steering.abort(ADMIN, rollout_id)
    world.outlive_lease()
    await asyncio.gather(world.controller().turn(), aborting, world.controller().turn())
    assert (await world.read(rollout_id)).state is RolloutState.ABORTED
    assert (await world.list_actions(rollout_id))[-1] == "abort"


async def test_one_that_cannot_be_judged_stops_no_other(database: Database) -> None:
    world = World(database)
    poison = await world.begin()
    async with database.transaction() as session:
        row = await lock_rollout(session, poison)
        row.plan = {**row.plan, "stages": "none"}
    other = changed(expert="top", version="top@2", against="top@1")
    sound = (await world.steering.begin(ADMIN, "acme", other)).id
    world.probe = ready  # type: ignore[method-assign]
    await world.controller().turn()
    assert (await world.read(sound)).stage == 0


async def ready(version: str) -> Readiness:
    return READY


class Crash(Exception):
    """The process is gone: a controller does nothing more about the rollout after it."""


class Faults:
    """Counts down what writing transactions send to the database, and crashes at zero."""

    def __init__(self, database: Database, left: int):
        self.left: int | None = left
        engine = database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda c, *_: self.tick(c))
        event.listen(engine, "commit", self.tick)

    def tick(self, connection: Connection) -> None:
        if connection.get_execution_options().get(READING, False):
            return
        if self.left == 0:
            self.left = None
            raise Crash
        if self.left is not None:
            self.left -= 1


async def test_a_crash_at_any_statement_of_any_stage_changes_nothing_in_the_end(
    database: Database, store_url: str
) -> None:
    world = World(database)
    plan = changed(stages=(PLAN.stages[0], *PLAN.stages[2:]), guardrails=PLAN.guardrails[:2])
    rollout_id = await world.begin(plan)
    crashes = 0
    for stage in range(-1, 3):
        if 0 <= stage < 2:
            await world.expose(rollout_id, 60)
        crash_at = 0
        rollout = await world.read(rollout_id)
        while rollout.stage == stage and rollout.finished_at is None:
            # Every time another process, which dies later than the one before.
            async with opened(store_url) as own:
                faults = Faults(own, crash_at)
                with suppress(Crash):
                    await world.controller(own).turn()
                crashes += faults.left is None
            rollout = await check_is_whole(world, rollout_id, plan)
            world.outlive_lease()
            # A new connection to PostgreSQL takes its time.
            crash_at += 1 if database.is_sqlite else 3
            assert crash_at < 100, "it never gets through"
    assert crashes > (4 * 12 if database.is_sqlite else 4 * 4)
    whole_way = ["create", "start", "promote", "promote", "finish"]
    assert await world.list_actions(rollout_id) == whole_way
    default = await world.read_default()
    assert default is not None
    assert (default.version, default.previous) == ("eye@2", "eye@1")
    async with database.reading() as session:
        events = (await session.scalars(select(WebhookDelivery.event))).all()
        audited = (await session.scalars(select(AuditRecord.action))).all()
    assert len(events) == len(whole_way)
    assert audited == [f"rollout.{action}" for action in whole_way]


async def check_is_whole(world: World, rollout_id: str, plan: RolloutPlan) -> Rollout:
    """Weights, stage, default and log are of one moment."""
    async with world.database.reading() as session:
        rollout = await get_rollout(session, rollout_id)
        experiment = await session.get_one(Experiment, rollout.experiment_id)
        ranges = await read_ranges(session, experiment.id, experiment.revision)
        decisions = await list_decisions(session, rollout_id, limit=200)
        has_default = await session.get(ExpertDefault, "eye") is not None
    assert experiment.revision == rollout.revision
    share = plan.stages[rollout.stage].share if rollout.stage >= 0 else 0
    assert load_allocation(ranges).shares().get("challenger", 0) == share
    assert [one.sequence for one in decisions[::-1]] == [*range(1, rollout.num_decisions + 1)]
    is_promoted = rollout.state is RolloutState.PROMOTED
    assert has_default == is_promoted == (experiment.state is ExperimentState.ENDED)
    return rollout


async def test_whoever_lost_the_lease_writes_nothing(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    late = world.controller()
    await late.turn()
    await world.expose(rollout_id)
    seen = await world.read(rollout_id)
    world.outlive_lease()
    await world.controller().turn()
    note = Note(actor="late", action="roll_back", reason="too late", stage=0)
    await late._carry_out(seen, PLAN, note, world.clock.now)
    rollout = await world.read(rollout_id)
    assert (rollout.stage, rollout.state) == (1, RolloutState.RUNNING)
    assert "roll_back" not in await world.list_actions(rollout_id)


async def test_a_database_that_is_away_is_no_decision() -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    try:
        with pytest.raises(StoreUnavailable):
            await World(away).controller().turn()
        await World(away).controller().stop()
    finally:
        await away.close()


async def test_every_action_has_an_event(database: Database) -> None:
    world = World(database)
    rollout_id = await world.begin()
    async with database.transaction() as session:
        row = await lock_rollout(session, rollout_id)
        for action in ("hold", "freeze", "approve", "pause", "resume", "abort"):
            note = Note(actor=ADMIN, action=action, reason="because", stage=0)
            await log_decision(session, row, note, world.clock.now)
    assert len(await world.list_decisions(rollout_id)) == 7
