"""Dashboards as one static HTML file: nothing in it comes from elsewhere, or changes."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from k8s.dashboards.model import Dashboard, Panel
from serve.commands.panel_drawing import draw_panel
from serve.commands.panels import Line, Span

_STYLE = Path(__file__).with_suffix(".css")
Shown = Mapping[tuple[str, str, str], Sequence[Line]]
"""Lines by dashboard, row and panel."""


def render_page(dashboards: Sequence[Dashboard], shown: Shown, span: Span, source: str) -> str:
    """
    Args:
        source: where the data is from, for whoever reads the page.
    """
    style = _STYLE.read_text(encoding="utf-8")
    links = "".join(f'<a href="#{one.name}">{escape(one.title)}</a>' for one in dashboards)
    end = datetime.fromtimestamp(span.end_s, UTC)
    long_s = span.end_s - span.start_s
    told = f"{long_s:.0f} seconds" if long_s < 120 else f"{long_s / 60:.3g} minutes"
    head = f"{told} until {end:%Y-%m-%d %H:%M:%S} UTC, from {source}"
    body = "".join(part for one in dashboards for part in _dashboard(one, shown, span))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>sm4ll dashboards</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<nav>{links}<span>{escape(head)}</span></nav>\n{body}</main>\n</body>\n</html>\n"
    )


def _dashboard(dashboard: Dashboard, shown: Shown, span: Span) -> Iterator[str]:
    yield f'<h1 id="{dashboard.name}">{escape(dashboard.title)}</h1>\n'
    yield f"<p>{escape(dashboard.description)}</p>\n"
    for row in dashboard.rows:
        yield f'<h2>{escape(row.title)}</h2>\n<div class="grid">\n'
        for panel in row.panels:
            yield _panel(panel, shown[dashboard.name, row.title, panel.title], span)
        yield "</div>\n"


def _panel(panel: Panel, lines: Sequence[Line], span: Span) -> str:
    drawn = draw_panel(panel, lines, span)
    return f'<div class="panel {panel.kind}" style="grid-column:span {panel.width}">{drawn}</div>\n'
