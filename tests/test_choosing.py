"""A request gets the version it names, or its collection's, or an experiment's, or the default."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.bundle import Bundle, load_family
from serve.catalog import UNLIMITED, Catalog, Choice
from serve.choosing import Chooser, dump_choice, load_choice, party_of
from serve.errors import Conflict, Forbidden, NotFound, StoreUnavailable
from serve.experiments.assignment import LiveExperiment, assign
from serve.experiments.book import RoutingBook
from serve.experiments.pins import PinBook, dump_manifest
from serve.policy import SCOPES, Scope, TenantPolicy
from serve.schemas.tryon import TryOnOptions
from serve.store.defaults import set_default
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.pins import drop_pin, put_pin
from serve.tenancy.caller import Caller
from tests.stores import START, add_tenant
from tests.test_routing import Moody, Seconds
from tests.two_tops import design, run_experiment, write_two_tops

pytestmark = pytest.mark.anyio

NAMING: tuple[Scope, ...] = ("tryon", "versions")


@dataclass
class Desk:
    """One router's part in choosing, and the hands that change what it chooses by."""

    database: Database
    store: Moody
    catalog: Catalog
    spare: Bundle
    clock: Seconds
    book: RoutingBook
    pins: PinBook
    chooser: Chooser

    async def choose(
        self,
        policy: TenantPolicy = UNLIMITED,
        scopes: tuple[Scope, ...] = NAMING,
        request_id: str | None = "req-1",
        **options: Any,
    ) -> Choice:
        self.clock.now_s += 10  # what was changed before is in force
        wanted = TryOnOptions.model_validate({"expert": "top", **options})
        caller = Caller("acme", "key-1", frozenset(scopes), policy)
        return await self.chooser.choose(
            wanted,
            party_of(caller, wanted, request_id),
            policy,
            may_name_version=caller.may_name_version,
        )

    async def prefer(self, version: str) -> None:
        async with self.database.transaction() as session:
            await set_default(session, version.partition("@")[0], version, "tests", START)

    async def pin(self, collection: str, **versions: str) -> None:
        manifest = await self.chooser.pin(versions or None, TenantPolicy())  # type: ignore[arg-type]
        async with self.database.transaction() as session:
            await put_pin(session, "acme", collection, dump_manifest(manifest), START)


@pytest.fixture
async def desk(database: Database, tmp_path: Path) -> Desk:
    async with database.transaction() as session:
        await add_tenant(session)
    family, bundles = load_family(write_two_tops(tmp_path / "family"))
    catalog = Catalog(family, bundles)
    spare = changed(bundles["top@3"], name="5")
    clock, store = Seconds(), Moody(database)
    book, pins = RoutingBook(store, clock), PinBook(store, clock)
    return Desk(database, store, catalog, spare, clock, book, pins, Chooser(catalog, book, pins))


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    """Another bundle, also in what it pins."""
    return Bundle.model_validate(bundle.model_dump() | changes)


def told(choice: Choice) -> tuple[str, str]:
    return choice.bundle.version, choice.arm


async def test_each_reason_gives_way_to_the_one_before_it(desk: Desk) -> None:
    asked = {"unit": "anna", "collection": "ss27"}
    assert told(await desk.choose(**asked)) == ("top@1", "default")
    await desk.prefer("top@2")
    assert told(await desk.choose(**asked)) == ("top@2", "default")
    await run_experiment(desk.database, design())
    choice = await desk.choose(**asked)
    assert told(choice) == ("top@3", "challenger")
    assert choice.assignment is not None
    assert (choice.assignment.experiment, choice.assignment.revision) == ("tops", 1)
    await desk.pin("ss27", top="1")
    assert told(await desk.choose(**asked)) == ("top@1", "pinned")
    assert told(await desk.choose(**asked, version="2")) == ("top@2", "explicit")
    async with desk.database.transaction() as session:
        await drop_pin(session, "acme", "ss27")
    assert told(await desk.choose(**asked)) == ("top@3", "challenger")


