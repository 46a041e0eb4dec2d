"""The plots of a report: effects against their margins, one effect over time, who got how much."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime

from serve.experiments.analysis import tell_effect
from serve.experiments.metrics import METRICS
from serve.reporting.canvas import ARMS, WIDTH, box, dot, finish, line, words
from serve.schemas.reports import Decision, MetricResult, RevisionCount, Series

LEFT, RIGHT, ROW = 216.0, 290.0, 34.0
MOST = 3.0
"""Effects are drawn in margins, up to so many."""
MAX_REVISIONS = 12
KINDS: dict[Decision, str] = {
    "better": "better",
    "worse": "worse",
    "equal": "better",
    "not_worse": "better",
    "unknown": "open",
    "no_data": "open",
}


def draw_effects(results: Sequence[MetricResult], title: str) -> str:
    """One row a metric, each in multiples of its own margin: what ends inside the band is as good.

    Args:
        results: of one challenger.
    """
    shown = [one for one in results if one.margin > 0]
    top, height = 56.0, 56.0 + ROW * len(shown) + 44
    parts = [
        words(16, 24, title, "strong"),
        words(_x(-MOST), 46, "← better", "soft"),
        words(_x(MOST), 46, "worse →", "soft end"),
        box(_x(-1), top, _x(1) - _x(-1), ROW * len(shown), "band"),
        line(_x(0), top, _x(0), top + ROW * len(shown), "zero"),
    ]
    for margins in (-3, -2, -1, 1, 2, 3):
        parts.append(line(_x(margins), top, _x(margins), top + ROW * len(shown), "grid"))
    for margins in (-2, -1, 0, 1, 2):
        parts.append(
            words(_x(margins), height - 24, f"{margins:+d}" if margins else "0", "soft middle")
        )
    parts.append(words(_x(0), height - 8, "margins", "soft middle"))
    for at, one in enumerate(shown):
        parts.extend(_effect(one, top + ROW * (at + 0.5)))
    return finish(title, height, parts)


def _x(margins: float) -> float:
    clipped = min(MOST, max(-MOST, margins))
    return LEFT + (clipped + MOST) / (2 * MOST) * (WIDTH - LEFT - RIGHT)


def _effect(one: MetricResult, y: float) -> Iterator[str]:
    metric, kind = METRICS[one.metric], KINDS[one.decision]
    yield words(16, y + 4, one.title)
    if one.effect is None or one.low is None or one.high is None:
        yield words(WIDTH - RIGHT + 14, y + 4, "too few units yet", "soft")
        return
    low, high, effect = (value / one.margin for value in (one.low, one.high, one.effect))
    yield f'<g class="{kind}">'
    yield line(_x(low), y, _x(high), y, "range")
    for end, sign in ((low, -1), (high, 1)):
        if end * sign > MOST:
            tip = _x(end) + sign * 5
            yield f'<path d="M{tip:.1f} {y:.1f}l{-7 * sign} -5v10z" class="mark"/>'
    if abs(effect) <= MOST:
        yield dot(_x(effect), y, "mark", one.words)
    else:  # beyond what is drawn: a second tip before the first
        sign = 1 if effect > 0 else -1
        tip = _x(effect) - sign * 4
        yield f'<path d="M{tip:.1f} {y:.1f}l{-10 * sign} -7v14z" class="mark"/>'
    yield "</g>"
    label = tell_effect(metric, one.effect)
    yield words(WIDTH - RIGHT + 14, y + 4, label, "num strong")
    margin = tell_effect(metric, one.margin).removeprefix("+")
    yield words(WIDTH - 12, y + 4, f"margin {margin}", "soft num end")


def draw_series(series: Series, arm: str) -> str:
    """The primary metric's effect and interval as time went by.

    Args:
        arm: class of the challenger's colour.
    """
    metric = METRICS[series.metric]
    title = f"{metric.title}: {series.challenger} against the control, over time"
    left, right, top, bottom = 92.0, 24.0, 44.0, 268.0
    looks = [look for look in series.looks if look.low is not None and look.high is not None]
    if not looks:
        text = words(left, 100, "too few units yet", "soft")
        return finish(title, 130, [words(16, 24, title, "strong"), text])
    reach = _reach([(o.low or 0.0, o.high or 0.0) for o in looks], metric.usual_margin)
    start, end = series.looks[0].at.timestamp(), series.looks[-1].at.timestamp()

    def x(at: datetime) -> float:
        part = (at.timestamp() - start) / max(end - start, 1e-9)
        return left + part * (WIDTH - left - right)

    def y(value: float) -> float:
        clipped = min(reach, max(-reach, value))
        return (top + bottom) / 2 - clipped / reach * (bottom - top) / 2

    margin, wide = metric.usual_margin, WIDTH - left - right
    parts = [
        words(16, 24, title, "strong"),
        box(left, y(margin), wide, y(-margin) - y(margin), "band"),
    ]
    for value in (-reach, -reach / 2, 0.0, reach / 2, reach):
        parts.append(line(left, y(value), WIDTH - right, y(value), "zero" if not value else "grid"))
        parts.append(words(left - 8, y(value) + 4, tell_effect(metric, value), "soft num end"))
    parts.append(words(WIDTH - right, top - 6, "↑ worse", "soft end"))
    upper = [(x(look.at), y(look.high or 0.0)) for look in looks]
    lower = [(x(look.at), y(look.low or 0.0)) for look in looks]
    area = " ".join(f"{px:.1f},{py:.1f}" for px, py in [*upper, *reversed(lower)])
    curve = " ".join(f"{x(look.at):.1f},{y(look.effect or 0.0):.1f}" for look in looks)
    parts.append(f'<g class="{arm}"><polygon points="{area}" class="area"/>')
    parts.append(f'<polyline points="{curve}" class="curve"/>')
    last = looks[-1]
    hint = f"{tell_effect(metric, last.effect or 0.0)} at {last.at:%Y-%m-%d %H:%M} UTC"
    parts.append(f"{dot(x(last.at), y(last.effect or 0.0), 'mark', hint)}</g>")
    for at, kind in ((series.looks[0].at, "soft"), (series.looks[-1].at, "soft end")):
        parts.append(words(x(at), bottom + 22, f"{at:%d %b %H:%M} UTC", kind))
    note = f"{last.units:,} units of {series.challenger}; green: as good, within the margin"
    parts.append(words(left + wide / 2, bottom + 22, note, "soft middle"))
    return finish(title, bottom + 36, parts)


def _reach(intervals: Sequence[tuple[float, float]], margin: float) -> float:
    """How far up and down is drawn: beside the first intervals nothing else would show."""
    settled = intervals[len(intervals) // 3 :]
    widest = max(max(abs(low), abs(high)) for low, high in settled)
    reach = 1.15 * max(widest, margin)
    step = 10.0 ** math.floor(math.log10(reach))
    return float(math.ceil(reach / step * 2) / 2 * step)


def draw_split(revisions: Sequence[RevisionCount]) -> str:
    """Units by arm under each allocation; ticks are where the arms were meant to end."""
    shown = [one for one in revisions if any(arm.units for arm in one.arms)][-MAX_REVISIONS:]
    title, left, top, row = "Units by arm, and the split that was asked for", 150.0, 70.0, 34.0
    wide = WIDTH - left - 24
    parts = [words(16, 24, title, "strong")]
    names = [arm.arm for arm in shown[0].arms] if shown else []
    place = left
    for at, name in enumerate(names):
        parts.append(f'<g class="{ARMS[at % len(ARMS)]}">{box(place, 40, 12, 12, "mark", 3)}</g>')
        parts.append(words(place + 18, 51, name, "soft"))
        place += 40 + 7.5 * len(name)
    for at, one in enumerate(shown):
        parts.extend(_split_row(one, left, top + row * at, wide))
    if not shown:
        parts.append(words(left, top + 20, "nothing seen yet", "soft"))
    return finish(title, top + row * max(1, len(shown)) + 12, parts)


def _split_row(one: RevisionCount, left: float, y: float, wide: float) -> Iterator[str]:
    total = sum(arm.units for arm in one.arms)
    yield words(16, y + 17, f"revision {one.revision}")
    yield words(left - 12, y + 17, f"{total:,}", "soft num end")
    found, meant = 0.0, 0.0
    for at, arm in enumerate(one.arms):
        part = arm.units / total
        yield f'<g class="{ARMS[at % len(ARMS)]}">'
        yield f"{box(left + found * wide, y, part * wide, 24, 'mark')}</g>"
        found += part
        meant += arm.expected_units / total
        if at < len(one.arms) - 1 and 0 < meant < 1:
            place = left + meant * wide
            yield line(place, y - 4, place, y + 28, "tick")
