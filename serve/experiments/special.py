"""SciPy's special functions, imported when the first is asked for: a third of a second of a core,
which the four processes that a cluster's start waits for need not spend."""

from typing import Any


def __getattr__(name: str) -> Any:
    import scipy.special

    return getattr(scipy.special, name)
