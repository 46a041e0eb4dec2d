"""What admission costs and what it holds: decisions, the gate's overhead, overload, fairness.

`python -m tests.bench.admission`; the scheduler and the gate are the real ones, the deployment
behind them is simulated.
"""

import asyncio
import time
from collections import Counter

import numpy as np
from rich.console import Console
from rich.table import Table

from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import LOCAL_SHARE, Priority, Share, Ticket
from serve.messages import ExpertRequest, Landmarks
from tests.simulation import Arrival, Outcome, percentile, poisson, simulate

COST_S = 0.5


def decision_us(num_tenants: int, num_items: int = 100_000) -> tuple[float, float]:
    """Microseconds to offer one item and to decide what is next, with so many tenants waiting."""
    lane = Lane(LaneLimits(1, 10 * num_items))
    deadline_s = 1e9
    running = Ticket(Share("first"), "eye@1", 1.0)
    lane.offer(running, 0.0)
    priorities: tuple[Priority, Priority] = ("interactive", "batch")
    tickets = [
        Ticket(
            Share(str(number % num_tenants), 1.0 + number % 7, priorities[number % 5 == 0]),
            "eye@1",
            0.1 + number % 11,
            deadline_s,
        )
        for number in range(num_items)
    ]
    begun_s = time.perf_counter()
    for ticket in tickets:
        lane.offer(ticket, 0.0)
    offered_s = time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    for number in range(num_items):
        lane.end(running, float(number))
        (running,) = lane.advance(float(number)).started
    decided_s = time.perf_counter() - begun_s
    return 1e6 * offered_s / num_items, 1e6 * decided_s / num_items


async def gate_us(num_passes: int = 50_000) -> float:
    """Microseconds that an idle gate adds to a request."""
    nothing = np.zeros((1, 1), np.uint8)
    request = ExpertRequest(
        request_id="req",
        version="eye@1",
        crop_hwc=np.zeros((768, 576, 3), np.uint8),
        region_hw=nothing,
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=nothing[:, :, None],
        product_landmarks=Landmarks(),
        seed=0,
        num_steps=16,
        deadline_unix_s=time.time() + 1e6,
    )
    gate = Gate({"eye@1": Lane(LaneLimits(4))})
    begun_s = time.perf_counter()
    for _ in range(num_passes):
        async with gate.admit(request, LOCAL_SHARE):
            pass
    return 1e6 * (time.perf_counter() - begun_s) / num_passes


def tenants_at(rate_hz: float, until_s: float, timeout_s: float) -> list[Arrival]:
    return [
        Arrival(at_s, Ticket(Share(f"t{number % 20}"), "eye@1", COST_S, at_s + timeout_s))
        for number, at_s in enumerate(poisson(rate_hz, until_s, seed=5))
    ]


def overload_table() -> Table:
    """20 tenants on 4 replicas for 10 minutes, each request with 10 seconds."""
    replicas, until_s = 4, 600.0
    table = Table(title="overload: 4 replicas, 20 tenants, 10 s deadline, 0.5 s a request")
    for heading in ("offered", "goodput", "done", "refused", "promise broken", "Retry-After p50"):
        table.add_column(heading, justify="right")
    for factor in (0.8, 1.0, 1.5, 2.0, 5.0, 20.0):
        arrivals = tenants_at(factor * replicas / COST_S, until_s, 10.0)
        limits = LaneLimits(2 * replicas, 256, 0.1, float(replicas))
        outcomes = simulate(Lane(limits), arrivals, replicas)
        endings = Counter(one.ending for one in outcomes)
        retries_s = [one.retry_after_s for one in outcomes if one.ending == "refused"]
        assert None not in retries_s
        good_s = sum(
            one.device_s for one in outcomes if one.ending == "done" and one.ended_s <= until_s
        )
        table.add_row(
            f"{factor:.1f}x",
            f"{100 * good_s / (replicas * until_s):.1f} %",
            str(endings["done"]),
            str(endings["refused"]),
            str(endings["expired"] + endings["late"]),
            f"{percentile([one or 0.0 for one in retries_s], 0.5):.1f} s" if retries_s else "-",
        )
    return table


def _light_p95_s(outcomes: list[Outcome]) -> float:
    latencies_s = [one.latency_s for one in outcomes if one.ticket.share.tenant == "light"]
    return percentile(latencies_s, 0.95)


def fairness_table() -> Table:
    """One tenant with a fifth of the capacity, alone and beside 10,000 queued jobs."""
    table = Table(title="p95 of a tenant at 20 % load beside one that queued 10,000 jobs")
    for heading in ("replicas", "permits", "alone", "beside the 10,000", "ratio"):
        table.add_column(heading, justify="right")
    hog = [Arrival(10.0, Ticket(Share("hog"), "eye@1", COST_S)) for _ in range(10_000)]
    for replicas, permits in ((2, 2), (4, 4), (8, 8), (8, 16), (16, 16)):
        limits = LaneLimits(permits, 100_000, 0.1, float(replicas))
        light = [
            Arrival(at_s, Ticket(Share("light"), "eye@1", COST_S, at_s + 60.0))
            for at_s in poisson(0.2 * replicas / COST_S, 300.0, seed=3)
        ]
        alone_s = _light_p95_s(simulate(Lane(limits), light, replicas))
        beside_s = _light_p95_s(simulate(Lane(limits), light + hog, replicas))
        ratio = f"{beside_s / alone_s:.2f}"
        table.add_row(str(replicas), str(permits), f"{alone_s:.2f} s", f"{beside_s:.2f} s", ratio)
    return table


def decision_table() -> Table:
    table = Table(title="a decision with 100,000 items waiting")
    for heading in ("tenants", "offer", "end and next"):
        table.add_column(heading, justify="right")
    for num_tenants in (1, 100, 10_000, 100_000):
        offer_us, next_us = decision_us(num_tenants)
        table.add_row(f"{num_tenants:,}", f"{offer_us:.1f} us", f"{next_us:.1f} us")
    return table


def main() -> None:
    console = Console()
    console.print(decision_table())
    console.print(f"an idle gate adds {asyncio.run(gate_us()):.1f} us to a request")
    console.print(overload_table())
    console.print(fairness_table())


if __name__ == "__main__":
    main()
