"""Run the benchmarks that lie beside the tests in a checkout."""

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve.commands.console import err
from serve.settings import export_ray_flags

Output = Annotated[Path | None, typer.Option(help="Write the table as Markdown.")]


ROOT = Path(__file__).resolve().parents[2]
ALL_BODIES = "110 KB,1 MB,5 MB,20 MB"
ALL_PEERS = "uvicorn,litserve,bentoml,ray-default,ray-flagged,sm4ll"


def gateway(
    seconds: Annotated[float, typer.Option(help="Per cell of the table.")] = 5.0,
    bodies: Annotated[str, typer.Option(help="Of 110 KB, 1 MB, 5 MB, 20 MB.")] = ALL_BODIES,
    connections: Annotated[str, typer.Option(help="At once, one run after the other.")] = "1,8,32",
    peers: Annotated[str, typer.Option(help="Whom to measure, in this order.")] = ALL_PEERS,
    quick: Annotated[bool, typer.Option("--quick", help="About three minutes.")] = False,
    artefacts: Annotated[
        Path | None, typer.Option(help="A folder for plot, flame graphs and numbers.")
    ] = None,
    output: Output = None,
) -> None:
    """`/v1/tryon` beside echoes: Ray Serve, LitServe, BentoML, uvicorn; installs what it needs."""
    said = ["--seconds", str(seconds), "--peers", *_split(peers), "--bodies", *_split(bodies)]
    said += ["--connections", *_split(connections), *(["--quick"] if quick else [])]
    said += ["--artefacts", str(artefacts)] if artefacts else []
    _run("gateway", *said, output=output)


def scale(
    seconds: Annotated[float, typer.Option(help="Per size.")] = 10.0,
    routers: Annotated[str, typer.Option(help="Sizes to measure.")] = "1,2,4",
    experts: Annotated[str, typer.Option(help="Sizes to measure.")] = "1,2,4,8",
    svg: Annotated[Path | None, typer.Option(help="Draw the curves.")] = None,
    output: Output = None,
) -> None:
    """Throughput and memory by replicas, and how long the whole family starts: cold, and warm."""
    drawn = ["--svg", str(svg)] if svg else []
    said = ["--seconds", str(seconds), "--routers", *_split(routers), "--experts", *_split(experts)]
    _run("scale", *said, *drawn, output=output)


def tenancy(
    seconds: Annotated[float, typer.Option(help="Per cell of the table, for each.")] = 10.0,
    output: Output = None,
) -> None:
    """The gateway with key, limits, fair queue and ledger, beside the same one without tenants."""
    export_ray_flags()
    _run("tenancy", "--seconds", str(seconds), output=output)


def experts(
    seconds: Annotated[float, typer.Option(help="Per measured line.")] = 10.0,
    output: Output = None,
) -> None:
    """An expert's replica beside its bare pipeline, in one process."""
    _run("experts", "--seconds", str(seconds), output=output)


def gpu(
    seconds: Annotated[float, typer.Option(help="Per timed cell.")] = 20.0,
    models: Annotated[str, typer.Option(help="Of sd, sdxl, klein.")] = "sd,sdxl,klein",
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, to try it.")] = False,
    output: Output = None,
) -> None:
    """Real architecture sizes on this GPU: plain, compiled, FP8, batches, adapters, packing."""
    flags = ["--tiny"] if tiny else []
    _run("gpu", "--seconds", str(seconds), "--models", models, *flags, output=output)


def adapters(output: Output = None) -> None:
    """Seven LoRA experts on one base beside seven of their own: memory, and time per swap."""
    _run("adapters", output=output)


def admission() -> None:
    """The fair queue: time per decision, overload, and one tenant beside another's 10,000 jobs."""
    _run("admission", output=None)


def fairness(
    replicas: Annotated[int, typer.Option(help="Of the expert.")] = 8,
    pass_s: Annotated[float, typer.Option(help="What one pass takes.")] = 1.0,
    permits: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    jobs: Annotated[int, typer.Option(help="Of the other; 0: 100 connections.")] = 10_000,
    seconds: Annotated[float, typer.Option(help="Alone, and beside the other.")] = 30.0,
    output: Output = None,
) -> None:
    """One tenant's p95 on a running cluster, alone and beside one that queued 10,000 jobs."""
    export_ray_flags()
    named = [] if permits is None else ["--permits", str(permits)]
    said = ["--replicas", str(replicas), "--pass-s", str(pass_s), "--seconds", str(seconds)]
    said += ["--jobs", str(jobs)]
    _run("fairness", *said, *named, output=output)


def assignment(output: Output = None) -> None:
    """Who gets which arm: microseconds for one request, beside one SHA-256."""
    _run("assignment", output=output)


def shadow(
    pass_s: Annotated[float, typer.Option(help="What one pass takes.")] = 0.4,
    busy: Annotated[float, typer.Option(help="Of the devices' time, with live work.")] = 0.4,
    routers: Annotated[int, typer.Option(help="Each with a gate of its own.")] = 2,
    seconds: Annotated[float, typer.Option(help="With shadows, and without, each time.")] = 30.0,
    pairs: Annotated[int, typer.Option(help="Of turns with and without.")] = 3,
    output: Output = None,
) -> None:
    """Live p50 and p95 on a running cluster, with shadows beside them and without, in turns."""
    export_ray_flags()
    said = ["--pass-s", str(pass_s), "--busy", str(busy), "--routers", str(routers)]
    said += ["--seconds", str(seconds), "--pairs", str(pairs)]
    _run("shadow", *said, output=output)


def packing(output: Output = None) -> None:
    """The planner at 1,000 versions on 1,000 GPUs: seconds, and GPUs against the lower bound."""
    _run("packing", output=output)


def sequential(
    replications: Annotated[int, typer.Option(help="Of each simulation.")] = 2_000,
    svg: Annotated[Path | None, typer.Option(help="Draw the power curves.")] = None,
    output: Output = None,
) -> None:
    """A thousand looks at arms that are alike, and the units it takes to find a difference."""
    drawn = ["--svg", str(svg)] if svg else []
    _run("sequential", "--replications", str(replications), *drawn, output=output)


def rollouts(
    replications: Annotated[int, typer.Option(help="Of each challenger.")] = 200,
    output: Output = None,
) -> None:
    """Whole rollouts with the usual plan: what becomes of good and bad challengers, and when."""
    _run("rollouts", "--replications", str(replications), output=output)


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _run(name: str, *arguments: str, output: Path | None) -> None:
    script = ROOT / "tests" / "bench" / f"{name}.py"
    if not script.is_file():
        err.print("Benchmarks need a checkout of the repository.")
        raise typer.Exit(1)
    where = ["--output", str(output)] if output else []
    sys.argv = [str(script), *arguments, *where]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(script), run_name="__main__")
