"""A wish is written once, comes and goes by its states, and is never undone by what a chore saw."""

from typing import Any

import pytest

from serve.errors import Conflict, InvalidRequest, NotFound
from serve.experiments.versions import ServedVersions, Wish, read_wish
from serve.store.audit import list_records
from serve.store.engine import Database
from serve.store.experiment_tables import (
    Experiment,
    ExperimentState,
    ExpertDefault,
    Pin,
    ServedState,
)
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.routing import read_revision
from serve.store.served import delete_served, find_served, list_served, set_served_state
from tests.stores import START, FakeClock, add_tenant

pytestmark = pytest.mark.anyio

BUNDLE: dict[str, Any] = {
    "expert": "eye",
    "name": "2",
    "title": "sunglasses",
    "status": "alpha",
    "licence": {"name": "none", "commercial_use": True},
}


def wish(name: str = "2", deployed: dict[str, Any] | None = None, **changes: Any) -> Wish:
    return read_wish({**BUNDLE, "name": name, **changes}, deployed or {})


@pytest.fixture
def versions(database: Database) -> ServedVersions:
    return ServedVersions(database, ["eye@1"], FakeClock())


async def state_of(database: Database, version: str = "eye@2") -> ServedState | None:
    async with database.reading() as session:
        row = await find_served(session, version)
    return None if row is None else row.state


async def move(database: Database, before: ServedState, state: ServedState, why: str = "") -> bool:
    async with database.transaction() as session:
        return await set_served_state(session, "eye@2", before, state, why, START)


async def revision(database: Database) -> int:
    async with database.reading() as session:
        return await read_revision(session)


async def test_the_same_wish_again_is_the_same_row(
    database: Database, versions: ServedVersions
) -> None:
    before = await revision(database)
    first = await versions.add("key_1", wish(deployed={"autoscaling": {"max_replicas": 4}}))
    assert (first.version, first.state) == ("eye@2", ServedState.WANTED)
    assert await revision(database) == before + 1
    again = await versions.add("key_2", wish(deployed={"autoscaling": {"max_replicas": 4}}))
    assert again.created_by == "key_1"
    assert await revision(database) == before + 1, "routers need not look"
    read = read_wish(again.bundle, again.deployed, again.home)
    assert read == wish(deployed={"autoscaling": {"max_replicas": 4}})
    assert read.bundle.fingerprint == wish().bundle.fingerprint
    async with database.reading() as session:
        (act,) = await list_records(session, limit=10)
    assert (act.action, act.target, act.actor) == ("version.deploy", "eye@2", "key_1")
    assert act.detail["bundle_sha256"] == wish().bundle.fingerprint


async def test_a_version_never_changes_while_it_runs(versions: ServedVersions) -> None:
    await versions.add("key_1", wish())
    with pytest.raises(Conflict, match="another bundle"):
        await versions.add("key_1", wish(title="another"))
    with pytest.raises(Conflict, match="other settings"):
        await versions.add("key_1", wish(deployed={"resources": {"num_gpus": 1}}))
    with pytest.raises(Conflict, match="family file"):
        await versions.add("key_1", wish("1"))


async def test_one_that_failed_is_tried_again_changed_or_not(
    database: Database, versions: ServedVersions
) -> None:
    await versions.add("key_1", wish())
    assert await move(database, ServedState.WANTED, ServedState.FAILED, "drifts\x00 by 9")
    row = await versions.add("key_2", wish(title="repaired"))
    assert (row.state, row.reason, row.bundle["title"]) == (ServedState.WANTED, "", "repaired")