@pytest.mark.parametrize("scope", ["versions", "review", "admin", None])
async def test_naming_a_version_needs_a_scope(desk: Desk, scope: Scope | None) -> None:
    scopes: tuple[Scope, ...] = ("tryon",) if scope is None else ("tryon", scope)
    if scope is not None:
        assert told(await desk.choose(scopes=scopes, version="top@2")) == ("top@2", "explicit")
        return
    with pytest.raises(Forbidden, match="scope 'versions'"):
        await desk.choose(scopes=scopes, version="top@2")
    assert told(await desk.choose(scopes=scopes)) == ("top@1", "default")


async def test_first_experiment_that_takes_it_chooses(desk: Desk) -> None:
    await run_experiment(desk.database, design("b"))
    await run_experiment(desk.database, design("a", audience={"tenants": ["umbrella"]}))
    await run_experiment(desk.database, design("c"), ExperimentState.FROZEN)
    choice = await desk.choose(unit="anna")
    assert choice.assignment is not None
    assert choice.assignment.experiment == "b"
    # Nobody named: no part in an experiment on users.
    assert told(await desk.choose()) == ("top@1", "default")


async def test_experiment_whose_arms_are_not_all_there_takes_nobody(desk: Desk) -> None:
    arms = [
        {"name": "control", "version": "top@2", "weight": 10_000},
        {"name": "challenger", "version": "top@5", "weight": 0},
    ]
    await run_experiment(desk.database, design(arms=arms))
    assert told(await desk.choose(unit="anna")) == ("top@1", "default")
    desk.catalog.add(desk.spare)
    assert told(await desk.choose(unit="anna")) == ("top@2", "control")
    desk.catalog.remove("top@5")
    assert told(await desk.choose(unit="anna")) == ("top@1", "default")


async def test_tenant_that_may_not_use_an_arm_takes_no_part(desk: Desk) -> None:
    await run_experiment(desk.database, design())
    policy = TenantPolicy(versions=("top@1", "top@3"))
    assert told(await desk.choose(policy, unit="anna")) == ("top@1", "default")


async def test_default_that_is_not_there_or_not_allowed_is_passed_over(desk: Desk) -> None:
    await desk.prefer("top@5")
    assert told(await desk.choose()) == ("top@1", "default")
    desk.catalog.add(desk.spare)
    assert told(await desk.choose()) == ("top@5", "default")
    assert desk.catalog.is_default(desk.spare)
    assert told(await desk.choose(TenantPolicy(versions=("top@1", "top@2")))) == (
        "top@1",
        "default",
    )
    assert told(await desk.choose(TenantPolicy(versions=("top@3",)))) == ("top@3", "default")
    with pytest.raises(Forbidden):
        await desk.choose(TenantPolicy(versions=("eye@1",)))
    with pytest.raises(NotFound):
        await desk.choose(expert="dress")


async def test_walk_over_the_catalog_sees_what_there_was(desk: Desk) -> None:
    seen = []
    for bundle in desk.catalog:
        desk.catalog.add(desk.spare)
        desk.catalog.remove("top@2")
        seen.append(bundle.version)
    assert seen == ["top@1", "top@2", "top@3", "eye@1"]
    assert [b.version for b in desk.catalog] == ["top@1", "top@3", "eye@1", "top@5"]


async def test_pinned_collection_is_what_it_was_or_refused(desk: Desk) -> None:
    desk.catalog.add(desk.spare)
    await desk.pin("ss27", top="top@5")
    assert told(await desk.choose(collection="ss27")) == ("top@5", "pinned")
    assert told(await desk.choose(collection="ss27", expert="eye")) == ("eye@1", "default")
    with pytest.raises(Forbidden):
        await desk.choose(TenantPolicy(versions=("top@1",)), collection="ss27")
    desk.catalog.add(changed(desk.spare, guidance=9.0))
    with pytest.raises(Conflict, match="has changed") as refused:
        await desk.choose(collection="ss27")
    assert "PUT /v1/pins" in refused.value.remedy
    desk.catalog.remove("top@5")
    with pytest.raises(Conflict, match="not deployed"):
        await desk.choose(collection="ss27")


