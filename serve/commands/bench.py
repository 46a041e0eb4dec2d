"""Run the benchmarks that lie beside the tests in a checkout."""

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve.commands.console import err
from serve.settings import export_ray_flags

Output = Annotated[Path | None, typer.Option(help="Write the table as Markdown.")]


def gateway(
    seconds: Annotated[float, typer.Option(help="Per cell of the table.")] = 5.0,
    output: Output = None,
) -> None:
    """`/v1/tryon` beside a bare two-hop Ray Serve echo, in one run."""
    _run_bench("gateway", seconds, output)


def _run_bench(name: str, seconds: float, output: Path | None) -> None:
    script = Path(__file__).resolve().parents[2] / "tests" / "bench" / f"{name}.py"
    if not script.is_file():
        err.print("Benchmarks need a checkout of the repository.")
        raise typer.Exit(1)
    export_ray_flags()
    arguments = ["--seconds", str(seconds)]
    sys.argv = [str(script), *arguments, *(["--output", str(output)] if output else [])]
    runpy.run_path(str(script), run_name="__main__")
