"""Where a function of one number crosses 0."""

from collections.abc import Callable


def find_root(function: Callable[[float], float], start: float, end: float) -> float:
    """
    Args:
        function: crosses 0 at most once between the two. Where it does not, the end at which it
            is nearer to 0 answers.
    """
    from scipy.optimize import brentq  # slow to import, and routers never ask this

    at_start, at_end = function(start), function(end)
    if (at_start > 0) == (at_end > 0):
        return start if abs(at_start) < abs(at_end) else end
    return float(brentq(function, start, end, xtol=1e-9))
