"""What becomes of a job after an attempt at it failed, by what it failed with; pure."""

from dataclasses import dataclass
from typing import Any, Literal

from serve.errors import (
    Cancelled,
    CapacityError,
    DeadlineExceeded,
    GenerationFailed,
    ReplicaLost,
    RequestError,
    Sm4llError,
)

Step = Literal["fail", "postpone", "retry"]
# An attempt that took too long or killed its replica may do so again.
MAYBE_ITS_OWN_DOING = (DeadlineExceeded, ReplicaLost)
MIN_POSTPONE_S = 1.0
MAX_POSTPONE_S = 60.0


@dataclass(frozen=True, slots=True)
class Fate:
    """`fail` is final, `retry` counts the attempt, `postpone` does not."""

    step: Step
    problem: dict[str, Any]
    delay_s: float = 0.0


def decide_fate(error: Exception, is_past_deadline: bool) -> Fate:
    """
    Args:
        is_past_deadline: of the job itself, not of one attempt.
    """
    known = error if isinstance(error, Sm4llError) else _unknown(error)
    problem = tell_problem(known)
    if is_past_deadline:
        late = DeadlineExceeded("the job's deadline passed before it was done")
        return Fate("fail", tell_problem(late))
    if isinstance(known, RequestError):
        return Fate("fail", problem)
    if isinstance(known, Cancelled):  # by a router that goes away: nobody asked us
        return Fate("postpone", problem, MIN_POSTPONE_S)
    if isinstance(known, CapacityError) and not isinstance(known, MAYBE_ITS_OWN_DOING):
        wanted_s = known.retry_after_s or MIN_POSTPONE_S
        return Fate("postpone", problem, min(max(wanted_s, MIN_POSTPONE_S), MAX_POSTPONE_S))
    return Fate("retry", problem)


def tell_problem(error: Sm4llError) -> dict[str, Any]:
    """As a poll, an event and a webhook show it."""
    told = {"code": error.code, "title": error.title, "detail": error.detail}
    return {**told, "remedy": error.remedy} if error.remedy else told


def _unknown(error: Exception) -> Sm4llError:
    return GenerationFailed(f"the attempt ended unexpectedly ({type(error).__name__})")
