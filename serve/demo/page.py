"""The demo page: `index.html` and its pictures in one folder, readable without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from serve.demo.cases import DemoCase
from serve.demo.pictures import CasePictures, Picture, write_case_pictures

_HERE = Path(__file__).parent
MIN_SHOWN_MS = 0.5
"""A stage that is 0 for every expert says nothing."""


@dataclass(frozen=True, slots=True)
class DemoReceipt:
    """The part of a try-on's receipt that the page shows."""

    version: str
    backend: str
    is_preview: bool
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    outside_max_diff: int | None = None
    """Largest change of any pixel outside the region; None when it was not measured."""
    seed: int | None = None

    @property
    def total_ms(self) -> float:
        return sum(self.stages_ms.values())


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How one case went."""

    case: DemoCase
    ok: bool
    result_png: bytes | None = None
    """The finished picture; any format Pillow reads."""
    region_png: bytes | None = None
    """One channel, nonzero where the expert was allowed to paint."""
    receipt: DemoReceipt | None = None
    error_code: str = ""
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """Where and when the demo ran."""

    version: str
    python: str
    ray: str
    cpu_count: int
    date: str
    total_s: float


def render_page(results: Sequence[DemoResult], out_dir: Path, *, facts: DemoFacts) -> Path:
    """Write `index.html` and every picture it shows into one folder.

    Args:
        results: one per case, in the order they are shown.
        out_dir: created when it is missing; files of the same name are replaced.
        facts: of the run, for the header.

    Returns:
        The path of `index.html`.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    stems = [f"{number:02d}_{result.case.expert}" for number, result in enumerate(results, 1)]
    sections = [
        _section(result, stem, _pictures(result, out_dir, stem))
        for result, stem in zip(results, stems, strict=True)
    ]
    page = _document(
        title=f"sm4ll-serve {facts.version} demo",
        body=_header(results, facts) + _summary(results, stems) + "".join(sections),
    )
    index_path = out_dir / "index.html"
    index_path.write_text(page, encoding="utf-8")
    return index_path


def _pictures(result: DemoResult, out_dir: Path, stem: str) -> CasePictures:
    return write_case_pictures(
        result.case,
        out_dir,
        stem,
        region_png=result.region_png,
        result_png=result.result_png if result.ok else None,
    )


def _document(*, title: str, body: str) -> str:
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _header(results: Sequence[DemoResult], facts: DemoFacts) -> str:
    num_ok = sum(result.ok for result in results)
    num_exact = sum(result.ok and _is_exact(result.receipt) for result in results)
    rows = (
        ("Version", facts.version),
        ("Date", facts.date),
        ("Machine", f"{facts.cpu_count} CPUs, Python {facts.python}, Ray {facts.ray}"),
        ("Whole run", f"{facts.total_s:.1f} s"),
        ("Answered", f"{num_ok} of {len(results)} experts"),
        ("Identical outside the region", f"{num_exact} of {num_ok} pictures"),
    )
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows)
    return (
        "<header>\n<h1>sm4ll-serve demo</h1>\n"
        "<p>Every expert of the family tried once on this machine, through the same path as a "
        "request. An expert may paint inside its region only; every pixel outside stays as it "
        "was, and the answer proves it.</p>\n"
        f"{_preview_note(results)}<dl>{chips}</dl>\n</header>\n"
    )


def _preview_note(results: Sequence[DemoResult]) -> str:
    backends = {r.receipt.backend for r in results if r.receipt and r.receipt.is_preview}
    if not backends:
        return ""
    names = ", ".join(f"<code>{escape(name)}</code>" for name in sorted(backends))
    return (
        f"<p>{_preview_badge()} marks what {names} painted: it runs without model weights and shows"
        " where a product goes and how the system behaves. It is not a picture to publish.</p>\n"
    )


def _preview_badge() -> str:
    return '<span class="badge preview">preview</span>'


def list_stages(receipts: Sequence[DemoReceipt]) -> list[str]:
    """Those that took time: all sixteen fit neither page nor terminal."""
    names = dict.fromkeys(stage for receipt in receipts for stage in receipt.stages_ms)
    return [
        name
        for name in names
        if any(receipt.stages_ms.get(name, 0.0) >= MIN_SHOWN_MS for receipt in receipts)
    ]


def _summary(results: Sequence[DemoResult], stems: Sequence[str]) -> str:
    receipts = [result.receipt for result in results if result.receipt]
    stages = list_stages(receipts)
    heads = "".join(
        f'<th scope="col" class="number">{escape(name)}</th>' for name in (*stages, "total")
    )
    rows = "".join(
        _summary_row(result, stem, stages) for result, stem in zip(results, stems, strict=True)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Summary"><table>\n<thead><tr>'
        '<th scope="col">Expert</th><th scope="col">Outside, max change</th>'
        f'<th scope="col">Version</th><th scope="col">Backend</th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
        "<p><small>Times in milliseconds.</small></p>\n"
    )


