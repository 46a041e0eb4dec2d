"""Live requests with and without shadows beside them, on one running cluster.

Two arms of one expert, half of the units each, both asked all the time; the challenger's replica
paints its own requests and, with shadows on, everything the control is asked as well. Both settings
are asked in turns with the same arrivals (Poisson), pair by pair, each pair beginning with the
other one. The expert is the no-op one that takes its time asleep, step by step: what a request
waits for is the device. Target: p95 with shadows <= 1.1 x without.
"""

import argparse
import asyncio
import datetime as dt
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import httpx2
from rich.console import Console

from serve.designs import ExperimentDesign
from serve.experiments.allocation import allocate
from serve.local import LocalCluster, LocalOptions
from serve.settings import Settings, free_port
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.experiments import insert_experiment
from serve.store.exposures import read_exposures
from serve.store.opening import database_url
from serve.store.routing import bump_routing
from tests.bench.fairness import percentile
from tests.pictures import box_mask, encoded, photo

TARGET = 1.1
NAME = "shadow-bench"
# Routers follow within three seconds; what a setting has begun ends in the time after.
SETTLE_S = 5.0
EXPERT = """
expert: top
name: {name}
title: Takes its time
status: benchmark
licence: {{name: none, commercial_use: true}}
backend: {{kind: noop, seconds: {pass_s}, steps: {steps}}}
"""
FAMILY = """
experts:
  - version: top@old
    autoscaling: {min_replicas: 1, max_replicas: 1}
  - version: top@new
    autoscaling: {min_replicas: 1, max_replicas: 1}
segmenter:
  autoscaling: {min_replicas: 0}
router:
  autoscaling: {min_replicas: ROUTERS, max_replicas: ROUTERS}
"""
err = Console(stderr=True)


@dataclass(frozen=True)
class Setting:
    pass_s: float
    steps: int
    busy: float
    """Fraction of the devices' time that live requests take."""
    seconds: float
    pairs: int
    routers: int

    @property
    def rate_hz(self) -> float:
        return 2 * self.busy / self.pass_s


