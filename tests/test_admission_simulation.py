"""The real scheduler before a simulated deployment: what tenants get from it under load."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import Priority, Share, Ticket
from serve.errors import CapacityError, Overloaded
from tests.simulation import Arrival, Outcome, percentile, poisson, simulate

COST_S = 0.5
REPLICAS = 8


def lane(max_waiting: int = 100_000, replicas: int = REPLICAS, floor: float = 0.1) -> Lane:
    return Lane(LaneLimits(replicas, max_waiting, floor, float(replicas)))


def work(
    tenant: str,
    times_s: list[float],
    *,
    weight: float = 1.0,
    priority: Priority = "interactive",
    timeout_s: float = float("inf"),
    cost_s: float = COST_S,
) -> list[Arrival]:
    share = Share(tenant, weight, priority)
    return [Arrival(at_s, Ticket(share, "eye@1", cost_s, at_s + timeout_s)) for at_s in times_s]


def p95_s(outcomes: list[Outcome], tenant: str) -> float:
    mine = [one for one in outcomes if one.ticket.share.tenant == tenant]
    assert {one.ending for one in mine} == {"done"}
    return percentile([one.latency_s for one in mine], 0.95)


def device_s(outcomes: list[Outcome], until_s: float) -> Counter[str]:
    """Device seconds by tenant, of what was done by then."""
    sums: Counter[str] = Counter()
    for one in outcomes:
        if one.ending == "done" and one.ended_s <= until_s:
            sums[one.ticket.share.tenant] += one.device_s  # type: ignore[assignment]
    return sums


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_ten_thousand_queued_jobs_leave_another_tenants_p95_below_one_and_a_half_times_its_solo(
    priority: Priority,
) -> None:
    def light() -> list[Arrival]:  # a fifth of what the devices can do
        return work("light", poisson(0.2 * REPLICAS / COST_S, 300.0, seed=3), timeout_s=60.0)

    solo_s = p95_s(simulate(lane(), light(), REPLICAS), "light")
    hog = work("hog", [10.0] * 10_000, priority=priority)
    together = simulate(lane(), light() + hog, REPLICAS)
    assert p95_s(together, "light") <= 1.5 * solo_s
    assert sum(one.ending == "done" for one in together) == len(light()) + 10_000


@pytest.mark.parametrize("bias", [0.3, 1.0, 3.0])
def test_five_times_overload_keeps_the_devices_at_work_that_counts(bias: float) -> None:
    """Also where everything takes three times as long, or a third, of what is predicted."""
    until_s, replicas = 300.0, 4
    times = poisson(5 * replicas / (COST_S * bias), until_s, seed=5)
    arrivals = [
        arrival
        for number, at_s in enumerate(times)
        for arrival in work(f"t{number % 20}", [at_s], timeout_s=10.0)
    ]
    limits = LaneLimits(2 * replicas, 256, 0.1, float(replicas))
    outcomes = simulate(Lane(limits), arrivals, replicas, bias=bias)
    goodput = sum(device_s(outcomes, until_s).values()) / (replicas * until_s)
    assert goodput >= 0.95
    endings = Counter(one.ending for one in outcomes)
    broken = endings["expired"] + endings["late"]
    assert broken <= 0.06 * endings["done"], "admitted with a promise that was not kept"
    refusals = [one for one in outcomes if one.ending == "refused"]
    assert refusals
    assert all((one.retry_after_s or 0) >= 1 for one in refusals)


def test_after_a_stall_that_ruined_every_estimate_the_devices_are_full_again() -> None:
    replicas, stall_s, until_s = 4, 200.0, 320.0
    stalled = lane(max_waiting=256, replicas=replicas)
    held = [Ticket(Share("a"), "eye@1", COST_S) for _ in range(replicas)]
    assert all(stalled.offer(ticket, 0.0) for ticket in held)
    doomed = Ticket(Share("a"), "eye@1", COST_S, stall_s + 10.0)
    with pytest.raises(Overloaded):
        stalled.offer(doomed, stall_s)  # nothing was finished for so long
    for ticket in held:
        stalled.end(ticket, stall_s)
    times = [stall_s + at_s for at_s in poisson(5 * replicas / COST_S, until_s - stall_s, seed=5)]
    outcomes = simulate(stalled, work("a", times, timeout_s=10.0), replicas)
    done_s = sum(device_s(outcomes, until_s).values())
    assert done_s >= 0.95 * replicas * (until_s - stall_s)


def test_a_refused_caller_who_comes_back_when_told_is_served() -> None:
    """Retry-After is the truth when nobody else comes."""
    one_lane, timeout_s = lane(replicas=1), 5.0
    for _ in range(100):
        try:
            one_lane.offer(Ticket(Share("a"), "eye@1", 1.0, timeout_s), 0.0)
        except Overloaded as exc:
            refusal = exc
    retry_after_s = refusal.retry_after_s
    assert retry_after_s is not None
    burst = work("a", [0.0] * 100, timeout_s=timeout_s, cost_s=1.0)
    again = work("back", [retry_after_s], timeout_s=timeout_s, cost_s=1.0)
    outcomes = simulate(lane(replicas=1), burst + again, 1, noise=0.0)
    assert {one.ending for one in outcomes if one.ticket.share.tenant == "back"} == {"done"}


def test_batch_gets_its_floor_and_no_more_while_interactive_work_waits() -> None:
    interactive = work("shop", [0.0] * 5000)
    batch = work("catalogue", [0.0] * 5000, priority="batch")
    outcomes = simulate(lane(floor=0.2), interactive + batch, REPLICAS)
    seconds = device_s(outcomes, 200.0)
    assert 0.18 <= seconds["catalogue"] / seconds.total() <= 0.22


def test_batch_gets_everything_that_interactive_work_leaves() -> None:
    interactive = work("shop", poisson(0.5 * REPLICAS / COST_S, 200.0, seed=1))
    batch = work("catalogue", [0.0] * 5000, priority="batch")
    seconds = device_s(simulate(lane(), interactive + batch, REPLICAS), 200.0)
    assert seconds.total() >= 0.98 * REPLICAS * 200.0
    assert seconds["catalogue"] >= 0.45 * seconds.total()


def test_tenants_get_device_seconds_by_weight_also_with_unequal_requests() -> None:
    arrivals = (
        work("one", [0.0] * 4000, weight=1.0, cost_s=0.25)
        + work("two", [0.0] * 4000, weight=2.0, cost_s=1.0)
        + work("five", [0.0] * 4000, weight=5.0, cost_s=0.5)
    )
    seconds = device_s(simulate(lane(), arrivals, REPLICAS), 200.0)
    total = seconds.total()
    for tenant, weight in (("one", 1), ("two", 2), ("five", 5)):
        assert abs(seconds[tenant] / total - weight / 8) < 0.02


def test_a_full_queue_still_has_room_for_who_has_nothing_in_it() -> None:
    crowded = lane(max_waiting=100, replicas=1)
    refusals = []
    for _ in range(1000):
        try:
            crowded.offer(Ticket(Share("hog"), "eye@1", COST_S), 0.0)
        except Overloaded as exc:
            refusals.append(exc)
    assert len(refusals) > 900
    assert all((refusal.retry_after_s or 0) >= 1 for refusal in refusals)
    assert crowded.offer(Ticket(Share("light"), "eye@1", COST_S), 0.0) is False


def test_an_estimate_that_is_far_too_high_keeps_no_work_from_an_idle_device() -> None:
    idle = lane(replicas=1)
    assert idle.offer(Ticket(Share("a"), "eye@1", 1e6, 10.0), 0.0) is True


def test_what_came_too_late_is_named_at_once_and_never_started() -> None:
    one_lane = lane(replicas=1)
    assert one_lane.offer(Ticket(Share("a"), "eye@1", 0.1), 0.0)
    late = Ticket(Share("a"), "eye@1", 1.0, 5.0)
    assert not one_lane.offer(late, 0.0)
    assert one_lane.next_expiry_s() == pytest.approx(4.0)
    assert one_lane.advance(3.9).expired == ()
    turns = one_lane.advance(4.0)
    assert (turns.started, turns.expired) == ((), (late,))
    assert one_lane.num_waiting == 0


def test_work_is_not_started_where_what_runs_before_it_would_make_it_late() -> None:
    two = Lane(LaneLimits(2, rate_guess=1.0))
    running = [Ticket(Share("a"), "eye@1", 5.0) for _ in range(2)]
    assert all(two.offer(ticket, 0.0) for ticket in running)
    waiting = [Ticket(Share("a"), "eye@1", 1.0, deadline_s) for deadline_s in (22.0, 60.0)]
    assert not any(two.offer(ticket, 0.0) for ticket in waiting)
    two.end(running[0], 16.0)
    turns = two.advance(16.0)  # five seconds of the other, at the rate seen so far, and its own
    assert (turns.expired, turns.started) == ((waiting[0],), (waiting[1],))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "end", "leave", "pass"]),
        st.integers(0, 4),
        st.floats(0.01, 5.0),
        st.sampled_from([0.5, 5.0, 50.0, float("inf")]),
    ),
    max_size=150,
)


@settings(max_examples=200)
@given(st.integers(1, 4), st.integers(0, 12), STEPS)
def test_no_permit_is_free_while_work_waits_and_all_of_it_ends_once(
    permits: int, max_waiting: int, steps: list[tuple[str, int, float, float]]
) -> None:
    tested = Lane(LaneLimits(permits, max_waiting, 0.2))
    waiting: list[Ticket] = []
    running: list[Ticket] = []
    started: list[Ticket] = []
    refusals: list[CapacityError] = []
    now_s = 0.0

    def settle() -> None:
        turns = tested.advance(now_s)
        for ticket in turns.started:
            waiting.remove(ticket)
            running.append(ticket)
            started.append(ticket)
        for ticket in turns.expired:
            waiting.remove(ticket)

    for step, number, seconds, timeout_s in steps:
        if step == "offer":
            share = Share(str(number), 1.0 + number, "batch" if number % 2 else "interactive")
            ticket = Ticket(share, "eye@1", seconds, now_s + timeout_s)
            try:
                is_started = tested.offer(ticket, now_s)
            except CapacityError as exc:
                refusals.append(exc)
            else:
                (running if is_started else waiting).append(ticket)
                started += [ticket] * is_started
        elif step == "pass":
            now_s += seconds
        elif queue := (running if step == "end" else waiting):
            tested.end(queue.pop(number % len(queue)), now_s)
        settle()
        assert (tested.num_in_flight, tested.num_waiting) == (len(running), len(waiting))
        assert len(running) <= permits
        assert len(running) == permits or not waiting
        assert tested.waiting_s().total() == pytest.approx(sum(one.cost_s for one in waiting))
        assert tested.running_s().total() == pytest.approx(sum(one.cost_s for one in running))
    assert len(set(started)) == len(started)
    assert all((refusal.retry_after_s or 0) >= 1 for refusal in refusals)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 3), st.floats(0.05, 3.0)), max_size=60),
)
def test_every_arrival_has_exactly_one_ending(
    replicas: int, arrivals: list[tuple[float, int, float]]
) -> None:
    offered = [
        one
        for at_s, number, cost_s in arrivals
        for one in work(str(number), [at_s], timeout_s=6.0, cost_s=cost_s)
    ]
    outcomes = simulate(lane(20, replicas), offered, replicas)
    assert Counter(one.ticket for one in outcomes) == Counter(one.ticket for one in offered)


def test_permits_that_come_are_used_at_once_and_those_that_go_end_in_their_own_time() -> None:
    growing = lane(replicas=1)
    tickets = [Ticket(Share("a"), "eye@1", COST_S) for _ in range(6)]
    assert [growing.offer(ticket, 0.0) for ticket in tickets] == [True, *[False] * 5]
    before_s = growing.predict_wait_s(Ticket(Share("b"), "eye@1", COST_S), 0.0)
    growing.resize(4, 0.0)
    assert growing.advance(0.0).started == tuple(tickets[1:4])
    after_s = growing.predict_wait_s(Ticket(Share("b"), "eye@1", COST_S), 0.0)
    assert before_s == pytest.approx(1.0)
    assert after_s == pytest.approx(0.5)  # four times as much runs, four times as fast
    growing.resize(2, 0.1)
    for ticket in tickets[:2]:
        growing.end(ticket, 0.2)
        assert growing.advance(0.2).started == ()
    growing.end(tickets[2], 0.3)
    assert growing.advance(0.3).started == (tickets[4],)


@pytest.mark.parametrize("replicas", [1, 8])
def test_the_speed_of_many_replicas_is_measured_as_theirs_together(replicas: int) -> None:
    busy = Lane(LaneLimits(replicas, 10_000, rate_guess=1.0))
    simulate(busy, work("a", [0.0] * 400 * replicas), replicas)
    ticket = Ticket(Share("b"), "eye@1", COST_S)
    for _ in range(replicas):
        busy.offer(Ticket(Share("a"), "eye@1", COST_S), 400.0)
    assert busy.predict_wait_s(ticket, 400.0) == pytest.approx(COST_S, rel=0.15)
