"""The page beside prepared training inputs: what the expert will learn from, to look through."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from serve.pairs import Skipped
from serve.prepare import Manifest, SampleMeta

MAX_SHOWN = 300
_STYLE = Path(__file__).with_suffix(".css")


def write_page(out_dir: Path, manifest: Manifest, metas: Sequence[SampleMeta]) -> Path:
    """Write `index.html` over the folders that `prepare_pairs` wrote.

    Returns:
        Its path.
    """
    shown = metas[:MAX_SHOWN]
    body = _header(manifest) + _skipped(manifest.skipped)
    if shown:
        body += f"<h2>Training inputs</h2>\n{_legend(len(metas))}"
    body += "".join(_section(meta, index) for index, meta in enumerate(shown))
    title = f"{manifest.version}: {len(metas)} training inputs"
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
    path = out_dir / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _header(manifest: Manifest) -> str:
    title = str(manifest.bundle.get("title", ""))
    rows = [
        ("Usable", str(len(manifest.samples))),
        ("Skipped", str(len(manifest.skipped))),
        ("Bundle", manifest.bundle_sha256[:12]),
        ("Made by", manifest.made_by),
    ]
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows)
    return (
        f"<header>\n<h1>{escape(manifest.version)} · {escape(title)}</h1>\n"
        "<p>What this expert is given, cut by the code that serves its requests. Train on these "
        "pictures and it meets the same ones in production. When the bundle changes, prepare "
        f"again: its fingerprint below changes too.</p>\n<dl>{chips}</dl>\n</header>\n"
    )


def _skipped(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(skip.name)}</th><td class="reason">{escape(skip.reason)}'
        f"</td><td>{escape(skip.remedy)}</td></tr>\n"
        for skip in skipped
    )
    return (
        '<h2>Skipped</h2>\n<div class="scroll"><table><thead><tr><th scope="col">Pair</th>'
        '<th scope="col">Why</th><th scope="col">What helps</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _legend(num_samples: int) -> str:
    more = f" The first {MAX_SHOWN} of {num_samples}." if num_samples > MAX_SHOWN else ""
    return (
        '<p class="facts">Pink: where the expert may paint. Dots: landmarks it is told. '
        f"Click a size to see the file itself.{more}</p>\n"
    )


def _section(meta: SampleMeta, index: int) -> str:
    files = [("Mask", "mask.png", meta.crop_size), ("Product", "product.png", meta.product_size)]
    if meta.has_silhouette:
        files.append(("Silhouette", "silhouette.png", meta.crop_size))
    if meta.has_target:
        files.append(("Target", "target_crop.png", meta.crop_size))
    figures = _figure(meta, _stack(meta, index), "Crop with region", "crop.png", meta.crop_size)
    for caption, file, size in files:
        figures += _figure(meta, _image(meta, file, size), caption, file, size)
    return (
        f'<section id="{escape(meta.name)}">\n<h3>{escape(meta.name)}</h3>\n{_facts(meta)}'
        f'<div class="row">\n{figures}</div>\n</section>\n'
    )


def _facts(meta: SampleMeta) -> str:
    x0, y0, x1, y1 = meta.crop_box
    zoom = 1 / meta.affine.scale_x
    change = "enlarged" if zoom > 1 else "reduced"
    parts = [
        f"photo {meta.person.width}×{meta.person.height}",
        f"box {x1 - x0}×{y1 - y0} at {x0}, {y0}",
        f"{change} ×{zoom:.2f}",
        f"masker {meta.masker}",
        f"seed {meta.seed}",
    ]
    words = f'<p class="facts">Prompt: {escape(meta.prompt)}</p>\n' if meta.prompt else ""
    return f'<p class="facts">{escape(" · ".join(parts))}</p>\n{words}'


def _figure(meta: SampleMeta, picture: str, caption: str, file: str, size: tuple[int, int]) -> str:
    kind = " checks" if file == "product.png" else ""
    return (
        f'<figure><div class="frame{kind}">{picture}</div><figcaption>{escape(caption)} '
        f'<a href="{_link(meta, file)}">{size[0]}×{size[1]}</a></figcaption></figure>\n'
    )


def _image(meta: SampleMeta, file: str, size: tuple[int, int]) -> str:
    alt = escape(f"{file} of {meta.name}")
    return (
        f'<img src="{_link(meta, file)}" width="{size[0]}" height="{size[1]}" alt="{alt}" '
        'loading="lazy">'
    )


def _link(meta: SampleMeta, file: str) -> str:
    return escape(quote(f"{meta.name}/{file}"))


def _stack(meta: SampleMeta, index: int) -> str:
    width, height = meta.crop_size
    radius = max(width, height) / 130
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(name)}</title></circle>'
        for name, (x, y) in meta.landmarks.points.items()
    )
    tint = f"tint-{index}"
    return (
        f'<div class="stack" style="--ratio: {width / height:.4f}">'
        f"{_image(meta, 'crop.png', meta.crop_size)}"
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"><mask id="{tint}">'
        f'<image href="{_link(meta, "mask.png")}" width="{width}" height="{height}"/></mask>'
        f'<rect width="{width}" height="{height}" mask="url(#{tint})"/>{dots}</svg></div>'
    )
