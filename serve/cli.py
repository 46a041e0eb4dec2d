"""`sm4ll`: start the family, try products on, look at what runs."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from serve import __version__
from serve.client import ApiError, ApiUnreachable, Client
from serve.demo.cases import demo_cases
from serve.errors import ConfigError
from serve.messages import EXPERTS
from serve.schemas import TryOnOptions
from serve.settings import Settings, export_ray_flags, free_port

app = typer.Typer(
    name="sm4ll",
    help="Virtual try-on by specialised experts, on one Ray cluster.\n\n"
    "Start with `sm4ll demo` (pictures of all seven experts), or `sm4ll up` and `sm4ll tryon`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measure; every figure is a ratio within one run.", no_args_is_help=True)
app.add_typer(bench, name="bench")

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
DETACH_TIMEOUT_S = 180.0
EXTENSIONS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff"}
EXTENSIONS[".tiff"] = "tiff"

Family = Annotated[
    Path | None, typer.Option(help="Family file; the shipped configs/family.yaml when absent.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")]
Url = Annotated[str | None, typer.Option(help="Address of the API; or SM4LL_URL.")]


def main() -> None:
    """Entry point: failures with a known cause are said in words and exit 1."""
    try:
        app()
    except ApiError as exc:
        problem = exc.problem
        err.print(f"[red]{problem.title}[/] ({problem.code}, {problem.status})")
        err.print(problem.detail, markup=False)
        if problem.remedy:
            err.print(f"What helps: {problem.remedy}", markup=False)
        sys.exit(1)
    except ApiUnreachable as exc:
        err.print(f"Nothing answers at {exc}", markup=False)
        err.print("What helps: start it with `sm4ll up`, or say where it is with --url.")
        sys.exit(1)
    except (ConfigError, OSError) as exc:
        err.print(str(exc), markup=False)
        sys.exit(1)


@app.command()
def up(
    port: Port = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    family: Family = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready.")] = False,
) -> None:
    """Start a local cluster with the whole family; Ctrl-C stops it."""
    if detach:
        _detach(port, host, family)
        return
    stopped = threading.Event()
    _stop_on_signals(stopped)
    export_ray_flags()
    from serve.local import LocalCluster, LocalOptions, StartFailed

    cluster = LocalCluster(LocalOptions(family=family, host=host, port=port))
    try:
        with _StartProgress() as progress:
            cluster.start(progress.show, stopped)
        if not stopped.is_set():
            _say_ready(cluster.url)
        stopped.wait()
    except StartFailed as exc:
        err.print(f"[red]The family did not start.[/]\n{exc}")
        raise typer.Exit(1) from exc
    finally:
        # A second Ctrl-C must not leave half a cluster behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if cluster.is_running:
            err.print("Stopping ...")
            cluster.stop()
            err.print("Stopped.")


def _stop_on_signals(stopped: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())


class _StartProgress:
    """Shows which deployments run while the cluster starts."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._status = err.status("Starting Ray ...")
        self._shown = ""

    def __enter__(self) -> "_StartProgress":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def show(self, deployments: Mapping[str, str]) -> None:
        running = sum(status == "HEALTHY" for status in deployments.values())
        waiting = [name for name, status in deployments.items() if status != "HEALTHY"]
        elapsed_s = time.monotonic() - self._started_s
        line = f"{running} of {len(deployments)} deployments run"
        self._status.update(f"{line} ({elapsed_s:.0f} s) {' '.join(waiting[:3])}")
        if line != self._shown and not err.is_terminal:
            err.print(f"{line} ({elapsed_s:.0f} s)")
        self._shown = line


def _say_ready(url: str) -> None:
    case = demo_cases()[0]  # pictures that are there, so that the line works as it stands
    out.print(f"\nReady at {url}   (API: {url}/docs)")
    out.print("Try it:")
    out.print(
        f"  curl -s {url}/v1/tryon -F expert={case.expert} -F person=@{case.person_path} "
        f"-F product=@{case.product_path} -F format=png -o out.png",
        markup=False,
        highlight=False,
    )


def _pid_file(port: int) -> Path:
    return Settings().state_dir / f"up-{port}.pid"


def _detach(port: int, host: str, family: Path | None) -> None:
    pid_file = _pid_file(port)
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log = pid_file.with_suffix(".log")
    command = [sys.executable, "-m", "serve.cli", "up", "--port", str(port), "--host", host]
    if family is not None:
        command += ["--family", str(family.resolve())]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command, stdout=log_file, stderr=log_file, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    pid_file.write_text(str(process.pid))
    url = f"http://{host}:{port}"
    give_up_s = time.monotonic() + DETACH_TIMEOUT_S
    with Client(url) as client, err.status("Starting ...") as status:
        while not (readiness := client.readiness()).ready:
            if process.poll() is not None or time.monotonic() > give_up_s:
                err.print(log.read_text(errors="replace")[-2000:], markup=False)
                err.print(f"It did not start; the log is {log}", markup=False)
                raise typer.Exit(1)
            status.update(f"Waiting for {', '.join(readiness.waiting_for)}")
            time.sleep(0.5)
    _say_ready(url)
    out.print(f"Stop it with: sm4ll down --port {port}   (log: {log})", markup=False)