def _summary_row(result: DemoResult, stem: str, stages: Sequence[str]) -> str:
    receipt = result.receipt
    link = f'<a href="#{escape(stem)}">{escape(result.case.expert)}</a>'
    start = f'<tr><th scope="row">{link}</th>'
    if receipt is None or not result.ok:
        return (
            f'{start}<td colspan="{len(stages) + 4}">{_mark(False, "failed: ")}'
            f"<code>{escape(result.error_code)}</code></td></tr>\n"
        )
    times = [*(receipt.stages_ms.get(stage) for stage in stages), receipt.total_ms]
    cells = "".join(
        f'<td class="number">{"–" if time_ms is None else f"{time_ms:.0f}"}</td>'
        for time_ms in times
    )
    badge = f" {_preview_badge()}" if receipt.is_preview else ""
    return (
        f"{start}<td>{_outside(receipt)}</td><td>{escape(receipt.version)}</td>"
        f"<td>{escape(receipt.backend)}{badge}</td>{cells}</tr>\n"
    )


def _is_exact(receipt: DemoReceipt | None) -> bool:
    return receipt is not None and receipt.outside_max_diff == 0


def _outside(receipt: DemoReceipt) -> str:
    if receipt.outside_max_diff is None:
        return "not measured"
    return _mark(_is_exact(receipt), str(receipt.outside_max_diff))


def _mark(is_good: bool, text: str) -> str:
    kind, sign = ("good", "✓") if is_good else ("bad", "✗")
    return f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {escape(text)}</span>'


def _section(result: DemoResult, stem: str, pictures: CasePictures) -> str:
    case = result.case
    figures = _figure(pictures.person, "Person", f"Person before the {case.expert} try-on")
    figures += _figure(pictures.product, "Product", f"Product: {case.title}", kind="paper")
    if pictures.region:
        figures += _figure(pictures.region, "Region", f"Where {case.expert} may paint, tinted")
    figures += _outcome(result, pictures)
    return (
        f'<section id="{escape(stem)}" aria-labelledby="{escape(stem)}_title">\n<h2 '
        f'id="{escape(stem)}_title"><span class="expert">{escape(case.expert)}</span> '
        f"{escape(case.title)}</h2>\n{_caption(result)}"
        f'<div class="row">\n{figures}</div>\n</section>\n'
    )


def _caption(result: DemoResult) -> str:
    receipt = result.receipt
    if receipt is None or not result.ok:
        return ""
    parts = [f"{escape(receipt.version)} on {escape(receipt.backend)}"]
    if receipt.seed is not None:
        parts.append(f"seed {receipt.seed}")
    parts.append(f"{receipt.total_ms:.0f} ms")
    parts.append(f"largest change outside the region {_outside(receipt)}")
    return f'<p class="facts">{" · ".join(parts)}</p>\n'


def _figure(picture: Picture, caption: str, alt: str, *, kind: str = "") -> str:
    return (
        f'<figure><div class="frame {kind}"><img {_source(picture)} alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)} {_link(picture)}</figcaption></figure>\n"
    )


def _outcome(result: DemoResult, pictures: CasePictures) -> str:
    if not result.ok or pictures.result is None:
        return _failure(result)
    badge = _preview_badge() if result.receipt and result.receipt.is_preview else ""
    size = f"--ratio: {pictures.result.width_px / pictures.result.height_px:.4f}"
    alt = escape(f"Result of the {result.case.expert} try-on: {result.case.title}")
    return (
        '<figure class="outcome"><div class="frame">'
        f'<div class="compare" style="{size}"><img {_source(pictures.result)} alt="{alt}">'
        f'<img class="before" {_source(pictures.person)} alt="" hidden>{badge}'
        '<input type="range" min="0" max="100" step="1" value="0" hidden '
        'aria-label="Uncover the person before the try-on, in percent from the left"></div></div>'
        f"<figcaption>Result {_link(pictures.result)}"
        '<span class="hint" hidden>drag to compare</span></figcaption></figure>\n'
    )


def _failure(result: DemoResult) -> str:
    remedy = f"<p><strong>Remedy:</strong> {escape(result.remedy)}</p>" if result.remedy else ""
    return (
        '<figure class="outcome"><div class="frame failure" role="note">'
        f"<p>{_mark(False, 'No picture: ')}<code>{escape(result.error_code)}</code></p>"
        f"<p>{escape(result.detail)}</p>{remedy}</div>"
        "<figcaption>Result</figcaption></figure>\n"
    )


def _source(picture: Picture) -> str:
    name = escape(picture.name)
    return f'src="{name}" width="{picture.width_px}" height="{picture.height_px}"'


def _link(picture: Picture) -> str:
    size = f"{picture.width_px}×{picture.height_px}"
    return f'<a href="{escape(picture.name)}">{size}</a>'
