"""The ground that plots are drawn on: one SVG that follows the reader's light or dark."""

from collections.abc import Sequence
from html import escape

WIDTH = 1000
MARK = 5.0

STYLE = """
.plot { --ink: #1c1d1f; --soft: #5d6066; --line: #deded9; --band: #e3ece4; --ground: #ffffff;
  --better: #137a3d; --worse: #b3261e; --open: #5d6066; --a: #2f5fb3; --b: #c1662c; --c: #6b4fa3;
  --d: #2b8a86; font: 13px system-ui, sans-serif; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .plot { --ink: #ececea; --soft: #a3a6ad; --line: #3a3c43;
  --band: #24332a; --ground: #1c1e22; --better: #6fd08c; --worse: #ff8a80; --open: #a3a6ad;
  --a: #7ea6f0; --b: #f0a470; --c: #b79df0; --d: #6fcfca; } }
.plot text { fill: var(--ink); } .plot .soft { fill: var(--soft); }
.plot .strong { font-weight: 600; } .plot .end { text-anchor: end; }
.plot .middle { text-anchor: middle; } .plot .num { font-variant-numeric: tabular-nums; }
.plot .grid { stroke: var(--line); } .plot .zero { stroke: var(--soft); }
.plot .band { fill: var(--band); } .plot .ground { fill: var(--ground); }
.plot .better { --mark: var(--better); } .plot .worse { --mark: var(--worse); }
.plot .open { --mark: var(--open); } .plot .a { --mark: var(--a); } .plot .b { --mark: var(--b); }
.plot .c { --mark: var(--c); } .plot .d { --mark: var(--d); }
.plot .mark { fill: var(--mark); } .plot .range { stroke: var(--mark); stroke-width: 2.5; }
.plot .curve { stroke: var(--mark); stroke-width: 2; fill: none; }
.plot .area { fill: var(--mark); opacity: .18; }
.plot .tick { stroke: var(--ink); stroke-width: 2; }
"""
ARMS = ("a", "b", "c", "d")
"""Classes of arms' colours, in their order; from the fifth on they come again."""


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """One line; y is its baseline."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="{radius:g}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{MARK:g}" class="{kind}">{title}</circle>'


def finish(title: str, height: float, parts: Sequence[str], width: float = WIDTH) -> str:
    """The file; it may also stand in a page."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" class="plot" {size}>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<rect width="100%" height="100%" class="ground"/>{"".join(parts)}</svg>\n'
    )
