"""What is done about added versions follows from rows and statuses alone."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from deployments.bundle import load_family
from deployments.options import alone_options
from serve.catalog import Catalog
from serve.config import JobsConfig
from serve.errors import NotFound
from serve.experiments.book import RoutingTable, ServedRow
from serve.experiments.versions import Wish, read_wish
from serve.jobs.windows import plan_windows
from serve.newcomers import Newcomers
from serve.permits import Fleet, Seats
from serve.served import (
    LINGER_S,
    AppStatus,
    Moves,
    Step,
    Wanted,
    code_version,
    group_of,
    is_added,
    list_deployments,
    plan_moves,
)
from serve.store.experiment_tables import ServedState
from tests.stores import START

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
EYE2 = "Expert-eye@2"
BUNDLE = {
    "expert": "top",
    "name": "second",
    "title": "changes nothing",
    "status": "benchmark",
    "licence": {"name": "none", "commercial_use": True},
    "backend": {"kind": "noop"},
}
WANTED, READY, FAILED, REMOVING = ServedState


def row(state: ServedState = WANTED, reason: str = "", *more: str, ago_s: float = 60) -> Wanted:
    return Wanted(
        version="eye@2",
        state=state,
        reason=reason,
        updated_at=START - timedelta(seconds=ago_s),
        deployments=(EYE2, *more),
    )


def plan(wanted: Wanted | None, started_ago_s: float = 3600, **apps: AppStatus | str) -> Moves:
    statuses = {
        name.replace("eye2", EYE2).replace("masker", "Segmenter-m"): AppStatus(status)
        if isinstance(status, str)
        else status
        for name, status in apps.items()
    }
    started_at = START - timedelta(seconds=started_ago_s)
    return plan_moves(
        [] if wanted is None else [wanted], statuses, started_at=started_at, now=START
    )


def step(before: ServedState, state: ServedState, reason: str = "") -> Step:
    return Step(version="eye@2", before=before, state=state, reason=reason)


def test_what_is_wanted_and_not_there_is_deployed_once() -> None:
    assert plan(row()) == Moves(deploy=("eye@2",))
    assert plan(row(), eye2="DEPLOYING") == Moves()
    # Both are asked for again: what runs in the same version stays as it is.
    assert plan(row(WANTED, "", "Segmenter-m"), eye2="RUNNING") == Moves(deploy=("eye@2",))
    assert plan(row(WANTED, "", "Segmenter-m"), eye2="RUNNING", masker="DEPLOYING") == Moves()


def test_it_is_ready_when_all_that_it_needs_runs() -> None:
    assert plan(row(WANTED, "loads"), eye2="RUNNING") == Moves(steps=(step(WANTED, READY),))
    assert plan(row(READY), eye2="RUNNING") == Moves()


def test_a_start_that_failed_is_told_and_taken_down() -> None:
    drifts = AppStatus("DEPLOY_FAILED", "drifts by 9")
    failed = plan(row(), eye2=drifts)
    assert failed == Moves(steps=(step(WANTED, FAILED, "drifts by 9"),), delete=(EYE2,))
    assert plan(row(FAILED, "drifts by 9")) == Moves(), "it stays failed until it is asked again"


def test_what_failed_in_another_cluster_is_tried_once_more() -> None:
    again = plan(row(FAILED, "no GPU", ago_s=60), started_ago_s=30)
    assert again == Moves(steps=(step(FAILED, WANTED),), deploy=("eye@2",))
    assert plan(row(FAILED, "no GPU", ago_s=20), started_ago_s=30) == Moves()


def test_one_that_was_ready_stays_so_in_a_new_cluster_and_while_replicas_are_replaced() -> None:
    assert plan(row(READY)) == Moves(deploy=("eye@2",))
    ill = AppStatus("UNHEALTHY", "a replica died")
    assert plan(row(READY), eye2=ill) == Moves(steps=(step(READY, READY, "a replica died"),))
    assert plan(row(WANTED), eye2=ill).steps == (step(WANTED, FAILED, "a replica died"),)
    never = AppStatus("DEPLOY_FAILED", "no weights")
    assert plan(row(READY), eye2=never).steps == (step(READY, FAILED, "no weights"),)


def test_one_that_is_removed_serves_until_every_router_knows() -> None:
    assert plan(row(REMOVING, ago_s=LINGER_S - 1), eye2="RUNNING") == Moves()
    assert plan(row(REMOVING, ago_s=LINGER_S), eye2="RUNNING") == Moves(delete=(EYE2,))
    assert plan(row(REMOVING), eye2="DELETING") == Moves()
    assert plan(row(REMOVING, ago_s=0)) == Moves(forget=("eye@2",))


def test_what_nobody_wants_is_deleted_and_a_shared_masker_stays() -> None:
    assert plan(None, eye2="RUNNING", masker="RUNNING") == Moves(delete=(EYE2, "Segmenter-m"))
    removed = row(REMOVING, "", "Segmenter-m")
    other = replace(
        row(READY, "", "Segmenter-m"),
        version="eye@3",
        deployments=("Expert-eye@3", "Segmenter-m"),
    )
    running = {name: AppStatus("RUNNING") for name in (EYE2, "Expert-eye@3", "Segmenter-m")}
    moves = plan_moves([removed, other], running, started_at=START, now=START)
    assert moves == Moves(delete=(EYE2,))


def test_only_our_own_applications_count() -> None:
    assert is_added("sm4ll", "sm4ll.Expert-eye@2")
    assert not is_added("sm4ll", "sm4ll")
    assert not is_added("sm4ll", "sm4ll.studio")
    assert not is_added("sm4ll", "other.Expert-eye@2")


def wish(max_replicas: int = 3, **changes: object) -> Wish:
    autoscaling = {"min_replicas": 0, "max_replicas": max_replicas}
    return read_wish({**BUNDLE, **changes}, {"autoscaling": autoscaling})


def test_another_setting_is_another_deployment_and_the_same_is_not() -> None:
    assert code_version(wish()) == code_version(wish())
    assert len({code_version(wish()), code_version(wish(4)), code_version(wish(title="b"))}) == 3
    assert list_deployments(wish().bundle, ["classical"]) == ("Expert-top@second",)
    assert list_deployments(wish().bundle, ["parsing"])[1:] == ("Segmenter-classical",)


def test_an_added_version_scales_by_use_and_starts_once_to_show_that_it_can() -> None:
    options = alone_options(group_of(wish()))
    scaling = options["autoscaling_config"]
    assert "policy" not in scaling, "ours is not called for it"
    assert (scaling["min_replicas"], scaling["initial_replicas"]) == (0, 1)
    # Two requests at the only replica: more than it is to have, so that there is a second one.
    assert scaling["target_ongoing_requests"] < 1


def test_jobs_of_an_added_version_have_a_window_of_their_own() -> None:
    family, bundles = load_family(FAMILY)
    windows = plan_windows(family, bundles)
    before = windows.list_full()
    windows.follow([group_of(wish(max_replicas=1))], JobsConfig())
    for _ in range(8):  # twice four places
        assert windows.list_full() == before
        windows.enter("top@second")
    assert windows.list_full() == [*before, "top@second"]
    windows.follow([], JobsConfig())
    assert windows.list_full() == before
    for _ in range(8):
        windows.leave("top@second")
    assert windows.num_free == family.jobs.max_in_flight


class Doors:
    """Which versions can be asked."""

    def __init__(self) -> None:
        self.open: list[str] = []

    def connect(self, told: Wish) -> None:
        self.open.append(told.version)

    def disconnect(self, told: Wish) -> None:
        self.open.remove(told.version)


def table(*rows: ServedRow) -> RoutingTable:
    return RoutingTable(revision=1, experiments={}, defaults={}, served=rows)


def served(state: ServedState, title: str = "a") -> ServedRow:
    told = wish(title=title)
    return ServedRow(told.version, told.dump_bundle(), "", told.dump_deployed(), state, "")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_router_lets_in_who_is_ready_and_keeps_the_door_open_for_who_is_inside() -> None:
    family, bundles = load_family(FAMILY)
    catalog, seats, doors = Catalog(family, bundles), Seats(family, bundles), Doors()
    newcomers = Newcomers(
        catalog=catalog,
        seats=seats,
        family_versions=tuple(bundles),
        connect=doors.connect,
        disconnect=doors.disconnect,
        keep_s=0.01,
        logger=logging.getLogger("tests"),
    )
    newcomers.follow(table(served(WANTED)))
    with pytest.raises(NotFound):
        catalog.choose("top", "second")
    newcomers.follow(table(served(READY)))
    assert catalog.choose("top", "second").bundle.version == "top@second"
    assert catalog.choose("top", None).bundle.version != "top@second"
    assert doors.open == ["top@second"]
    seats.follow(Fleet(1, {"Expert-top@second": 5}))
    assert "top@second" in seats.gate.backlog()

    newcomers.follow(table(served(REMOVING)))
    with pytest.raises(NotFound):
        catalog.choose("top", "second")
    assert doors.open == ["top@second"], "somebody may still be on the way"
    newcomers.follow(table(served(READY, title="again")))
    await asyncio.sleep(0.02)
    assert catalog.choose("top", "second").bundle.title == "again"
    assert len(doors.open) == 2, "the second opened anew, and the first did not shut it"

    newcomers.follow(table())
    await asyncio.sleep(0.02)
    assert len(doors.open) == 1
    assert "top@second" not in seats.gate.backlog()


@pytest.mark.anyio
async def test_the_family_wins_and_what_cannot_be_read_is_left_to_others() -> None:
    family, bundles = load_family(FAMILY)
    catalog, doors = Catalog(family, bundles), Doors()
    newcomers = Newcomers(
        catalog=catalog,
        seats=Seats(family, bundles),
        family_versions=tuple(bundles),
        connect=doors.connect,
        disconnect=doors.disconnect,
        keep_s=0.01,
        logger=logging.getLogger("tests"),
    )
    own = next(iter(bundles))
    unreadable = replace(served(READY), bundle={"of": "the future"})
    newcomers.follow(table(replace(served(READY), version=own), unreadable))
    assert doors.open == []
    assert catalog.choose(bundles[own].expert, own).bundle is bundles[own]
