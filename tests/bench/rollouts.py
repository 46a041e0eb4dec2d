"""Whole rollouts with the usual plan, decided as the controller decides them, over requests as they
come: units that return, latencies with a tail, products that are easy or hard, a few errors,
verdicts that are late, answers that nobody measured.

Run as `python -m tests.bench.rollouts [--replications N] [--output FILE]`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.designs import BUCKETS, RolloutPlan, Stage
from serve.experiments.allocation import Allocation, allocate, reallocate
from serve.experiments.findings import CHALLENGER, CONTROL, gather
from serve.experiments.rollout import Standing, decide, tell_stage
from serve.store.exposures import Seen

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PLAN = RolloutPlan(expert="eye", version="eye@2", against="eye@1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOOK_EVERY = 500
"""Requests; of a long stage, a tenth of those there are."""
MAX_REQUESTS = 50_000
"""Of one stage: who is in it then is held, and the simulation ends."""
NUM_UNITS = 20_000
VERDICT_AFTER = 500.0
"""Requests, on the average."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is different about the challenger, and how requests come."""

    name: str
    colour: float = 0.0
    """Worse by so much CIEDE2000."""
    errors: float = 0.002
    latency: float = 1.0
    """Times the control's."""
    rejected: float = 0.05
    lost: float = 0.0
    """Of its exposures."""
    is_by_request: bool = False
    """Every request is a unit of its own."""
    first_stage: int = 0
    """1: without the shadow."""


WORLDS = (
    World(name="equal"),
    World(name="equal, by request", is_by_request=True),
    World(name="colour worse by 0.5", colour=0.5),
    World(name="colour worse by 3", colour=3.0),
    World(name="colour worse by 3, no shadow", colour=3.0, first_stage=1),
    World(name="5 % errors", errors=0.05),
    World(name="5 % errors, no shadow", errors=0.05, first_stage=1),
    World(name="2 % errors", errors=0.02),
    World(name="latency + 50 %", latency=1.5),
    World(name="15 % rejected, not 5 %", rejected=0.15),
    World(name="a tenth of its exposures lost", lost=0.1, is_by_request=True),
)


@dataclass(frozen=True, slots=True)
class End:
    """How a rollout ended."""

    action: str
    cause: str
    stage: int
    num_requests: int
    num_challenged: int
    """Requests whose answers came from the challenger."""
    holds: tuple[str, ...] = ()
    """Why it stood still at looks that had enough exposures."""


class People:
    """Who asks, what for, and how it is with them."""

    def __init__(self, world: World, dice: np.random.Generator):
        self._world, self._dice = world, dice
        # A few ask often: Zipf's law with a flattened head.
        weights = 1 / (np.arange(NUM_UNITS) + 10.0)
        self._cumulated = np.cumsum(weights / weights.sum())
        self._buckets = dice.integers(BUCKETS, size=NUM_UNITS)
        self._hardness = dice.normal(0.0, 1.0, NUM_UNITS)
        self._slowness = dice.normal(0.0, 0.4, NUM_UNITS)
        self._num = 0

    def ask(self, number: int, stage: Stage, revision: int, ranges: Allocation) -> list[Seen]:
        """The next so many requests, shadows behind them."""
        dice, world = self._dice, self._world
        units = np.searchsorted(self._cumulated, dice.random(number)).clip(max=NUM_UNITS - 1)
        buckets = self._buckets[units]
        if world.is_by_request:
            buckets = dice.integers(BUCKETS, size=number)
        arms = np.array(ranges.arms)[np.searchsorted(ranges.ends, buckets, side="right")]
        is_new = arms == CHALLENGER
        base = self._values(units)
        live = self._rows(units, is_new, base, revision)
        kept = [one for one, is_lost in zip(live, is_new & (dice.random(number) < world.lost),
                                            strict=True) if not is_lost]  # fmt: skip
        if not stage.shadow:
            return kept
        picked = np.flatnonzero(~is_new & (dice.random(number) < stage.shadow / BUCKETS))
        again = self._rows(
            units[picked],
            np.ones(len(picked), dtype=np.bool_),
            tuple(values[picked] for values in base),
            revision,
        )
        shadows = [
            replace(
                one,
                id=live[at].id,
                unit=live[at].unit,
                request_id=live[at].request_id,
                is_shadow=True,
                verdicts=frozenset(),
            )
            for at, one in zip(picked, again, strict=True)
        ]
        return kept + shadows

    def _values(self, units: Ints) -> tuple[Floats, Floats, Floats]:
        """Colour, pattern and seam of each, as the control paints them."""
        dice, size = self._dice, len(units)
        hardness = self._hardness[units]
        colour = np.abs(3.0 + hardness + dice.normal(0.0, 0.8, size))
        pattern = np.clip(0.8 - 0.05 * hardness + dice.normal(0.0, 0.08, size), 0.0, 1.0)
        return colour, pattern, 2.0 + dice.gamma(2.0, 1.5, size)

    def _rows(
        self, units: Ints, is_new: NDArray[np.bool_], base: tuple[Floats, ...], revision: int
    ) -> list[Seen]:
        dice, world, size = self._dice, self._world, len(units)
        colour = np.abs(base[0] + world.colour * is_new + dice.normal(0.0, 0.3, size))
        pattern = np.clip(base[1] + dice.normal(0.0, 0.02, size), 0.0, 1.0)
        seam = base[2] + dice.normal(0.0, 0.3, size)
        has_failed = dice.random(size) < np.where(is_new, world.errors, 0.002)
        latency = 800 * np.exp(self._slowness[units] + dice.normal(0.0, 0.6, size))
        latency *= np.where(dice.random(size) < 0.01, 3 + dice.pareto(2.5, size), 1.0)
        latency *= np.where(is_new, world.latency, 1.0)
        said = dice.random(size)
        rejected = np.where(is_new, world.rejected, 0.05)
        is_measured, is_jpeg = dice.random(size) > 0.1, dice.random(size) < 0.3
        rows = []
        for i in range(size):
            metrics: dict[str, float] = {}
            if is_measured[i] and not has_failed[i]:
                metrics = {"colour": colour[i], "pattern": pattern[i], "seam": seam[i]}
                metrics |= {} if is_jpeg[i] else {"outside": 0.0}
            verdict = "rejected" if said[i] < rejected[i] else "accepted" if said[i] < 0.3 else ""
            self._num += 1
            name = f"r{self._num}"
            rows.append(Seen(
                tenant_id="t", id=name, is_shadow=False, revision=revision,
                arm=CHALLENGER if is_new[i] else CONTROL,
                unit=name if world.is_by_request else f"u{units[i]}", request_id=name,
                category="", tags={}, code="internal" if has_failed[i] else "",
                is_failure=bool(has_failed[i]), latency_ms=float(latency[i]), gpu_ms=500,
                upstream_microusd=None, metrics=metrics, pictures=None, at=NOW,
                verdicts=frozenset({verdict} if verdict else ()),
            ))  # fmt: skip
        return rows