async def test_what_was_seen_of_the_cluster_does_not_undo_a_later_wish(
    database: Database, versions: ServedVersions
) -> None:
    await versions.add("key_1", wish())
    removed = await versions.remove("key_1", "eye@2")
    assert removed.state is ServedState.REMOVING
    before = await revision(database)
    assert not await move(database, ServedState.WANTED, ServedState.READY)
    assert await state_of(database) is ServedState.REMOVING
    with pytest.raises(Conflict, match="being removed"):
        await versions.add("key_1", wish())
    async with database.transaction() as session:
        assert await delete_served(session, "eye@2")
    assert await state_of(database) is None
    assert await revision(database) > before
    with pytest.raises(NotFound):
        await versions.remove("key_1", "eye@2")


async def test_only_what_is_being_removed_is_deleted(
    database: Database, versions: ServedVersions
) -> None:
    await versions.add("key_1", wish())
    async with database.transaction() as session:
        assert not await delete_served(session, "eye@2")
    assert await state_of(database) is ServedState.WANTED


async def test_what_requests_may_get_unasked_is_not_removed(
    database: Database, versions: ServedVersions
) -> None:
    await versions.add("key_1", wish())
    arms = [{"name": "a", "version": "eye@1"}, {"name": "b", "version": "eye@2"}]
    common = {"created_by": "key_1", "created_at": START, "updated_at": START}
    experiment = Experiment(
        id="closer",
        design={"arms": arms},
        state=ExperimentState.PAUSED,
        revision=1,
        started_at=None,
        ended_at=None,
        **common,
    )
    async with database.transaction() as session:
        tenant_id = await add_tenant(session)
        session.add(
            ExpertDefault(
                expert="eye", version="eye@2", previous="eye@1", changed_by="k", changed_at=START
            )
        )
        session.add(experiment)
        await session.flush()
        session.add(
            Rollout(
                id="rol_1",
                told_tenant_id=tenant_id,
                experiment_id="closer",
                expert="eye",
                plan={"version": "eye@3", "against": "eye@2"},
                numbers={},
                state=RolloutState.PAUSED,
                stage=0,
                revision=1,
                stage_started_at=START,
                **common,
            )
        )
        for collection, version in (("spring", "eye@1"), ("autumn", "eye@2")):
            manifest = {"eye": {"version": version, "bundle_sha256": "0" * 64}}
            session.add(
                Pin(
                    tenant_id=tenant_id,
                    collection=collection,
                    manifest=manifest,
                    created_at=START,
                    updated_at=START,
                )
            )
    for why, end in (
        ("default of eye", "DELETE FROM expert_defaults"),
        ("rollout rol_1", "UPDATE rollouts SET finished_at = updated_at"),
        ("arm of 'closer'", "UPDATE experiments SET state = 'ended'"),
        ("pinned", "DELETE FROM pins WHERE collection = 'autumn'"),
    ):
        with pytest.raises(Conflict, match=why):
            await versions.remove("key_1", "eye@2")
        assert await state_of(database) is ServedState.WANTED
        await database.write(lambda connection, end=end: connection.exec_driver_sql(end))  # type: ignore[misc]
    assert (await versions.remove("key_1", "eye@2")).state is ServedState.REMOVING


async def test_list_is_paged_newest_first(database: Database) -> None:
    clock = FakeClock()
    versions = ServedVersions(database, [], clock)
    for name in ("1", "2", "3"):
        await versions.add("key_1", wish(name))
        clock.advance(1)
    async with database.reading() as session:
        assert [row.version for row in await list_served(session, limit=2)] == ["eye@3", "eye@2"]
        older = await list_served(session, limit=2, after="eye@2")
        assert [row.version for row in older] == ["eye@1"]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (
            "deployed.allow_noncommercial",
            wish(licence={"name": "research only", "commercial_use": False}),
        ),
        ("home", wish().model_copy(update={"home": "experts"})),
        (
            "bundle.masker.model.path",
            wish(masker={"kind": "landmarks", "model": {"path": "points"}}),
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_by_field(
    versions: ServedVersions, field: str, told: Wish
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await versions.add("key_1", told)
    assert [name for name, _ in refused.value.fields] == [field]
