"""Replicas follow what waits, on the running cluster: burst in, up; idle, down."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from ray import serve as rayserve

from serve.client import Client
from serve.local_app import APP_NAME
from serve.schemas.tryon import TryOnOptions
from tests.pictures import box_mask, encoded, photo

pytestmark = pytest.mark.ray

DEPLOYMENT = "Expert-top@slow"
NUM_CALLERS = 12
# Starting a replica is most of it, on a machine that does other things too.
TIMEOUT_S = 120.0
POLL_S = 0.2

FILES = (encoded(photo()), encoded(photo(64, 64, seed=1)), encoded(box_mask()))


def replicas() -> dict[str, int]:
    """Of the slow version, by state."""
    deployments = rayserve.status().applications[APP_NAME].deployments
    return {str(state): num for state, num in deployments[DEPLOYMENT].replica_states.items()}


def until(is_so: Callable[[dict[str, int]], bool], what: str) -> None:
    give_up_s = time.monotonic() + TIMEOUT_S
    while not is_so(seen := replicas()):
        assert time.monotonic() < give_up_s, f"{what} not within {TIMEOUT_S:.0f} s: {seen}"
        threading.Event().wait(POLL_S)


@contextmanager
def burst(api: Client) -> Iterator[None]:
    """Callers who want the slow version all the time, inside the block."""
    over = threading.Event()

    def call() -> int:
        num_done = 0
        while not over.is_set():
            api.tryon(TryOnOptions(expert="top", version="slow"), *FILES)
            num_done += 1
        return num_done

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        calls = [callers.submit(call) for _ in range(NUM_CALLERS)]
        try:
            yield
        finally:
            over.set()
        assert all(one.result() >= 1 for one in calls), "everybody was served"


def test_a_burst_brings_replicas_and_idling_takes_them_away(api: Client) -> None:
    until(lambda seen: seen == {"RUNNING": 1}, "one replica at rest")
    with burst(api):
        until(lambda seen: seen.get("RUNNING", 0) == 3, "three replicas under load")
    until(lambda seen: seen == {"RUNNING": 1}, "one replica again")
