"""A page of what a batch made: products down, persons across, and why a cell has no picture."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from serve.schemas.batches import Manifest, ManifestEntry

Files = Mapping[int, tuple[str | None, ...]]
"""By cell: the name of each output's file beside the page; None where it is not kept."""
_STYLE = Path(__file__).with_suffix(".css")
GONE = "Its picture is not kept any longer."


def write_sheet(folder: Path, made: Manifest, files: Files) -> Path:
    """Write `index.html` beside the files.

    Returns:
        Its path.
    """
    title = f"{made.batch}: {made.counts.succeeded} of {len(made.cells)}"
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n<main>\n{_header(made)}{_grid(made, files)}</main>\n</body>\n</html>\n"
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _header(made: Manifest) -> str:
    facts = [("Version", made.version), ("Batch", made.status)]
    facts += [(name, str(number)) for name, number in made.counts.model_dump().items() if number]
    facts.append(("Ended", f"{made.finished_at:%Y-%m-%d %H:%M} UTC"))
    chips = "".join(
        f"<div><dt>{escape(name.capitalize())}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts
    )
    note = ""
    if any(entry.receipt is not None and entry.receipt.preview for entry in made.cells):
        note = "<p>Pictures marked <em>preview</em> are drafts to look at, not to publish.</p>\n"
    return f"<header>\n<h1>{escape(made.batch)}</h1>\n<dl>{chips}</dl>\n{note}</header>\n"


def _grid(made: Manifest, files: Files) -> str:
    if not made.cells:
        return "<p>It was cancelled before any cell began.</p>\n"
    persons = dict.fromkeys(entry.person for entry in made.cells)
    rows: dict[str, list[ManifestEntry]] = {}
    for entry in made.cells:
        rows.setdefault(entry.sku, []).append(entry)
    head = "".join(f'<th scope="col">{escape(person)}</th>' for person in persons)
    body = "".join(
        f'<tr><th scope="row">{escape(sku)}</th>'
        f"{''.join(_cell(entry, files.get(entry.cell, ())) for entry in entries)}</tr>\n"
        for sku, entries in rows.items()
    )
    # A region that scrolls must be reached by the keyboard too.
    return (
        '<div class="scroll" role="region" aria-label="Pictures" tabindex="0">\n<table>\n'
        "<caption>Products down, persons across</caption>\n"
        f'<thead><tr><th scope="col">Product</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _cell(entry: ManifestEntry, files: tuple[str | None, ...]) -> str:
    pictures = "".join(_picture(entry, name, index) for index, name in enumerate(files) if name)
    words: str = entry.status
    if entry.receipt is not None and entry.receipt.preview:
        words += ", preview"
    body = f'{pictures}<p class="status">{escape(words)}</p>'
    if entry.error is not None:
        body += f"<p>{escape(entry.error.title)}: {escape(entry.error.detail)}</p>"
        if entry.error.remedy:
            body += f'<p class="soft">What helps: {escape(entry.error.remedy)}</p>'
    if None in files:
        body += f"<p>{GONE}</p>"
    return f'<td class="{entry.status}">{body}</td>'


def _picture(entry: ManifestEntry, name: str, index: int) -> str:
    output = entry.outputs[index]
    number = f", {index + 1}" if index else ""
    alt = escape(f"{entry.sku} on {entry.person}{number}")
    link = escape(quote(name))
    return (
        f'<a href="{link}"><img src="{link}" width="{output.width}" height="{output.height}" '
        f'alt="{alt}" loading="lazy"></a>'
    )
