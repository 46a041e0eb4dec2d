from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission.fair_queue import FairQueue
from serve.admission.ticket import Share, Ticket


def ticket(tenant: str, cost_s: float = 1.0, weight: float = 1.0) -> Ticket:
    return Ticket(Share(tenant, weight), "eye@1", cost_s)


def drain(queue: FairQueue, num: int | None = None) -> list[Ticket]:
    popped: list[Ticket] = []
    while len(popped) != num and (one := queue.pop()) is not None:
        popped.append(one)
    return popped


def seconds_of(tickets: list[Ticket]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for one in tickets:
        sums[one.share.tenant] += one.cost_s  # type: ignore[assignment]
    return sums


def test_one_tenants_items_come_in_the_order_they_were_put() -> None:
    queue, tickets = FairQueue(), [ticket("a", cost_s) for cost_s in (3.0, 1.0, 2.0)]
    for one in tickets:
        queue.push(one)
    assert drain(queue) == tickets


def test_who_comes_with_nothing_waiting_is_next_behind_a_thousand_of_another() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.push(ticket("hog"))
    drain(queue, 500)
    queue.push(late := ticket("late"))
    assert late in drain(queue, 2)


def test_a_tenant_that_was_idle_has_saved_nothing_up() -> None:
    queue = FairQueue()
    queue.push(ticket("idle"))
    for _ in range(400):
        queue.push(ticket("busy"))
    drain(queue, 200)
    for _ in range(100):
        queue.push(ticket("idle"))
    assert 9 <= seconds_of(drain(queue, 20))["idle"] <= 11


def test_shares_are_in_seconds_not_in_requests() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.push(ticket("long", 4.0))
        queue.push(ticket("short", 0.5))
    seconds = seconds_of(drain(queue, 400))
    assert abs(seconds["long"] / seconds["short"] - 1) < 0.05


@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0, 40.0]), min_size=2, max_size=6),
    st.lists(st.floats(0.05, 8.0), min_size=1, max_size=5),
)
def test_waiting_tenants_get_seconds_by_weight_to_within_one_item(
    weights: list[float], costs_s: list[float]
) -> None:
    queue = FairQueue()
    for number, weight in enumerate(weights):
        for turn in range(300):
            queue.push(ticket(str(number), costs_s[(turn + number) % len(costs_s)], weight))
    seconds = seconds_of(drain(queue, 250))
    rounds = [seconds[str(number)] / weight for number, weight in enumerate(weights)]
    assert max(rounds) - min(rounds) <= 2 * max(costs_s) / min(weights) + 1e-6


STEPS = st.lists(
    st.tuples(st.sampled_from(["push", "pop", "remove"]), st.integers(0, 5), st.floats(0.01, 9.0)),
    max_size=200,
)


@given(STEPS)
def test_whatever_is_put_in_comes_out_once_and_the_sums_agree(
    steps: list[tuple[str, int, float]],
) -> None:
    queue = FairQueue()
    waiting: list[Ticket] = []
    for step, number, cost_s in steps:
        if step == "push":
            waiting.append(one := ticket(str(number), cost_s, 1.0 + number))
            queue.push(one)
        elif step == "pop":
            popped = queue.pop()
            assert (popped is None) == (not waiting)
            if popped is not None:
                waiting.remove(popped)
        elif waiting:
            queue.remove(waiting.pop(number % len(waiting)))
        assert len(queue) == len(waiting)
        assert queue.waiting_s == pytest.approx(sum(one.cost_s for one in waiting), abs=1e-6)
        assert set(queue) == set(waiting)
        probe = ticket("new", 1.0)
        assert -1e-9 <= queue.ahead_s(probe) <= queue.waiting_s + 1e-6
    assert set(drain(queue)) == set(waiting)


def test_what_lies_ahead_is_the_own_backlog_and_as_much_of_the_others() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.push(ticket("hog"))
    drain(queue, 1)
    for _ in range(5):
        queue.push(ticket("own"))
    assert queue.ahead_s(ticket("hog")) == pytest.approx(104, abs=2)
    assert queue.ahead_s(ticket("own")) == pytest.approx(10, abs=2)
    assert queue.ahead_s(ticket("new")) <= 2


def test_many_tenants_with_one_item_each_lie_ahead_of_a_new_one() -> None:
    queue = FairQueue()
    for number in range(50):
        queue.push(ticket(str(number)))
    assert queue.ahead_s(ticket("new")) == pytest.approx(50)


def test_tenants_that_came_once_are_forgotten() -> None:
    queue = FairQueue()
    for number in range(5000):
        queue.push(ticket(str(number)))
        queue.pop()
    assert len(queue._lines) < 200


def test_what_does_not_wait_cannot_be_removed() -> None:
    queue = FairQueue()
    queue.push(one := ticket("a"))
    queue.pop()
    with pytest.raises(KeyError):
        queue.remove(one)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        Share("a", weight)
