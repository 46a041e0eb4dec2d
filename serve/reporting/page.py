"""The report as one HTML file: nothing in it comes from elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from serve.experiments.analysis import tell_effect, tell_value
from serve.experiments.metrics import METRICS
from serve.reporting.canvas import ARMS
from serve.reporting.pairs import show_pairs
from serve.reporting.plots import draw_effects, draw_series, draw_split
from serve.reporting.thumbnails import Thumbnails
from serve.reporting.verdicts import (
    KINDS,
    WORDS,
    find_shadow,
    find_worse,
    tell_next,
    tell_title,
)
from serve.schemas.reports import (
    ArmResult,
    Decision,
    Headline,
    MetricResult,
    Report,
)

_STYLE = Path(__file__).with_suffix(".css")
MAX_SLICES = 40


@dataclass(frozen=True, slots=True)
class Plot:
    """One SVG of a report."""

    name: str
    svg: str


def draw_plots(report: Report) -> list[Plot]:
    """Everything of it that is drawn, by a name that a file may have."""
    plots = []
    challengers = [arm.name for arm in report.arms if arm.name != report.control]
    for at, arm in enumerate(challengers, start=1):
        for kind, results, words in (
            ("effects", report.metrics, "effects against margins"),
            ("shadows", report.shadows, "the same inputs and seed"),
        ):
            own = [one for one in results if one.challenger.arm == arm]
            if any(one.margin for one in own):
                title = f"{arm} against {report.control}: {words}"
                plots.append(Plot(f"{kind}-{arm}", draw_effects(own, title)))
        for series in report.series:
            if series.challenger == arm:
                plots.append(Plot(f"time-{arm}", draw_series(series, ARMS[at % len(ARMS)])))
    plots.append(Plot("split", draw_split(report.revisions)))
    return plots


def render_report(report: Report, thumbnails: Thumbnails) -> str:
    """The whole page.

    Args:
        thumbnails: of the pictures that its pairs name; those that are absent are said to be gone.
    """
    plots = draw_plots(report)
    body = _header(report) + _verdicts(report) + show_pairs(report, thumbnails)
    body += _metrics("Metrics", report, report.metrics, _named(plots, "effects-"))
    body += _figures(_named(plots, "time-"))
    body += f"<h2>Who got what</h2>\n<p>{escape(_sentence(report.split.words))}</p>\n"
    body += _figures(_named(plots, "split")) + _split_table(report)
    if report.shadows:
        body += _metrics(
            "Shadows: the same inputs and seed on both", report, report.shadows,
            _named(plots, "shadows-"),
        )  # fmt: skip
    body += _slices(report) + _footer(report)
    title = escape(f"{report.title or report.experiment}: report")
    style = _STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _named(plots: Iterable[Plot], start: str) -> list[Plot]:
    return [plot for plot in plots if plot.name.startswith(start)]


def _figures(plots: Sequence[Plot]) -> str:
    return "".join(f'<div class="figure">{plot.svg}</div>\n' for plot in plots)


def _badge(decision: Decision) -> str:
    return f'<span class="badge {KINDS.get(decision, "")}">{WORDS[decision]}</span>'


def _header(report: Report) -> str:
    facts = [
        ("State", report.state),
        ("Primary metric", METRICS[report.primary].title),
        ("Confidence", f"{100 * (1 - report.alpha):g} %"),
        ("Units", f"{report.units:,}"),
        ("Exposures", f"{report.exposures:,}"),
    ]
    if report.first_at is not None and report.last_at is not None:
        facts += [
            ("First seen", f"{report.first_at:%Y-%m-%d %H:%M} UTC"),
            ("Last seen", f"{report.last_at:%Y-%m-%d %H:%M} UTC"),
        ]
    facts.append(("Tenant", report.tenant or "all"))
    if report.revision is not None:
        facts.append(("Revision", str(report.revision)))
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    arms = ", ".join(f"{arm.name} <code>{escape(arm.version)}</code>" for arm in report.arms)
    return (
        f"<header>\n<h1>{escape(report.title or report.experiment)}</h1>\n"
        f'<p class="soft">{escape(report.experiment)} · {arms}</p>\n<dl>{chips}</dl>\n</header>\n'
    )


def _verdicts(report: Report) -> str:
    body = ""
    if report.split.is_mismatch:
        words = "Exposures are missing or doubled: nothing below can be relied on."
        body += f'<p class="note bad">{escape(_sentence(report.split.words))} {words}</p>\n'
    body += "".join(_verdict(report, one) for one in report.headlines)
    return body + "".join(f'<p class="note">{escape(note)}</p>\n' for note in report.notes)


def _verdict(report: Report, one: Headline) -> str:
    kind = "" if report.split.is_mismatch else KINDS.get(one.decision, "")
    lines = [f"<h2>{escape(tell_title(report, one))}</h2>", f"<p>{escape(one.words)}</p>"]
    shadow = find_shadow(report, one)
    if shadow is not None:
        told = escape(f"On the same requests (shadows): {shadow.words}.")
        lines.append(f"<p>{_badge(shadow.decision)} {told}</p>")
    worse = find_worse(report, one)
    if worse:
        lines.append(f'<p class="but">Worse in other things: {escape(", ".join(worse))}.</p>')
    following = tell_next(report, one)
    if following:
        lines.append(f'<p class="soft">Next: {escape(following)}</p>')
    return f'<section class="verdict {kind}">{"".join(lines)}</section>\n'


def _metrics(
    heading: str, report: Report, results: Sequence[MetricResult], plots: Sequence[Plot]
) -> str:
    body = f"<h2>{escape(heading)}</h2>\n"
    if not results:
        return f'{body}<p class="soft">Nothing has been measured yet.</p>\n'
    rows = []
    for one in results:
        primary = " ★" if one.metric == report.primary else ""
        rows.append(
            (
                _head(_challenger(report, one) + one.title + primary),
                f'<td title="{escape(one.words)}">{_badge(one.decision)}</td>',
                _side(one, one.control),
                _side(one, one.challenger),
                _number(_effect(one)),
                _number(_interval(one)),
                _number(_chance(one.p_value)),
            )
        )
    names = ("Metric", "Decision", "#Control", "#Challenger", "#Towards worse", "#Interval", "#p")
    return body + _figures(plots) + _table(names, rows, heading)


def _challenger(report: Report, one: MetricResult) -> str:
    """Where there are several."""
    return f"{one.challenger.arm}: " if len(report.arms) > 2 else ""


def _effect(one: MetricResult) -> str:
    return "–" if one.effect is None else tell_effect(METRICS[one.metric], one.effect)


def _chance(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= 1e-9 else "< 1e-9"


def _interval(one: MetricResult) -> str:
    metric = METRICS[one.metric]
    if one.low is None or one.high is None or metric.is_never:
        return "–"
    low, high = (tell_effect(metric, value).split(" ")[0] for value in (one.low, one.high))
    return f"{low} … {high}"


def _side(one: MetricResult, arm: ArmResult) -> str:
    mean = "–" if arm.mean is None else tell_value(METRICS[one.metric], arm.mean)
    return _number(mean, f"{arm.units:,} units, {arm.exposures:,} exposures")


def _split_table(report: Report) -> str:
    rows = []
    for one in report.revisions:
        for arm in one.arms:
            rows.append(
                (
                    _head(str(one.revision)),
                    _cell(f"{one.at:%Y-%m-%d %H:%M} UTC"),
                    _cell(arm.arm),
                    _number(f"{arm.share / 100:g} %"),
                    _number(f"{arm.expected_units:,.1f}"),
                    _number(f"{arm.units:,}"),
                    _number(f"{arm.exposures:,}"),
                )
            )
    names = ("Revision", "Since", "Arm", "#Share", "#Units meant", "#Units", "#Exposures")
    test = f"chi-square {report.split.chi2:.2f}, p = {report.split.p_value:.3g} at one look; "
    test += f"e = {report.split.e_value:.3g} at every look (a mismatch from 1000 on)"
    return f'<p class="soft">{test}</p>\n{_table(names, rows, "Who got what")}'


def _slices(report: Report) -> str:
    slices = [one for one in report.slices if one.result.low is not None]
    if not report.slices:
        return ""
    rows = []
    for one in slices[:MAX_SLICES]:
        result = one.result
        rows.append(
            (
                _head(f"{one.by} {one.value}"),
                _cell(_challenger(report, result) + result.title),
                f"<td>{_badge(one.decision)}</td>",
                _number(f"{result.control.units:,} / {result.challenger.units:,}"),
                _number(_effect(result)),
                _number(_interval(result)),
                _number(_chance(one.adjusted_p)),
            )
        )
    names = ("Slice", "Metric", "Decision", "#Units", "#Towards worse", "#Interval", "#p")
    more = f" The {MAX_SLICES} clearest of {len(slices)}." if len(slices) > MAX_SLICES else ""
    if len(slices) < len(report.slices):
        more += f" {len(report.slices) - len(slices)} have too few units yet."
    return (
        '<h2>Slices</h2>\n<p class="soft">p is corrected for all slices and metrics together; '
        f"the interval is each slice's own.{more}</p>\n"
        f"{_table(names, rows, 'Slices') if rows else ''}"
    )


def _footer(report: Report) -> str:
    confidence = f"{100 * (1 - report.alpha):g} %"
    return (
        "<footer><p>Above 0 is worse, whichever way a metric is better. Intervals and p-values "
        f"hold at every look at once, with a confidence of {confidence}: this page may be read "
        "every minute, and an experiment may be stopped because of what it says. Units are "
        "counted, not requests; a share is of units that had it at least once. Equal within "
        "margin: the whole interval lies within it. ★ is the metric that decides. ΔE00 (CIEDE2000) "
        "says how far apart two colours are: 1 can just be seen side by side.</p>"
        f"<p>Made {report.generated_at:%Y-%m-%d %H:%M:%S} UTC.</p></footer>\n"
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    heads = "".join(
        f'<th scope="col"{" class=number" if name[0] == "#" else ""}>'
        f"{escape(name.removeprefix('#'))}</th>"
        for name in names
    )
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    # A region that scrolls must be reached by the keyboard too.
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _head(text: str) -> str:
    return f'<th scope="row">{escape(text)}</th>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _number(text: str, hint: str = "") -> str:
    title = f' title="{escape(hint)}"' if hint else ""
    return f'<td class="number"{title}>{escape(text)}</td>'