async def test_pins_without_versions_are_todays_defaults(desk: Desk) -> None:
    await desk.prefer("top@2")
    desk.clock.now_s += 10
    await desk.pin("ss27")
    await desk.prefer("top@3")
    assert told(await desk.choose(collection="ss27")) == ("top@2", "pinned")
    assert told(await desk.choose(collection="ss27", expert="eye")) == ("eye@1", "pinned")
    assert told(await desk.choose(collection="fw27")) == ("top@3", "default")


async def test_nothing_but_a_pin_needs_the_database(desk: Desk) -> None:
    await run_experiment(desk.database, design())
    await desk.choose(unit="anna")
    desk.store.is_away = True
    assert told(await desk.choose(unit="anna")) == ("top@3", "challenger")
    with pytest.raises(StoreUnavailable):  # another version would be worse than none
        await desk.choose(unit="anna", collection="ss27")


async def test_batch_is_one_choice_of_its_own_unit(desk: Desk) -> None:
    async def choose(**changes: Any) -> tuple[str, str]:
        await run_experiment(desk.database, design(changes["unit"], **changes))
        options = {"unit": "anna", "collection": "ss27"}
        choice = await desk.choose(request_id=None, **options)
        async with desk.database.transaction() as session:
            found = await session.get_one(Experiment, changes["unit"])
            found.state = ExperimentState.ENDED
        await desk.book.renew()
        return told(choice)

    assert await choose(unit="request") == ("top@1", "default")
    assert await choose(unit="sku", fallback="request") == ("top@1", "default")
    for unit in ("user", "collection", "tenant"):
        assert await choose(unit=unit) == ("top@3", "challenger")


async def test_choice_is_kept_with_the_work(desk: Desk) -> None:
    await run_experiment(desk.database, design())
    desk.catalog.add(desk.spare)
    await desk.pin("ss27", top="top@5")
    for options in ({"unit": "anna"}, {"collection": "ss27"}, {"version": "2"}, {}):
        choice = await desk.choose(**options)
        kept = dump_choice(choice)
        assert {"arm", "experiment", "revision", "unit"} <= kept.keys()
        assert load_choice(desk.catalog, "top", choice.bundle.version, kept) == choice
    before = load_choice(desk.catalog, "top", "top@2", None)
    assert told(before) == ("top@2", "explicit")
    pinned = dump_choice(await desk.choose(collection="ss27"))
    desk.catalog.add(changed(desk.spare, guidance=9.0))
    with pytest.raises(Conflict):
        load_choice(desk.catalog, "top", "top@5", pinned)
    with pytest.raises(Forbidden):
        load_choice(desk.catalog, "top", "top@2", None, TenantPolicy(versions=("top@1",)))


async def test_choosing_costs_little_beside_the_assignment(desk: Desk) -> None:
    await run_experiment(desk.database, design())
    wanted = TryOnOptions(expert="top", unit="anna")
    party = party_of(Caller("acme", "key-1", frozenset(SCOPES), TenantPolicy()), wanted, "req-1")
    policy = TenantPolicy()
    await desk.chooser.choose(wanted, party, policy, may_name_version=True)
    (live,) = (await desk.book.fresh()).experiments["top"]

    async def took_s(num: int = 2_000) -> float:
        began_s = time.perf_counter()
        for _ in range(num):
            await desk.chooser.choose(wanted, party, policy, may_name_version=True)
        return (time.perf_counter() - began_s) / num

    def assigned_s(live: LiveExperiment, num: int = 2_000) -> float:
        began_s = time.perf_counter()
        for _ in range(num):
            assign(live, party, policy)
        return (time.perf_counter() - began_s) / num

    chosen_s = min([await took_s() for _ in range(7)])
    assert chosen_s - min(assigned_s(live) for _ in range(7)) < 10e-6
