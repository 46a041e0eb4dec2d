"""Amounts and times as Kubernetes writes them, as numbers and in words."""

import re
from datetime import datetime

# Source: k8s.io/apimachinery resource.Quantity (v1.32): decimal and binary suffixes, exponents.
_FACTORS = {
    "": 1.0,
    **{"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15},
    **{"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
IN_BYTES = ("memory", "ephemeral-storage", "storage")


def parse_quantity(text: object) -> float:
    """`500m`, `16Gi`, `2`; 0 for what is absent or unreadable."""
    found = _QUANTITY.fullmatch(str(text).strip()) if text is not None else None
    if found is None or found[2] not in _FACTORS:
        return 0.0
    return float(found[1]) * _FACTORS[found[2]]


def tell_amount(resource: str, amount: float) -> str:
    """As a person says it: `16 GiB`, `1.5`."""
    if resource.removeprefix("requests.").removeprefix("limits.") not in IN_BYTES:
        return f"{amount:.10g}" if amount == round(amount) else f"{amount:.2f}".rstrip("0")
    return f"{amount / 2**30:.3g} GiB" if amount >= 2**30 else f"{amount / 2**20:.3g} MiB"


def parse_time(text: object) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None for what is absent or unreadable."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None


def tell_age(seconds: float) -> str:
    """Two units at most: `40 s`, `12 min`, `3 h 20 min`, `5 d`."""
    seconds = max(0, round(seconds))
    if seconds < 2 * MINUTE_S:
        return f"{seconds} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds // MINUTE_S} min"
    if seconds < 2 * DAY_S:
        minutes = seconds % HOUR_S // MINUTE_S
        return f"{seconds // HOUR_S} h" + (f" {minutes} min" if minutes else "")
    return f"{seconds // DAY_S} d"


def tell_since(text: object, now_s: float) -> str:
    """` for 12 min`, or nothing where the time is not known."""
    at_s = parse_time(text)
    return "" if at_s is None else f" for {tell_age(now_s - at_s)}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