class Inbox:
    """What is known of a stage: a verdict comes after the answer it is about."""

    def __init__(self, dice: np.random.Generator):
        self._dice = dice
        self.seen: list[Seen] = []
        self._due: list[tuple[float, int, frozenset[str]]] = []

    def take(self, rows: list[Seen]) -> None:
        at = len(self.seen)
        delays = self._dice.exponential(VERDICT_AFTER, len(rows))
        for row, delay in zip(rows, delays, strict=True):
            if row.verdicts:
                self._due.append((len(self.seen) + delay, len(self.seen), row.verdicts))
                row = replace(row, verdicts=frozenset())
            self.seen.append(row)
        at = len(self.seen)
        for due, index, verdicts in self._due:
            if due <= at:
                self.seen[index] = replace(self.seen[index], verdicts=verdicts)
        self._due = [one for one in self._due if one[0] > at]


def roll_out(world: World, seed: int) -> End:
    """One version, from the shadow on, until it is in, back, frozen or held."""
    dice = np.random.default_rng(seed)
    people = People(world, dice)
    ranges = allocate({CONTROL: BUCKETS, CHALLENGER: 0})
    stage, total, challenged = world.first_stage, 0, 0
    holds: Counter[str] = Counter()
    while True:
        wanted = PLAN.stages[stage]
        ranges = reallocate(ranges, {CONTROL: BUCKETS - wanted.share, CHALLENGER: wanted.share})
        inbox, asked = Inbox(dice), 0
        standing = Standing(stage=stage, stage_started_at=NOW)
        while True:
            number = max(LOOK_EVERY, asked // 10)
            rows = people.ask(number, wanted, stage + 2, ranges)
            inbox.take(rows)
            asked, total = asked + number, total + number
            challenged += sum(one.arm == CHALLENGER and not one.is_shadow for one in rows)
            decision = decide(PLAN, standing, gather(PLAN, wanted, stage + 2, ranges, inbox.seen),
                              NOW)  # fmt: skip
            if decision.action == "promote":
                break
            if decision.action != "hold" or asked >= MAX_REQUESTS:
                action = "hold" if decision.action == "hold" else decision.action
                return End(action, decision.cause, stage, total, challenged, tuple(holds))
            if decision.cause != "exposures":
                holds[decision.cause] += 1
        stage += 1


def table(replications: int) -> Iterator[str]:
    yield (
        "| challenger | promoted | rolled back | frozen | held | requests until then, median "
        "(90 %) | of them the challenger's | where it went back, why |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    with ProcessPoolExecutor() as pool:
        for world in WORLDS:
            ends = list(pool.map(partial(roll_out, world), range(replications), chunksize=5))
            yield line(world, ends)


def line(world: World, ends: list[End]) -> str:
    actions = Counter(end.action for end in ends)
    shares = " | ".join(
        f"{actions[action] / len(ends):.1%}" for action in ("finish", "roll_back", "freeze", "hold")
    )
    requests = [end.num_requests for end in ends]
    challenged = [end.num_challenged for end in ends]
    where = Counter(
        f"{tell_stage(PLAN.stages[end.stage])} {end.cause}"
        for end in ends
        if end.action != "finish"
    )
    told = ", ".join(f"{place}: {number}" for place, number in where.most_common(5)) or "–"
    return f"| {world.name} | {shares} | {spread(requests)} | {spread(challenged)} | {told} |"


def spread(numbers: list[int]) -> str:
    middle, high = np.percentile(numbers, [50, 90])
    return f"{middle:,.0f} ({high:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    said = parser.parse_args()
    lines = []
    for row in table(said.replications):
        print(row, flush=True)
        lines.append(row)
    if said.output:
        said.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
