"""Single numbers as `sm4ll top` tells them: short, and in the colour that says how they are."""

import re
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich.text import Text

from serve.telemetry import FAST_S

BARS = " ▁▂▃▄▅▆▇█"
IS_HIGH = 0.9


def bad_if(is_bad: bool, text: str) -> Text:
    return Text(text, "bold red" if is_bad else "green")


def warn_if(is_much: bool, text: str) -> Text:
    return Text(text, "yellow" if is_much else "green")


def grey_if(is_quiet: bool, text: str) -> Text:
    return Text(text, "bright_black" if is_quiet else "")


def style_of_share(share: float | None) -> str:
    return "bright_black" if share is None else "cyan" if share < 1 else ""


def draw_busy(busy: float | None, width: int) -> Text:
    """A bar of that many cells, and its percentage."""
    if busy is None:
        return Text("–", "bright_black")
    share = min(max(busy, 0.0), 1.0)
    style = "yellow" if share >= IS_HIGH else "green" if share >= 0.005 else "bright_black"
    filled = round(share * width)
    bar = Text("━" * filled, style).append("━" * (width - filled), "grey23")
    return bar.append(f"{share:>5.0%}" if width else f"{share:.0%}", style)


def draw_spark(values: Sequence[float]) -> str:
    top = max(values, default=0.0)
    if not top:
        return ""
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values)


def tell_where(where: str) -> str:
    """Addresses without what is the same in all of them."""
    return re.sub(r"https?://|/metrics\b", "", where)


def tell_time(seconds: float | None) -> str:
    """At most five cells."""
    if seconds is None:
        return "–"
    scales: tuple[tuple[float, Callable[[float], str]], ...] = (
        (0.00995, lambda s: f"{s * 1e3:.1f}ms"),
        (0.9995, lambda s: f"{s * 1e3:.0f}ms"),
        (99.5, lambda s: f"{s:.1f}s"),
        (3570.0, lambda s: f"{s / 60:.0f}m"),
    )
    for limit, tell in scales:
        if seconds < limit:
            return tell(seconds)
    whole = timedelta(seconds=seconds)
    hours = whole.seconds // 3600
    return f"{whole.days}d{hours:02}h" if whole.days else f"{hours}h{whole.seconds % 3600 // 60:02}"


def tell_quantile(seconds: float | None) -> str:
    """All that is known of one above the last bound is that it lies there."""
    longest_s = FAST_S[-1]
    return (
        f">{longest_s:.0f}s" if seconds is not None and seconds >= longest_s else tell_time(seconds)
    )


def tell_rate(per_s: float) -> str:
    if per_s == 0:
        return "0"
    return f"{per_s:.2f}" if per_s < 9.995 else f"{per_s:.1f}" if per_s < 99.95 else f"{per_s:.0f}"


def tell_share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}"


def tell_count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}M"