@app.command()
def down(port: Port = 8000) -> None:
    """Stop what `sm4ll up --detach` started."""
    pid_file = _pid_file(port)
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        pid_file.unlink(missing_ok=True)
        err.print(f"Nothing started with --detach runs on port {port}.")
        raise typer.Exit(1) from None
    with err.status("Stopping ..."):
        while _is_alive(pid):
            time.sleep(0.2)
    pid_file.unlink(missing_ok=True)
    err.print("Stopped.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@app.command()
def tryon(
    expert: Annotated[str, typer.Option(help=f"One of {', '.join(EXPERTS)}.")],
    person: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Person photo.")],
    product: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Product photo.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the picture goes; .zip for all layers.")
    ],
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Your own: white may change.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="For example eye@2.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same picture.")] = None,
    quality: Annotated[str, typer.Option(help="draft, normal or high.")] = "normal",
    blend: Annotated[str, typer.Option(help="exact or seamless.")] = "exact",
    url: Url = None,
) -> None:
    """Put a product on a person.

    For example: sm4ll tryon --expert eye --person a.jpg --product b.png -o out.png
    """
    suffix = output.suffix.lower()
    if suffix not in EXTENSIONS and suffix != ".zip":
        known = " ".join([*EXTENSIONS, ".zip"])
        raise typer.BadParameter(f"{output}: the name must end in one of {known}")
    options = _options(
        expert=expert,
        version=version,
        seed=seed,
        quality=quality,
        blend=blend,
        format=EXTENSIONS.get(suffix),
    )
    pictures = (person.read_bytes(), product.read_bytes(), mask.read_bytes() if mask else None)
    receipt = None
    with Client(url or Settings().url) as client, err.status(f"Trying {product.name} on ..."):
        if suffix == ".zip":
            output.write_bytes(client.tryon_layers(options, *pictures))
        else:
            answer = client.tryon(options, *pictures)
            output.write_bytes(answer.pictures[0].data)
            receipt = answer.receipt
    out.print(f"{output}", markup=False)
    if receipt is not None:
        outside = receipt.outside.max_abs_diff
        preview = "  a preview: no weights were used" if receipt.preview else ""
        out.print(
            f"{receipt.version}  {receipt.timings_ms['total']:.0f} ms  seed {receipt.seed}  "
            f"outside max diff {outside}{preview}"
        )


def _options(**values: object) -> TryOnOptions:
    try:
        return TryOnOptions.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from exc


@app.command()
def experts(url: Url = None) -> None:
    """List the deployed expert versions."""
    with Client(url or Settings().url) as client:
        models = client.models().models
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("version", "state", "backend", "status", "licence"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it does")
    for model in models:
        version = f"{model.version} *" if model.default else model.version
        backend = f"{model.backend}, preview" if model.preview else model.backend
        licence = model.licence if model.commercial_use else f"{model.licence}, non-commercial"
        table.add_row(version, model.state, backend, model.status, licence, model.title)
    out.print(table)
    out.print("* the version a request gets when it names none")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder.")] = Path("demo"),
    family: Family = None,
    url: Annotated[str | None, typer.Option(help="Use a running API instead.")] = None,
) -> None:
    """Try all seven experts on bundled pictures; write a page."""
    from serve.demo.run import run_demo

    if url is not None:
        raise typer.Exit(run_demo(url, output, out))
    export_ray_flags()
    from serve.local import LocalCluster, LocalOptions

    stopped = threading.Event()
    _stop_on_signals(stopped)
    cluster = LocalCluster(LocalOptions(family=family, port=free_port()))
    try:
        with _StartProgress() as progress:
            cluster.start(progress.show, stopped)
        code = run_demo(cluster.url, output, out)
    finally:
        with err.status("Stopping ..."):
            cluster.stop()
    raise typer.Exit(code)


@bench.command("gateway")
def bench_gateway(
    seconds: Annotated[float, typer.Option(help="Per cell of the table.")] = 5.0,
    output: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
) -> None:
    """`/v1/tryon` beside a bare two-hop Ray Serve echo, in one run."""
    _run_bench("gateway", seconds, output)


def _run_bench(name: str, seconds: float, output: Path | None) -> None:
    script = Path(__file__).resolve().parents[1] / "tests" / "bench" / f"{name}.py"
    if not script.is_file():
        err.print("Benchmarks need a checkout of the repository.")
        raise typer.Exit(1)
    export_ray_flags()
    arguments = ["--seconds", str(seconds)]
    sys.argv = [str(script), *arguments, *(["--output", str(output)] if output else [])]
    runpy.run_path(str(script), run_name="__main__")


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


if __name__ == "__main__":
    main()
