"""A/B on a running cluster: who gets what, what is caught, what goes back by itself.

Two routers on a real PostgreSQL. `SM4LL_TEST_FULL=1` asks as often as the figures of the README
were made with; without it the same is shown with fewer requests.
"""

import asyncio
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import asyncpg
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from serve.client import Client
from serve.demo.cases import ASSETS_DIR
from serve.designs import Arm, Guardrail, Stage
from serve.schemas.experiments import NewExperiment
from serve.schemas.rollouts import NewRollout, RolloutCard
from tests.pictures import box_mask, encoded, photo
from tests.postgres import PostgresServer
from tests.traffic import Crowd
from tests.up import Up, running

pytestmark = pytest.mark.ray

IS_FULL = os.environ.get("SM4LL_TEST_FULL") == "1"
NUM_UNITS = 2_000 if IS_FULL else 200
GIVE_UP_S = 600.0 if IS_FULL else 180.0
EVERYWHERE_S = 5.0
"""Every router follows a change of weights within this."""

FAMILY = """
router: {autoscaling: {min_replicas: 2, max_replicas: 2}}
jobs: {lease_s: 6}
experts:
  - {version: eye@1, autoscaling: {max_replicas: 1}}
  - {version: eye@2, autoscaling: {max_replicas: 1}}
  - {version: eye@hue, autoscaling: {max_replicas: 1}}
  - {version: top@1, autoscaling: {max_replicas: 1}}
  - {version: top@2, autoscaling: {max_replicas: 1}}
  - {version: top@flaky, autoscaling: {max_replicas: 1}}
"""
BUNDLE = """
expert: {expert}
name: "{name}"
title: of the tests
status: benchmark
licence: {{name: none, commercial_use: true}}
backend: {backend}
crop: {{context: 1.6, size_px: 256}}
"""
BACKENDS = {
    "eye.1": "{kind: warp}",
    "eye.2": "{kind: warp}",
    "eye.hue": "{kind: warp, drill: {colour_shift: 6}}",
    "top.1": "{kind: noop}",
    "top.2": "{kind: noop}",
    "top.flaky": "{kind: noop, drill: {failure_share: 0.05}}",
}
ERRORS = (Guardrail(metric="errors"), Guardrail(metric="latency_ms", margin=5.0))
PLAIN = {"person": encoded(photo(160, 240)), "product": encoded(photo(64, 64, seed=1))}
PLAIN["mask"] = encoded(box_mask(160, 240))


def bundle(name: str, backend: str) -> str:
    expert, _, version = name.partition(".")
    return BUNDLE.format(expert=expert, name=version, backend=backend)


@pytest.fixture(scope="module")
def arena(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    experts = {name: bundle(name, backend) for name, backend in BACKENDS.items()}
    folder, database_url = tmp_path_factory.mktemp("arena"), postgres.create_database()
    with running(folder, database_url, FAMILY, experts) as cluster:
        yield cluster


@pytest.fixture
def client(arena: Up) -> Iterator[Client]:
    with Client(arena.url, arena.key) as client:
        yield client


@pytest.fixture(scope="module")
def wearers() -> Callable[[str], Mapping[str, bytes]]:
    """One person, and sunglasses in eight colours."""
    person = io.BytesIO()
    with Image.open(ASSETS_DIR / "person_portrait.jpg") as portrait:
        portrait.thumbnail((320, 320))
        portrait.save(person, "JPEG")
    with Image.open(ASSETS_DIR / "product_eyewear.png") as glasses:
        glasses.thumbnail((200, 200))
        rgba = np.asarray(glasses.convert("RGBA"))
    products = []
    for turn in range(8):
        hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).copy()
        hsv[..., 0] += np.uint8(32 * turn)
        rgb = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        products.append(encoded(np.dstack([rgb, rgba[..., 3]])))

    def pick(unit: str) -> Mapping[str, bytes]:
        return {"person": person.getvalue(), "product": products[sum(unit.encode()) % 8]}

    return pick


def eye_crowd(arena: Up, wearers: Callable[[str], Mapping[str, bytes]]) -> Crowd:
    return Crowd(arena.url, arena.key, {"expert": "eye", "format": "jpeg"}, wearers)


