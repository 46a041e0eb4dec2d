"""What a version needs, measured on this machine and written beside its bundle."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deployments.backends.base import Backend
from deployments.backends.registry import create_backend
from deployments.bundle import Bundle, Size, bundle_path, load_bundle
from deployments.measured import Footprint, Shape, save_footprint
from deployments.packing.demand import largest_size
from deployments.recipes import Diffusion
from serve.commands.console import Family, err, out
from serve.config import FamilyConfig, ReplicaPlan, VersionId, load_yaml
from serve.errors import ConfigError
from serve.settings import Settings

MAX_BATCH = 16


def profile(
    versions: Annotated[list[str], typer.Argument(help="Which ones, for example eye@2 top@2.")],
    family: Family = None,
    sizes: Annotated[
        str | None, typer.Option(help="Like 768x1024,512x512; the bundle's crop sizes when absent.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Like 1,2,4,8; up to max_batch_size when absent.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Like 4,16; the draft and normal tiers when absent.")
    ] = None,
    quality: Annotated[
        bool,
        typer.Option(help="Compare each lossy speed switch with the plain run: a load for each."),
    ] = True,
) -> None:
    """Measure memory and time of versions on this machine's GPU, or its CPU where it has none.

    Loads a version and paints pictures of noise: GiB of the weights, peak GiB per size and batch,
    seconds per picture per size, batch and steps. Batches are raised until one has no room. What
    was measured goes into footprint.yaml in the bundle's folder, beside what was measured on other
    devices; `sm4ll plan` packs by it, replicas batch by it and cap their memory by it. Measure
    with nothing else on the device.

    For example: sm4ll profile eye@2 --batches 1,2,4,8 --steps 4,16
    """
    wanted_sizes = _parse_sizes(sizes)
    wanted_batches = _parse_counts("--batches", batches)
    wanted_steps = _parse_counts("--steps", steps)
    if max(wanted_batches, default=1) > MAX_BATCH:
        raise typer.BadParameter(f"--batches: at most {MAX_BATCH}")
    # All are read before the first is measured: a typo in the last shall not cost an hour.
    loaded = [_load(family, version) for version in versions]
    for config, bundle in loaded:
        asked = _Asked(
            sizes=wanted_sizes or _default_sizes(bundle),
            batches=wanted_batches or _default_batches(bundle),
            steps=wanted_steps or (bundle.tiers.draft, bundle.tiers.normal),
        )
        if len(loaded) == 1:
            _profile_one(config, bundle, asked, quality)
            return
        # Each in a process of its own: what one leaves in memory is not the next one's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(_profile_one, config, bundle, asked, quality).result()


def _profile_one(config: FamilyConfig, bundle: Bundle, asked: "_Asked", quality: bool) -> None:
    if not isinstance(bundle.backend, Diffusion):
        out.print(
            f"{bundle.version} runs on {bundle.backend.kind}: it has no weights, needs no GPU, and "
            "`sm4ll plan` places it without a footprint. There is nothing to measure."
        )
        return
    footprint = _measure(config, bundle, asked, quality)
    _say(bundle, footprint, asked)
    path = save_footprint(bundle, footprint)
    out.print(f"{path}", markup=False, highlight=False)


@dataclass(frozen=True, slots=True)
class _Asked:
    sizes: tuple[Size, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]


def _load(family: Path | None, version: VersionId) -> tuple[FamilyConfig, Bundle]:
    """A version may be measured before it is deployed, and whatever its licence."""
    path = (family or Settings().family).resolve()
    config = load_yaml(path, FamilyConfig)
    bundles_dir = path.parent / config.bundles_dir
    file = bundle_path(bundles_dir, version)
    if not file.is_file():
        known = sorted(p.stem.replace(".", "@", 1) for p in bundles_dir.glob("*.yaml"))
        raise ConfigError(f"{version}: no such file as {file}; there are {', '.join(known)}")
    return config, load_bundle(file)


def _default_sizes(bundle: Bundle) -> tuple[Size, ...]:
    return bundle.crop.sizes or (largest_size(bundle),)


def _default_batches(bundle: Bundle) -> tuple[int, ...]:
    most = bundle.backend.max_batch_size if isinstance(bundle.backend, Diffusion) else 1
    return tuple(sorted({*(b for b in (1, 2, 4, 8, 16) if b < most), most}))


def _parse_counts(option: str, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{option}: numbers from 1 with commas between, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _parse_sizes(text: str | None) -> tuple[Size, ...]:
    sizes: list[Size] = []
    for part in (text or "").split(",") if text is not None else ():
        width, _, height = part.strip().partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            raise typer.BadParameter(f"--sizes: WIDTHxHEIGHT with commas between, not {text!r}")
        sizes.append((int(width), int(height)))
    return tuple(dict.fromkeys(sizes))


def _measure(config: FamilyConfig, bundle: Bundle, asked: _Asked, quality: bool) -> Footprint:
    from deployments.footprint import Shapes, measure, open_device
    from deployments.switches import measure_switches

    with err.status("Looking for a GPU ..."):
        device = open_device()
    plan = ReplicaPlan(
        name=f"Expert-{bundle.version}",
        weights=config.weights,
        num_gpus=0.0 if device.name == "cpu" else 1.0,
    )
    roomy = _with_batch(bundle, max(asked.batches))

    def create(variant: Bundle = roomy) -> Backend:
        return create_backend((variant,), plan)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        total = len(asked.sizes) * len(asked.batches)
        task = progress.add_task(f"Loading {bundle.version} on {device.name}", total=total)

        def on_point(shape: Shape, num_left: int) -> None:
            label = f"{bundle.version}  {shape.batch} x {shape.width_px}x{shape.height_px}"
            progress.update(task, description=label, completed=total - num_left)

        shapes = Shapes(asked.sizes, asked.batches, asked.steps)
        footprint = measure(create, roomy, shapes, device, on_point)
        if not quality:
            return footprint
        deltas = measure_switches(
            create,
            bundle,
            largest_size(bundle),
            bundle.tiers.normal,
            lambda name: progress.update(task, description=f"{bundle.version}  pictures, {name}"),
        )
    return footprint.model_copy(update={"quality": deltas}) if deltas else footprint


def _with_batch(bundle: Bundle, max_batch_size: int) -> Bundle:
    """What is measured may be larger than what the bundle allows so far."""
    backend = bundle.backend.model_copy(update={"max_batch_size": max_batch_size})
    return bundle.model_copy(update={"backend": backend})


def _say(bundle: Bundle, footprint: Footprint, asked: _Asked) -> None:
    driver = f", driver {footprint.driver}" if footprint.driver else ""
    out.print(
        f"{bundle.version} on {footprint.device} ({footprint.device_gib:.1f} GiB{driver}), "
        f"torch {footprint.torch}, {footprint.date}",
        highlight=False,
    )
    parts = {
        "weights": footprint.weights_gib,
        "adapter": footprint.adapter_gib,
        "process": footprint.context_gib,
    }
    held = ", ".join(f"{name} {_size(gib)}" for name, gib in parts.items() if gib)
    peak = f", at most {_size(footprint.load_peak_gib)} while loading"
    out.print(f"{held}; loaded in {footprint.load_s:.1f} s{peak}", highlight=False)
    out.print(_table(footprint, asked))
    for shape in footprint.out_of_memory:
        size = f"{shape.width_px}x{shape.height_px}"
        out.print(f"{shape.batch} x {size} has no room here", highlight=False)
    for delta in footprint.quality:
        same = delta.psnr_db >= 99
        words = "same pictures" if same else f"{delta.psnr_db:.1f} dB, SSIM {delta.ssim:.4f}"
        out.print(f"{delta.switch}: {words} against the plain run", highlight=False)
    _say_batch(bundle, footprint, asked)


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.2f} MiB"


def _table(footprint: Footprint, asked: _Asked) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("size", no_wrap=True)
    for heading in ("batch", "peak GiB", *(f"s/picture at {n}" for n in sorted(asked.steps))):
        table.add_column(heading, justify="right", no_wrap=True)
    seconds = {(t.width_px, t.height_px, t.batch, t.num_steps): t for t in footprint.times}
    for peak in footprint.peaks:
        key = (peak.width_px, peak.height_px, peak.batch)
        times = [seconds[*key, num_steps].s_per_image for num_steps in sorted(asked.steps)]
        size = f"{peak.width_px}x{peak.height_px}"
        gib = f"{peak.peak_gib:.3f}"
        table.add_row(size, str(peak.batch), gib, *(f"{s:.4g}" for s in times))
    return table


def _say_batch(bundle: Bundle, footprint: Footprint, asked: _Asked) -> None:
    """Whether batches pay, and whether the bundle lets them."""
    assert isinstance(bundle.backend, Diffusion)
    size, most = largest_size(bundle), bundle.backend.max_batch_size
    num_steps = bundle.tiers.normal
    best = footprint.best_batch(*size, num_steps, MAX_BATCH)
    if size not in asked.sizes or len(asked.batches) == 1:
        return
    label = f"{size[0]}x{size[1]}"
    if best == 1:
        out.print(f"Batches do not pay at {label}: requests run one by one", highlight=False)
    elif best > most:
        out.print(
            f"Batches of {best} pay at {label}, and the bundle allows {most}: raise "
            "backend.max_batch_size",
            highlight=False,
        )
    else:
        out.print(f"Batches up to {min(best, most)} pay at {label}", highlight=False)