@dataclass
class Turn:
    """What live callers saw while shadows were on, or off."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    """By arm."""
    failures: list[str] = field(default_factory=list)
    num_shadows: int = 0
    stages_ms: dict[str, list[float]] = field(default_factory=dict)

    def all_s(self) -> list[float]:
        return [latency_s for of_arm in self.latencies_s.values() for latency_s in of_arm]


def design(share: int) -> ExperimentDesign:
    arms = [{"name": name, "version": f"top@{name}", "weight": 5_000} for name in ("old", "new")]
    shadow = {"arm": "new", "share": share}
    return ExperimentDesign.model_validate(
        {"id": NAME, "expert": "top", "arms": arms, "shadow": shadow}
    )


class Switch:
    """Turns shadows on and off, where routers read it, and counts them."""

    def __init__(self, settings: Settings):
        self._url = database_url(settings)

    async def begin(self) -> None:
        ranges = allocate({"old": 5_000, "new": 5_000}).dump()
        database = Database(self._url)
        async with database.transaction() as session:
            await insert_experiment(
                session,
                design(0),
                ranges,
                state=ExperimentState.RUNNING,
                created_by="bench",
                now=utc_now(),
            )
        await database.close()

    async def turn(self, share: int) -> None:
        database = Database(self._url)
        async with database.transaction() as session:
            await bump_routing(session)
            experiment = await session.get(Experiment, NAME)
            assert experiment is not None
            experiment.design = design(share).model_dump(mode="json")
        await database.close()
        await asyncio.sleep(SETTLE_S)

    async def count_shadows(self) -> int:
        database = Database(self._url)
        async with database.reading() as session:
            seen = await read_exposures(session, NAME)
        await database.close()
        return sum(one.is_shadow for one in seen)


async def call_for_a_while(url: str, key: str, setting: Setting, seed: int) -> Turn:
    """Independent callers: each comes at its time, whoever still waits."""
    dice, turn = random.Random(seed), Turn()
    files = {
        "person": encoded(photo(), "JPEG"),
        "product": encoded(photo(64, 64), "JPEG"),
        "mask": encoded(box_mask()),
    }
    async with httpx2.AsyncClient(
        timeout=60, headers={"Authorization": f"Bearer {key}", "Accept": "image/*"}
    ) as http:

        async def call(unit: str) -> None:
            started_s = time.perf_counter()
            response = await http.post(
                f"{url}/v1/tryon", data={"expert": "top", "unit": unit}, files=files
            )
            if response.status_code != 200:
                turn.failures.append(response.text[:200])
                return
            of_arm = turn.latencies_s.setdefault(response.headers["sm4ll-arm"], [])
            of_arm.append(time.perf_counter() - started_s)
            for entry in response.headers["server-timing"].split(", "):
                stage, _, took_ms = entry.partition(";dur=")
                turn.stages_ms.setdefault(stage, []).append(float(took_ms))

        until_s = time.perf_counter() + setting.seconds
        async with asyncio.TaskGroup() as callers:
            number = 0
            while time.perf_counter() < until_s:
                callers.create_task(call(f"{seed}-{number}"))
                number += 1
                await asyncio.sleep(dice.expovariate(setting.rate_hz))
    return turn


async def measure(url: str, key: str, setting: Setting) -> list[dict[str, Turn]]:
    switch = Switch(Settings())
    await switch.begin()
    await asyncio.sleep(SETTLE_S)
    await call_for_a_while(url, key, setting, seed=0)  # teaches the gate what a pass takes
    pairs: list[dict[str, Turn]] = []
    for number in range(1, setting.pairs + 1):
        pair: dict[str, Turn] = {}
        for mode in ("without", "with")[:: 1 if number % 2 else -1]:
            await switch.turn(10_000 if mode == "with" else 0)
            before = await switch.count_shadows()
            pair[mode] = await call_for_a_while(url, key, setting, seed=number)
            await asyncio.sleep(SETTLE_S)
            pair[mode].num_shadows = await switch.count_shadows() - before
            err.print(f"  pair {number}, {mode}: {line(pair[mode].all_s())}")
        pairs.append(pair)
    return pairs


def line(latencies_s: Sequence[float]) -> str:
    p50_ms, p95_ms, p99_ms = (percentile(latencies_s, q) * 1e3 for q in (0.5, 0.95, 0.99))
    return f"{p50_ms:.1f} / {p95_ms:.1f} / {p99_ms:.1f} ms of {len(latencies_s)}"


def gather(pairs: Sequence[dict[str, Turn]], mode: str, arm: str | None) -> list[float]:
    turns = [pair[mode] for pair in pairs]
    return [x for turn in turns for x in (turn.latencies_s.get(arm, []) if arm else turn.all_s())]


def describe(setting: Setting, pairs: Sequence[dict[str, Turn]]) -> str:
    lines = [
        f"{dt.date.today()}, {os.cpu_count()} cores, {setting.routers} routers; passes of "
        f"{setting.pass_s * 1e3:.0f} ms in {setting.steps} steps, devices {setting.busy:.0%} busy "
        f"with live work; {setting.pairs} pairs of {setting.seconds:.0f} s",
        "",
        "| live requests | without: p50 / p95 / p99 | with | ratio of p50 | of p95 |",
        "|---|---|---|---|---|",
    ]
    for title, arm in (("all", None), ("of the challenger", "new"), ("of the control", "old")):
        without, beside = (gather(pairs, mode, arm) for mode in ("without", "with"))
        ratios = [percentile(beside, q) / percentile(without, q) for q in (0.5, 0.95)]
        verdict = "" if arm else f" ({'met' if ratios[1] <= TARGET else 'MISSED'})"
        lines.append(
            f"| {title} | {line(without)} | {line(beside)} | {ratios[0]:.3f} "
            f"| {ratios[1]:.3f}{verdict} |"
        )
    by_pair = sorted(
        percentile(pair["with"].all_s(), 0.95) / percentile(pair["without"].all_s(), 0.95)
        for pair in pairs
    )
    asked = len(gather(pairs, "with", "old"))
    shown = sum(pair["with"].num_shadows for pair in pairs)
    stray = sum(pair["without"].num_shadows for pair in pairs)
    stages = {
        mode: {
            name: round(mean(x for pair in pairs for x in pair[mode].stages_ms[name]))
            for name in pairs[0][mode].stages_ms
        }
        for mode in ("without", "with")
    }
    failures = [text for pair in pairs for turn in pair.values() for text in turn.failures]
    lines += [
        "",
        f"- p95 ratios of the pairs: {', '.join(f'{ratio:.3f}' for ratio in by_pair)} "
        f"(median {median(by_pair):.3f})",
        f"- {shown} shadows of {asked} requests of the control ({shown / max(1, asked):.0%}); the "
        f"others found no spare permit or gave theirs back. With shadows off: {stray}",
        *(f"- mean of each stage {mode} shadows, ms: {told}" for mode, told in stages.items()),
        f"- failed live requests: {len(failures)} {failures[:1] or ''}",
    ]
    return "\n".join(lines)


def run(setting: Setting) -> str:
    with tempfile.TemporaryDirectory(prefix="sm4ll-shadow-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        (folder / "experts").mkdir()
        for version in ("old", "new"):
            text = EXPERT.format(name=version, pass_s=setting.pass_s, steps=setting.steps)
            (folder / f"experts/top.{version}.yaml").write_text(text)
        family = folder / "family.yaml"
        family.write_text(FAMILY.replace("ROUTERS", str(setting.routers)))
        cluster = LocalCluster(
            LocalOptions(family=family, port=port, num_cpus=16, data_dir=folder / "data")
        )
        try:
            cluster.start(lambda deployments: None, threading.Event())
            pairs = asyncio.run(measure(cluster.url, cluster.api_key or "", setting))
        finally:
            cluster.stop()
    return describe(setting, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pass-s", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--busy", type=float, default=0.4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    report = run(Setting(**arguments))
    print(report)
    if output is not None:
        output.write_text(report + "\n")


if __name__ == "__main__":
    main()
