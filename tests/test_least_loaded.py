"""The order in which replicas get requests."""

from serve.least_loaded import Turns


def test_the_replica_with_the_fewest_requests_is_next_and_an_unknown_one_is_idle() -> None:
    assert Turns().take({"a": 2, "b": 1, "c": 3}) == ["b", "a", "c"]
    assert Turns().take({"a": 1, "b": None, "c": 2}) == ["b", "a", "c"]
    assert Turns().take({}) == []


def test_choices_made_before_any_is_counted_go_to_different_replicas() -> None:
    turns = Turns()
    idle = dict.fromkeys("abcdefgh", 0)
    assert sorted(turns.take(idle)[0] for _ in idle) == sorted(idle)


def test_among_equals_the_one_that_was_chosen_longest_ago_is_next() -> None:
    turns = Turns()
    busy = dict.fromkeys("abc", 1)
    first = [turns.take(busy)[0] for _ in busy]
    assert [turns.take(busy)[0] for _ in busy] == first


def test_replicas_that_are_gone_are_forgotten_and_a_new_one_is_next() -> None:
    turns = Turns()
    turns.take({"a": 0, "b": 0})
    turns.take({"a": 0, "b": 0})
    assert turns.take({"b": 0, "c": 0})[0] == "c"
    assert set(turns._last_turn) == {"b", "c"}
