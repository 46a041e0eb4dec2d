import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission.autoscale import DrainPolicy, Load, ScaleState, decide_replicas

POLICY = DrainPolicy(min_replicas=1, max_replicas=10, target_drain_s=10.0, downscale_delay_s=60.0)


def run(policy: DrainPolicy, loads: list[tuple[float, float]], replicas: int = 1) -> list[int]:
    """Decisions for (time, queued GPU-seconds)."""
    state, decided = ScaleState(replicas), []
    for now_s, queued_s in loads:
        state = decide_replicas(policy, state, Load(queued_s), now_s)
        decided.append(state.replicas)
    return decided


def test_a_burst_brings_as_many_replicas_as_drain_it_in_time() -> None:
    assert run(POLICY, [(0.0, 42.0)]) == [5]
    assert run(POLICY, [(0.0, 1e9)]) == [10]


def test_running_work_counts_like_waiting_work() -> None:
    state = decide_replicas(POLICY, ScaleState(1), Load(queued_s=15.0, running_s=15.0), 0.0)
    assert state.replicas == 3


def test_replicas_go_only_when_the_need_stayed_lower_long_enough() -> None:
    loads = [(0.0, 50.0), (1.0, 0.0), (60.0, 0.0), (61.0, 0.0)]
    assert run(POLICY, loads) == [5, 5, 5, 1]


def test_a_new_burst_starts_the_wait_again() -> None:
    loads = [(0.0, 50.0), (1.0, 0.0), (50.0, 50.0), (70.0, 0.0), (110.0, 0.0), (130.0, 0.0)]
    assert run(POLICY, loads) == [5, 5, 5, 5, 5, 1]


def test_the_drop_goes_no_further_than_the_most_that_was_needed_meanwhile() -> None:
    assert run(POLICY, [(0.0, 90.0), (1.0, 0.0), (30.0, 28.0), (61.0, 0.0)])[-1] == 4


def test_a_load_at_the_edge_does_not_flap() -> None:
    loads = [(float(now_s), 20.1 if now_s % 2 else 19.9) for now_s in range(0, 1000, 7)]
    assert set(run(POLICY, loads, replicas=3)) == {3}


def test_the_last_replica_goes_when_nothing_is_left_and_comes_back_for_one_request() -> None:
    policy = DrainPolicy(min_replicas=0, max_replicas=4, downscale_delay_s=60.0)
    loads = [(0.0, 0.001), (1.0, 0.0), (62.0, 0.0), (63.0, 0.001)]
    assert run(policy, loads, replicas=0) == [1, 1, 0, 1]


def test_a_delay_lets_a_short_burst_pass() -> None:
    policy = DrainPolicy(max_replicas=9, target_drain_s=10.0, upscale_delay_s=5.0)
    assert run(policy, [(0.0, 50.0), (4.0, 1.0), (5.0, 50.0), (9.0, 50.0)]) == [1, 1, 1, 1]
    assert run(policy, [(0.0, 50.0), (5.0, 50.0)]) == [1, 5]


@given(
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 20),
    st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 1e4)), min_size=1, max_size=40),
)
def test_the_decision_is_always_within_bounds_and_never_zero_with_work(
    fewest: int, more: int, replicas: int, steps: list[tuple[float, float]]
) -> None:
    policy = DrainPolicy(min_replicas=fewest, max_replicas=fewest + more, downscale_delay_s=20.0)
    state, now_s = ScaleState(min(max(replicas, fewest), fewest + more)), 0.0
    for passed_s, queued_s in steps:
        now_s += passed_s
        state = decide_replicas(policy, state, Load(queued_s), now_s)
        assert fewest <= state.replicas <= fewest + more
        if queued_s > 0 and fewest + more > 0:
            assert state.replicas >= 1


def test_bounds_that_are_no_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no range"):
        DrainPolicy(min_replicas=3, max_replicas=2)
