"""An experiment is made once, moves only the units it must, and nobody changes what is frozen,
owned by a rollout or taken in its namespace."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serve.designs import BUCKETS, Arm, ExperimentDesign, Namespace
from serve.errors import Conflict, InvalidRequest, NotFound
from serve.experiments.allocation import allocate, count_moved
from serve.experiments.assignment import Party
from serve.experiments.changes import (
    DRAFT,
    ENDED,
    FOLLOWS,
    FROZEN,
    PAUSED,
    RUNNING,
    as_live,
    create_experiment,
    list_allocations,
    set_state,
    set_weights,
)
from serve.experiments.desk import ExperimentDesk
from serve.policy import TenantPolicy
from serve.store.audit import list_records
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.experiments import get_experiment, list_experiments
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.routing import list_assigning, read_revision
from tests.stores import START, FakeClock, add_tenant

pytestmark = pytest.mark.anyio

VERSIONS = ("eye@1", "eye@2", "top@1", "top@2")


def design(experiment_id: str = "eye-2", weight: int = 1_000, **fields: Any) -> ExperimentDesign:
    expert = fields.setdefault("expert", "eye")
    arms = (
        Arm(name="control", version=f"{expert}@1", weight=BUCKETS - weight),
        Arm(name="new", version=f"{expert}@2", weight=weight),
    )
    return ExperimentDesign(**{"id": experiment_id, "arms": arms, **fields})


async def create(
    database: Database, wanted: ExperimentDesign, state: ExperimentState = RUNNING
) -> Experiment:
    async with database.transaction() as session:
        return await create_experiment(session, wanted, created_by="test", now=START, state=state)


async def move(database: Database, experiment_id: str, state: ExperimentState) -> Experiment:
    async with database.transaction() as session:
        return await set_state(session, experiment_id, state, reason="why", now=START)


async def weigh(
    database: Database, share: int, seen: int | None = None, experiment_id: str = "eye-2"
) -> Experiment:
    weights = {"control": BUCKETS - share, "new": share}
    async with database.transaction() as session:
        return await set_weights(
            session, experiment_id, weights, reason="why", now=START, seen_revision=seen
        )


async def revision_of(database: Database) -> int:
    async with database.reading() as session:
        return await read_revision(session)


async def test_it_is_made_with_its_first_allocation_and_routers_hear_of_it(
    database: Database,
) -> None:
    before = await revision_of(database)
    made = await create(database, design())
    assert (made.state, made.revision, made.started_at) == (RUNNING, 1, START)
    assert await revision_of(database) == before + 1
    async with database.reading() as session:
        (live,) = [as_live(*rows) for rows in await list_assigning(session)]
        assert await list_allocations(session, "eye-2") == {1: live.allocation}
    assert (live.design, live.revision) == (design(), 1)
    assert live.allocation == allocate({"control": 9_000, "new": 1_000})


async def test_made_again_alike_it_is_the_same_and_otherwise_a_conflict(database: Database) -> None:
    await create(database, design())
    await weigh(database, 2_500)
    again = await create(database, design())
    assert again.revision == 2, "what was made is compared, not what became of it"
    with pytest.raises(Conflict, match="another experiment"):
        await create(database, design(weight=2_500))
    with pytest.raises(Conflict, match="another experiment"):
        await create(database, design(salt="again"))


async def test_weights_move_what_they_must_and_leave_a_history(database: Database) -> None:
    await create(database, design())
    before = await revision_of(database)
    moved = await weigh(database, 5_000, seen=1)
    assert (moved.revision, [arm["weight"] for arm in moved.design["arms"]]) == (2, [5_000, 5_000])
    await weigh(database, 1_000)
    assert await revision_of(database) == before + 2
    async with database.reading() as session:
        history = await list_allocations(session, "eye-2")
    assert list(history) == [1, 2, 3]
    assert count_moved(history[1], history[2]) == 4_000
    assert history[3] == history[1]


async def test_who_saw_older_weights_changes_nothing(database: Database) -> None:
    await create(database, design())
    await weigh(database, 5_000, seen=1)
    with pytest.raises(Conflict, match="meanwhile"):
        await weigh(database, 2_000, seen=1)
    before = await revision_of(database)
    assert (await weigh(database, 5_000, seen=1)).revision == 2, "the same, sent again"
    assert await revision_of(database) == before


async def test_two_who_saw_the_same_revision_do_not_both_change_it(database: Database) -> None:
    await create(database, design())
    done = await asyncio.gather(
        *(weigh(database, share, seen=1) for share in (2_000, 3_000)), return_exceptions=True
    )
    assert sorted(type(each) for each in done if isinstance(each, Exception)) == [Conflict]
    async with database.reading() as session:
        assert (await get_experiment(session, "eye-2")).revision == 2


async def test_weights_are_one_for_each_arm_and_add_up(database: Database) -> None:
    await create(database, design())
    for weights in (
        {"control": 9_000},
        {"control": 9_000, "new": 999},
        {"control": 11_000, "new": -1_000},
        {"control": 9_000, "new": 500, "third": 500},
        {},
    ):
        with pytest.raises(InvalidRequest):
            async with database.transaction() as session:
                await set_weights(session, "eye-2", weights, reason="", now=START)


async def test_every_state_becomes_only_what_may_follow(database: Database) -> None:
    """All pairs, each from a fresh experiment that is brought there."""
    paths = {
        DRAFT: (),
        RUNNING: (RUNNING,),
        PAUSED: (RUNNING, PAUSED),
        FROZEN: (RUNNING, FROZEN),
        ENDED: (ENDED,),
    }
    async with database.transaction() as session:
        for source, path in paths.items():
            for target in ExperimentState:
                name = f"{source}-{target}"
                await create_experiment(session, design(name), created_by="t", now=START)
                for step in path:
                    await set_state(session, name, step, reason="", now=START)
                if target is source or target in FOLLOWS[source]:
                    row = await set_state(session, name, target, reason="why", now=START)
                    assert row.state is target
                    assert row.reason == ("" if target is source else "why")
                    assert (row.ended_at is None) is (target is not ENDED)
                else:
                    with pytest.raises(Conflict) as refused:
                        await set_state(session, name, target, reason="", now=START)
                    assert refused.value.remedy


async def test_only_what_runs_or_is_frozen_assigns_in_the_order_it_was_made(
    database: Database,
) -> None:
    clock = FakeClock()
    async with database.transaction() as session:
        for name in ("c", "b", "a"):
            wanted = design(name)
            await create_experiment(session, wanted, created_by="t", now=clock.now, state=RUNNING)
            clock.advance(1)
        await create_experiment(session, design("draft"), created_by="t", now=clock.now)
    await move(database, "b", PAUSED)
    await move(database, "a", FROZEN)
    async with database.reading() as session:
        assert [row.id for row, _ in await list_assigning(session)] == ["c", "a"]
        newest = [row.id for row in await list_experiments(session, limit=2)]
        rest = [row.id for row in await list_experiments(session, limit=9, after=newest[-1])]
    assert newest + rest == ["draft", "a", "b", "c"]


async def test_weights_of_what_is_frozen_or_ended_stay(database: Database) -> None:
    await create(database, design())
    for state in (FROZEN, ENDED):
        await move(database, "eye-2", state)
        with pytest.raises(Conflict, match=state.value) as refused:
            await weigh(database, 5_000)
        assert refused.value.remedy


async def test_namespaces_have_room_for_disjoint_buckets_of_one_kind_only(
    database: Database,
) -> None:
    def spaced(name: str, start: int, end: int, **fields: Any) -> ExperimentDesign:
        space = Namespace(name=fields.pop("space", "eyewear"), start=start, end=end)
        return design(name, namespace=space, **fields)

    await create(database, spaced("first", 0, 5_000))
    await create(database, spaced("beside", 5_000, 6_000, expert="top"))
    await create(database, spaced("elsewhere", 0, 10_000, space="other", unit="sku"))
    await create(database, spaced("over", 4_999, 7_000), DRAFT)
    for wanted, match in (
        (spaced("within", 10, 20), "first has the buckets 0 to 5000"),
        (spaced("by-sku", 6_000, 7_000, unit="sku"), "by user and by-sku by sku"),
        (spaced("falls", 6_000, 7_000, fallback="request"), "by user or request"),
    ):
        with pytest.raises(Conflict, match=match) as refused:
            await create(database, wanted)
        assert refused.value.remedy
    with pytest.raises(Conflict) as refused:
        await move(database, "over", RUNNING)
    assert "taken: 0-5000, 5000-6000" in refused.value.remedy
    await move(database, "first", ENDED)
    await move(database, "beside", PAUSED)
    assert (await move(database, "over", RUNNING)).state is RUNNING
    with pytest.raises(Conflict):
        await move(database, "beside", RUNNING)  # its buckets were given away meanwhile


async def test_what_is_not_there_is_not_found(database: Database) -> None:
    for act in (move(database, "nobody", PAUSED), weigh(database, 10, experiment_id="nobody")):
        with pytest.raises(NotFound, match="nobody"):
            await act


@pytest.fixture
def desk(database: Database) -> ExperimentDesk:
    return ExperimentDesk(database, lambda: VERSIONS, FakeClock())


async def test_every_change_by_hand_leaves_a_record_and_a_repetition_none(
    database: Database, desk: ExperimentDesk
) -> None:
    for _ in range(2):
        await desk.create("key", design(), start=True)
        await desk.weigh(
            "key", "eye-2", {"control": 5_000, "new": 5_000}, reason="more", revision=None
        )
        await desk.act("key", "eye-2", "start", "")
    for _ in range(2):
        await desk.act("key", "eye-2", "pause", "a holiday")
    for _ in range(2):
        await desk.act("key", "eye-2", "end", "")
    async with database.reading() as session:
        records = (await list_records(session, limit=20))[::-1]
    assert [record.action for record in records] == [
        *("experiment.create", "experiment.start", "experiment.weights"),
        *("experiment.pause", "experiment.end"),
    ]
    assert {(record.actor, record.target) for record in records} == {("key", "eye-2")}
    assert records[3].detail == {"before": "running", "reason": "a holiday"}


async def test_a_start_without_every_version_says_what_to_deploy(desk: ExperimentDesk) -> None:
    arms = (
        Arm(name="control", version="eye@1", weight=5_000),
        Arm(name="new", version="eye@9", weight=5_000),
    )
    wanted = design(arms=arms)
    with pytest.raises(Conflict, match="eye@9") as refused:
        await desk.create("key", wanted, start=True)
    assert refused.value.remedy == "sm4ll experts deploy eye@9"
    await desk.create("key", wanted, start=False)
    with pytest.raises(Conflict, match="eye@9"):
        await desk.act("key", "eye-2", "start", "")


async def test_what_a_rollout_owns_is_changed_through_the_rollout_only(
    database: Database, desk: ExperimentDesk
) -> None:
    await create(database, design())
    async with database.transaction() as session:
        rollout = Rollout(
            id="rol_1", told_tenant_id=await add_tenant(session), experiment_id="eye-2",
            expert="eye", plan={}, state=RolloutState.PAUSED, stage=0, revision=1,
            stage_started_at=START, num_decisions=0, numbers={}, created_by="t",
            created_at=START, updated_at=START,
        )  # fmt: skip
        session.add(rollout)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: desk.act("key", "eye-2", "end", ""),
        lambda: desk.weigh("key", "eye-2", {"control": 0, "new": BUCKETS}, reason="", revision=1),
    )
    for change in changes:
        with pytest.raises(Conflict, match="rol_1") as refused:
            await change()
        assert "/v1/rollouts/rol_1" in refused.value.remedy
    assert (await weigh(database, 5_000)).revision == 2, "the rollout's own way"
    async with database.transaction() as session:
        (await session.get_one(Rollout, "rol_1")).finished_at = START
    assert (await desk.act("key", "eye-2", "end", "")).row.state is ENDED
    with pytest.raises(Conflict, match="rollout"):
        await desk.create("key", design("rollout-mine"), start=False)


async def test_it_is_explained_who_gets_what_and_why_not(
    database: Database, desk: ExperimentDesk
) -> None:
    def party(**fields: Any) -> Party:
        return Party(**{"tenant_id": "acme", "request_id": "r", **fields})

    async def ask(experiment_id: str, who: Party, policy: TenantPolicy | None = None) -> Any:
        _, found = await desk.explain(experiment_id, who, policy or TenantPolicy())
        return found.arm, found.reason

    await desk.create("key", design(weight=BUCKETS), start=True)
    assert await ask("eye-2", party(user="u")) == ("new", "")
    assert await ask("eye-2", party()) == (None, "the request names no user")
    assert "every arm" in (await ask("eye-2", party(user="u"), TenantPolicy(versions=())))[1]
    late = design("late", coverage=0, audience={"denied_tenants": ("umbrella",)})
    await create(database, late.model_copy(update={"id": "later"}), DRAFT)
    _, found = await desk.explain("later", party(user="u"), TenantPolicy())
    assert (found.arm, found.unit) == (None, "user:acme:u")
    assert "0 %" in found.reason
    assert "audience" in (await ask("later", party(user="u", tenant_id="umbrella")))[1]
    clock_later = design("second")
    async with database.transaction() as session:
        await create_experiment(session, clock_later, created_by="t", now=START, state=RUNNING)
    assert (await ask("second", party(user="u")))[1] == "eye-2 began earlier and takes it"
