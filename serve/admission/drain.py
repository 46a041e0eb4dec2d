"""How fast a deployment works off predicted GPU-seconds; pure."""

import math

# A minute of work: long against one request, short against a replica that comes or goes.
MEMORY_S = 60.0
# How much working time the guess counts for.
GUESS_S = 5.0
MIN_RATE = 1e-3


class DrainRate:
    """Predicted GPU-seconds retired per second, over the time in which every permit was in use.

    What is retired is counted as it was predicted: a prediction that is off by a factor is off
    by the same factor here, and the time to drain a backlog comes out right.
    """

    def __init__(self, guess: float):
        self._retired_s = guess * GUESS_S
        self._busy_s = GUESS_S
        self._busy_since_s: float | None = None
        self._now_s = 0.0

    def rate(self, now_s: float) -> float:
        """GPU-seconds per second; falls while nothing is finished."""
        self._pass_time(now_s)
        return max(MIN_RATE, self._retired_s / self._busy_s)

    def mark(self, is_busy: bool, now_s: float) -> None:
        """Say whether every permit is in use from now on."""
        self._pass_time(now_s)
        if not is_busy:
            self._busy_since_s = None
        elif self._busy_since_s is None:
            self._busy_since_s = now_s

    def retire(self, cost_s: float, started_s: float, now_s: float) -> None:
        """Count work that ended, as far as it lay in the busy time."""
        self._pass_time(now_s)
        if self._busy_since_s is None:
            return
        took_s = now_s - started_s
        counted_s = now_s - max(started_s, self._busy_since_s)
        self._retired_s += cost_s * (counted_s / took_s if took_s > 0 else 1.0)

    def scale(self, factor: float) -> None:
        """Expect so many times the speed from now on: devices came or went."""
        self._retired_s *= factor

    def _pass_time(self, now_s: float) -> None:
        if self._busy_since_s is not None and now_s > self._now_s:
            passed_s = now_s - self._now_s
            kept = math.exp(-passed_s / MEMORY_S)
            self._retired_s *= kept
            self._busy_s = self._busy_s * kept + passed_s
        self._now_s = max(self._now_s, now_s)
