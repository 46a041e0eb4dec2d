"""The adapter cache never drops what is in use, keeps its budget, and loads a key once."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.backends.diffusion.adapter_cache import AdapterCache

PATIENCE_S = 10.0


@dataclass(eq=False)
class Weights:
    nbytes: int


class Disk:
    """Gives every key its size and counts how often each was read."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.reads: Counter[str] = Counter()

    def read(self, key: str) -> Weights:
        self.reads[key] += 1
        return Weights(self.sizes[key])


def lease_once(cache: AdapterCache[str, Weights], *keys: str) -> None:
    for key in keys:
        with cache.lease(key):
            pass


def test_a_second_lease_finds_what_the_first_loaded() -> None:
    disk = Disk(a=3)
    cache = AdapterCache(10, disk.read)
    lease_once(cache, "a", "a")
    assert disk.reads == {"a": 1}
    assert cache.held_bytes == 3


def test_the_least_recently_used_goes_first() -> None:
    disk = Disk(a=4, b=4, c=4)
    cache = AdapterCache(8, disk.read)
    lease_once(cache, "a", "b", "a", "c")
    assert "b" not in cache
    lease_once(cache, "a", "c")
    assert disk.reads == {"a": 1, "b": 1, "c": 1}


def test_what_is_leased_outlives_the_budget_and_is_trimmed_when_given_back() -> None:
    cache = AdapterCache(4, Disk(a=4, b=4).read)
    with cache.lease("a") as a:
        with cache.lease("b"):
            assert cache.held_bytes == 8
        assert "b" not in cache
        with cache.lease("a") as again:
            assert again is a
    assert cache.held_bytes == 4


def test_a_value_above_the_budget_serves_while_in_use_and_is_dropped_after() -> None:
    cache = AdapterCache(4, Disk(big=100).read)
    with cache.lease("big") as big, cache.lease("big") as again:
        assert again is big
    assert "big" not in cache
    assert cache.held_bytes == 0


def test_a_lease_that_ends_with_an_error_is_given_back() -> None:
    cache = AdapterCache(1, Disk(a=4).read)
    with pytest.raises(RuntimeError), cache.lease("a"):
        raise RuntimeError
    assert cache.held_bytes == 0


def test_a_failed_load_is_nobodys_entry_and_the_next_lease_tries_again() -> None:
    outcomes = iter([OSError("disk"), Weights(2)])

    def load(_: str) -> Weights:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    cache = AdapterCache(4, load)
    with pytest.raises(OSError, match="disk"):
        lease_once(cache, "a")
    assert "a" not in cache
    lease_once(cache, "a")
    assert cache.held_bytes == 2


def test_clear_spares_what_is_leased() -> None:
    cache = AdapterCache(100, Disk(a=4, b=4).read)
    lease_once(cache, "b")
    with cache.lease("a") as a:
        cache.clear()
        assert "b" not in cache
        with cache.lease("a") as again:
            assert again is a
    cache.clear()
    assert cache.held_bytes == 0


def run_threads(*work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(work)) as pool:
        for future in [pool.submit(job) for job in work]:
            future.result(PATIENCE_S)


def test_threads_that_want_one_key_load_it_once() -> None:
    reads: list[str] = []
    second_read = threading.Event()

    def load(key: str) -> Weights:
        reads.append(key)
        if len(reads) > 1:
            second_read.set()
        else:
            second_read.wait(0.2)  # time enough for others to come in, if they could
        return Weights(4)

    cache = AdapterCache(0, load)
    inside = threading.Barrier(6)

    def use() -> None:
        with cache.lease("a"):
            inside.wait(PATIENCE_S)  # all six hold it at once

    run_threads(*[use] * 6)
    assert reads == ["a"]
    assert cache.held_bytes == 0


def test_different_keys_load_side_by_side() -> None:
    loading = threading.Barrier(2)

    def load(_: str) -> Weights:
        loading.wait(PATIENCE_S)  # breaks unless both loads run at once
        return Weights(1)

    cache = AdapterCache(10, load)
    run_threads(lambda: lease_once(cache, "a"), lambda: lease_once(cache, "b"))


def test_a_waiter_loads_for_itself_when_the_first_load_failed() -> None:
    failing, waiting = threading.Event(), threading.Event()

    def load(_: str) -> Weights:
        if not failing.is_set():
            failing.set()
            waiting.wait(PATIENCE_S)
            raise OSError("first")
        return Weights(1)

    cache = AdapterCache(10, load)

    def first() -> None:
        with pytest.raises(OSError, match="first"):
            lease_once(cache, "a")

    def second() -> None:
        failing.wait(PATIENCE_S)
        waiting.set()
        lease_once(cache, "a")

    run_threads(first, second)
    assert cache.held_bytes == 1


def test_threads_never_see_two_values_of_a_key_that_is_in_use() -> None:
    disk = Disk(a=1, b=2, c=3, d=4)
    cache = AdapterCache(5, disk.read)
    lock = threading.Lock()
    in_use: dict[str, list[Weights]] = {key: [] for key in disk.sizes}

    def use_many(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(300):
            key = choice.choice("abcd")
            with cache.lease(key) as weights:
                with lock:
                    assert all(other is weights for other in in_use[key])
                    in_use[key].append(weights)
                with lock:
                    in_use[key].remove(weights)

    run_threads(*[lambda seed=seed: use_many(seed) for seed in range(8)])
    assert cache.held_bytes <= 5


Step = tuple[bool, int]
"""Take a lease of key `int`, or give back lease number `int`."""
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60)


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    max_bytes=st.integers(0, 25),
    steps=STEPS,
)
def test_any_sequence_of_leases_keeps_the_promises(
    sizes: list[int], max_bytes: int, steps: list[Step]
) -> None:
    disk = Disk(**{f"k{index}": size for index, size in enumerate(sizes)})
    cache = AdapterCache(max_bytes, disk.read)
    leases: list[tuple[str, Weights, ExitStack]] = []
    for takes, number in steps:
        if takes:
            key = f"k{number % len(sizes)}"
            held_before, reads_before = key in cache, disk.reads[key]
            stack = ExitStack()
            leases.append((key, stack.enter_context(cache.lease(key)), stack))
            assert disk.reads[key] == reads_before + (not held_before)
        elif leases:
            leases.pop(number % len(leases))[2].close()
        check_promises(cache, disk, max_bytes, [(key, value) for key, value, _ in leases])


def check_promises(
    cache: AdapterCache[str, Weights],
    disk: Disk,
    max_bytes: int,
    leased: list[tuple[str, Weights]],
) -> None:
    values = dict(leased)
    assert all(key in cache for key in values)
    assert all(value is values[key] for key, value in leased)
    held = [key for key in disk.sizes if key in cache]
    assert cache.held_bytes == sum(disk.sizes[key] for key in held)
    idle_bytes = sum(disk.sizes[key] for key in held if key not in values)
    assert cache.held_bytes <= max_bytes or idle_bytes == 0
