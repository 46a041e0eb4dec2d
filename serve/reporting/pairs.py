"""The pairs of a report: product, before, and what each version made of it, side by side."""

from html import escape

from serve.experiments.analysis import tell_value
from serve.experiments.metrics import METRICS
from serve.reporting.thumbnails import Thumbnails
from serve.schemas.reports import DifferentPair, Report

NUM_OPEN = 4
"""The others are behind a line that opens: what differs most is seen first."""


def show_pairs(report: Report, thumbnails: Thumbnails) -> str:
    """A part of the page; empty where no pair differs."""
    if not report.pairs:
        return _tell_equal(report)
    drawn = [_show_pair(report, pair, thumbnails) for pair in report.pairs]
    more = "".join(drawn[NUM_OPEN:])
    if more:
        more = f"<details><summary>{len(drawn) - NUM_OPEN} more</summary>\n{more}</details>\n"
    return (
        '<h2>Most different pairs</h2>\n<p class="soft">The same inputs and seed on both; the '
        "pictures are the part that the experts were given.</p>\n"
        f"{''.join(drawn[:NUM_OPEN])}{more}"
    )


def _tell_equal(report: Report) -> str:
    if not report.shadows:
        return ""
    words = "No pair of your own tenant differs in what is measured of pictures."
    return f'<h2>Most different pairs</h2>\n<p class="soft">{words}</p>\n'


def _show_pair(report: Report, pair: DifferentPair, thumbnails: Thumbnails) -> str:
    metric = METRICS[pair.metric]
    versions = {arm.name: arm.version for arm in report.arms}
    is_higher = pair.challenger_value > pair.control_value
    is_worse = is_higher == (metric.better == "lower")
    kept = pair.pictures
    figures = ""
    if kept is not None:
        figures = _figure("Product", "", kept.product, thumbnails)
        figures += _figure("Before", "", kept.before, thumbnails)
        for arm, value, asset, mark in (
            (report.control, pair.control_value, kept.control, ""),
            (pair.challenger, pair.challenger_value, kept.challenger, _mark(is_worse)),
        ):
            words = f"{metric.title}: {tell_value(metric, value)}"
            figures += _figure(f"{arm} · {versions[arm]}", words, asset, thumbnails, mark)
    row = f'<div class="row">{figures}</div>' if figures else ""
    words = f"{metric.title}: {tell_value(metric, pair.control_value)} against "
    words += f"{tell_value(metric, pair.challenger_value)}, {pair.margins:.1f} margins apart"
    where = f"{pair.exposure} · {pair.at:%Y-%m-%d %H:%M} UTC"
    return (
        f'<section class="pair"><h3>{escape(words)}</h3>'
        f'<p class="soft"><code>{escape(where)}</code></p>{row}</section>\n'
    )


def _mark(is_worse: bool) -> str:
    kind = "bad" if is_worse else "good"
    return f' <span class="badge {kind}">{"worse" if is_worse else "better"}</span>'


def _figure(
    caption: str, words: str, asset: str | None, thumbnails: Thumbnails, mark: str = ""
) -> str:
    source = thumbnails.get(asset) if asset else None
    shown = '<span class="gone">not kept any longer</span>'
    if source:
        shown = f'<img src="{escape(source)}" alt="{escape(caption)}">'
    told = f'<br><span class="soft">{escape(words)}</span>' if words else ""
    return (
        f'<figure><div class="frame">{shown}</div>'
        f"<figcaption>{escape(caption)}{mark}{told}</figcaption></figure>"
    )
