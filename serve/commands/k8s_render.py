"""The generated manifests of an overlay: written, or compared with what lies there."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from k8s.render import RENDERED, Rendered, render_overlay
from k8s.rendering.family_map import FamilyFiles
from k8s.rendering.shape import Overlay
from k8s.rendering.totals import list_totals
from serve.commands.console import Family, err, out
from serve.settings import CONFIGS_DIR, Settings

INSTALLED = Path(__file__).resolve().parents[2] / "k8s"
BY_HAND = ("base", "components", "observability", "overlays")
"""What `kubectl kustomize` of an overlay reads beside what is rendered."""


def render(
    overlay: Annotated[
        Overlay, typer.Option(help="Whose files: local (kind on a laptop) or production.")
    ],
    family: Family = None,
    placement: Annotated[
        Path | None,
        typer.Option(help="Your GPUs, as for `sm4ll plan`; those the shape names when absent."),
    ] = None,
    shape: Annotated[
        Path | None,
        typer.Option(
            help="Sizes of pods, image, upgrades; the shipped configs/kubernetes.yaml when absent."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            file_okay=False,
            help="Folder to write into, in place of this installation's k8s/. What is written by "
            "hand (base/, overlays/) is copied there where it is missing.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 naming the files that differ.")
    ] = False,
) -> None:
    """Write the RayService of the family, and what follows from it, for one overlay.

    The family says which deployments there are and how far they scale, the packing plan on which
    GPUs, the shape what a pod is. Into OVERLAY/rendered/ go the RayService, the family itself as a
    ConfigMap, budgets for disruptions, alerts and dashboards. They are never edited: change
    configs/ and render again, patch in the overlay's kustomization. Nothing is applied.

    Taken in place afterwards: experts and versions, bounds, everything in the family file. Another
    image, variable or pod size makes a new cluster beside the old one; `sm4ll k8s diff` says which.

    For example: sm4ll k8s render --overlay production --placement gpus.yaml -o deploy

    Then look at it: kubectl kustomize deploy/overlays/production
    """
    settings = Settings()
    files = FamilyFiles(
        (family or settings.family).resolve(), settings.tenants, settings.experiments
    )
    rendered = render_overlay(overlay, shape or CONFIGS_DIR / "kubernetes.yaml", files, placement)
    root = output or INSTALLED
    folder = root / "overlays" / overlay / RENDERED
    if check:
        _check(folder, rendered)
        return
    if output is not None:
        _copy_by_hand(output)
    _write(folder, rendered)
    out.print(_table(rendered))
    out.print(f"{folder}: {', '.join(sorted(rendered.files))}", markup=False, highlight=False)


def _check(folder: Path, rendered: Rendered) -> None:
    drifted = [
        str(folder / name)
        for name in sorted({*rendered.files, *_found(folder)})
        if rendered.files.get(name) != _read(folder / name)
    ]
    if not drifted:
        out.print(f"{folder} is as rendered", markup=False, highlight=False)
        return
    for name in drifted:
        out.print(name, markup=False, highlight=False)
    err.print("What helps: `sm4ll k8s render` again, without --check.", markup=False)
    raise typer.Exit(1)


def _found(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.yaml")]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(folder: Path, rendered: Rendered) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in {*_found(folder)} - rendered.files.keys():
        (folder / name).unlink()
    for name, text in rendered.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _copy_by_hand(root: Path) -> None:
    """What somebody changed there stays."""
    for part in BY_HAND:
        for path in sorted((INSTALLED / part).rglob("*")):
            target = root / path.relative_to(INSTALLED)
            if path.is_file() and RENDERED not in path.parts and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _table(rendered: Rendered) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    lines, total = list_totals(rendered.cluster, rendered.shape)
    most = f"{total.max_pods}"
    table.add_column("pool", "all at most", no_wrap=True)
    table.add_column("pods", most, justify="right", no_wrap=True)
    table.add_column("CPUs each", f"{total.cpus:g}", justify="right", no_wrap=True)
    table.add_column("GiB each", f"{total.memory_gib:g}", justify="right", no_wrap=True)
    table.add_column("GPU each", total.gpus or "none")
    for line in lines:
        pods = f"{line.min_pods}"
        if line.max_pods != line.min_pods:
            pods += f"-{line.max_pods}"
        gpu = line.gpu or ""
        table.add_row(line.name, pods, f"{line.cpus:g}", f"{line.memory_gib:g}", gpu)
    return table