def top_crowd(arena: Up) -> Crowd:
    return Crowd(arena.url, arena.key, {"expert": "top", "format": "png"}, lambda _: PLAIN)


def run_sql(arena: Up, *statements: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(arena.database_url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return list(await connection.fetch(statements[-1]))
        finally:
            await connection.close()

    return asyncio.run(run())


def kill_soon(arena: Up, name: str) -> None:
    """As soon as there is one again."""
    give_up_s = time.monotonic() + 60
    while True:
        try:
            arena.kill(name)
            return
        except AssertionError:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(0.1)


def follow(client: Client, rollout_id: str, on_stage: Callable[[RolloutCard], None]) -> RolloutCard:
    """Until it has ended, or is held by something that waits for a person."""
    give_up_s, stage = time.monotonic() + GIVE_UP_S, None
    while True:
        card = client.rollouts.get(rollout_id)
        if card.status != "running":
            return card
        if card.stage is not None and card.stage != stage:
            stage = card.stage
            on_stage(card)
        assert time.monotonic() < give_up_s, card
        time.sleep(0.2)


def nothing(card: RolloutCard) -> None:
    pass


def decided(client: Client, rollout_id: str) -> list[str]:
    """What was decided and done, the first thing first; waiting left out."""
    decisions = list(client.rollouts.decisions(rollout_id))[::-1]
    assert [one.sequence for one in decisions] == list(range(1, len(decisions) + 1))
    assert all(one.numbers for one in decisions if one.action in ("promote", "roll_back"))
    return [one.action for one in decisions if one.action != "hold"]


def test_every_unit_keeps_its_arm_whoever_answers_and_whatever_dies(
    arena: Up, client: Client, wearers: Callable[[str], Mapping[str, bytes]]
) -> None:
    arms = (
        Arm(name="control", version="eye@1", weight=9_000),
        Arm(name="new", version="eye@2", weight=1_000),
    )
    client.experiments.create(NewExperiment(id="temples", expert="eye", arms=arms, start=True))
    crowd = eye_crowd(arena, wearers)
    time.sleep(EVERYWHERE_S)
    first = crowd.ask_all([f"user-{number}" for number in range(NUM_UNITS)])
    assert crowd.statuses() == {200: NUM_UNITS}
    assert {answer.experiment for answer in first} == {"temples"}
    num_new = sum(answer.arm == "new" for answer in first)
    expected = [NUM_UNITS * 0.9, NUM_UNITS * 0.1]
    assert chisquare([NUM_UNITS - num_new, num_new], expected).pvalue > 0.01
    for answer in first:
        assert answer.version == {"control": "eye@1", "new": "eye@2"}[answer.arm]
    for _ in range(2):
        arena.kill("ServeReplica:sm4ll:Router")
    wait_until_answered(crowd)
    again = crowd.ask_all([answer.unit for answer in first[:: NUM_UNITS // 100]])
    of_unit = {answer.unit: answer.arm for answer in first}
    assert {answer.unit: answer.arm for answer in again}.items() <= of_unit.items()
    client.experiments.end("temples")


def wait_until_answered(crowd: Crowd) -> None:
    """Routers start again; who asks meanwhile is told that nobody is there."""
    give_up_s, in_a_row = time.monotonic() + 60, 0
    while in_a_row < 20:
        assert time.monotonic() < give_up_s
        try:
            in_a_row = in_a_row + 1 if crowd.ask("waiting").status == 200 else 0
        except OSError:
            in_a_row = 0
        except Exception as exc:
            if type(exc).__module__.split(".")[0] not in ("httpx2", "httpcore2"):
                raise
            in_a_row = 0


def test_a_version_that_paints_another_colour_goes_back_by_itself(
    arena: Up, client: Client, wearers: Callable[[str], Mapping[str, bytes]]
) -> None:
    """Every one of its requests is answered, and fast: only the pictures say it."""
    plan = NewRollout(
        expert="eye",
        version="eye@hue",
        against="eye@1",
        stages=(Stage(share=5_000, min_exposures=100), Stage(share=10_000, min_exposures=10**6)),
        guardrails=(*ERRORS, Guardrail(metric="colour")),
    )
    rollout = client.rollouts.start(plan)
    crowd = eye_crowd(arena, wearers)
    with crowd.asking("colour"):
        ended = follow(client, rollout.id, nothing)
        ended_s = time.monotonic()
        time.sleep(EVERYWHERE_S + 2)
    assert ended.status == "rolled_back"
    assert "colour" in ended.reason
    assert decided(client, rollout.id) == ["create", "start", "roll_back"]
    assert crowd.failed() == []
    late = [answer for answer in crowd.answers if answer.at_s > ended_s + EVERYWHERE_S]
    assert late
    assert {answer.version for answer in late} == {"eye@1"}


def test_a_version_that_fails_now_and_then_goes_back_from_the_first_stage(
    arena: Up, client: Client
) -> None:
    share = 100 if IS_FULL else 5_000
    plan = NewRollout(
        expert="top",
        version="top@flaky",
        against="top@1",
        stages=(Stage(share=share, min_exposures=100), Stage(share=10_000)),
        guardrails=ERRORS,
    )
    rollout = client.rollouts.start(plan)
    crowd = top_crowd(arena)
    with crowd.asking("flaky"):
        ended = follow(client, rollout.id, nothing)
    time.sleep(EVERYWHERE_S)  # a router that knows of no end yet would fail the next test's callers
    assert ended.status == "rolled_back"
    assert "errors" in ended.reason
    assert decided(client, rollout.id) == ["create", "start", "roll_back"]
    failed = crowd.failed()
    assert len(failed) <= len(crowd.answers) * share / 10_000 * 0.2


def test_an_equal_version_becomes_the_default_although_its_controller_dies_at_every_stage(
    arena: Up, client: Client
) -> None:
    shares = (0, 100, 500, 2_500, 5_000, 10_000) if IS_FULL else (0, 5_000, 10_000)
    stages = tuple(
        Stage(share=share, shadow=10_000 if share == 0 else 0, min_exposures=40) for share in shares
    )
    plan = NewRollout(
        expert="top", version="top@2", against="top@1", stages=stages, guardrails=ERRORS
    )
    rollout = client.rollouts.start(plan)
    seen = []

    def kill(card: RolloutCard) -> None:
        seen.append(card.share)
        kill_soon(arena, "ServeReplica:sm4ll:JobRunner")

    crowd = top_crowd(arena)
    with crowd.asking("equal"):
        ended = follow(client, rollout.id, kill)
    assert ended.status == "promoted", ended
    assert seen == list(shares)
    expected = ["create", "start", *["promote"] * (len(shares) - 1), "finish"]
    assert decided(client, rollout.id) == expected
    assert crowd.failed() == []
    time.sleep(EVERYWHERE_S)
    after = crowd.ask_all([f"after-{number}" for number in range(20)])
    assert {(answer.version, answer.arm) for answer in after} == {("top@2", "default")}


@contextmanager
def losing_exposures(arena: Up, percent: int) -> Iterator[None]:
    """Of the challenger, on their way into the table."""
    run_sql(
        arena,
        f"""CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.arm = 'challenger' AND abs(hashtext(NEW.id)) % 100 < {percent}
            THEN RETURN NULL; END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER lose BEFORE INSERT ON exposures FOR EACH ROW EXECUTE FUNCTION lose()",
        "SELECT 1",
    )
    try:
        yield
    finally:
        run_sql(arena, "DROP TRIGGER lose ON exposures", "DROP FUNCTION lose", "SELECT 1")


def test_lost_exposures_freeze_the_experiment(arena: Up, client: Client) -> None:
    stages = (Stage(share=5_000, min_exposures=10**6), Stage(share=10_000))
    plan = NewRollout(
        expert="top", version="top@1", against="top@2", stages=stages, guardrails=ERRORS
    )
    crowd = top_crowd(arena)
    with losing_exposures(arena, 10 if IS_FULL else 60):
        rollout = client.rollouts.start(plan)
        with crowd.asking("lost"):
            ended = follow(client, rollout.id, nothing)
    assert ended.status == "paused"
    assert client.experiments.get(ended.experiment).status == "frozen"
    assert decided(client, rollout.id)[-1] == "freeze"
    assert client.rollouts.abort(rollout.id).status == "aborted"
    assert crowd.failed() == []
