"""A command that sends many requests keeps to its tenant's rate instead of failing on it."""

import time
from collections.abc import Callable
from typing import TypeVar

from serve.client import ApiError

T = TypeVar("T")


def patiently(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Call until it is not refused as one too many in this minute, and wait as long as it says."""
    while True:
        try:
            return call()
        except ApiError as exc:
            problem = exc.problem
            if problem.code != "rate_limited" or problem.retry_after_s is None:
                raise
        sleep(problem.retry_after_s)
