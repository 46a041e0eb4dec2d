"""Start and stop a local cluster, and show all seven experts on one."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from serve.client import Client
from serve.commands.connection import connect
from serve.commands.console import Family, Port, err, out
from serve.demo.cases import demo_cases
from serve.observing.logs import write_json_prints
from serve.settings import (
    Settings,
    export_data_dir,
    export_ray_flags,
    free_port,
    local_key_file,
    metrics_file,
)

DETACH_TIMEOUT_S = 180.0
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Where rows, pictures and the local key are kept."),
]


def up(
    port: Port = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    family: Family = None,
    data: Data = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready.")] = False,
    json_log: Annotated[
        bool, typer.Option("--json-log", help="Write JSON lines to stderr, for a log.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where Prometheus reads; any free port when absent."),
    ] = None,
) -> None:
    """Start a local cluster with the whole family; Ctrl-C stops it.

    Nothing but health and docs answers without a key. The first start makes the tenant `local` and
    one key for it, which lies in `local.key` in the data directory.
    """
    if data is not None:
        export_data_dir(data)
    if detach:
        _detach(port, host, family, metrics_port)
        return
    stopped = threading.Event()
    _stop_on_signals(stopped)
    export_ray_flags()
    from serve.local import LocalCluster, LocalOptions, StartFailed

    if json_log:  # after Ray's import, which makes handlers of its own
        write_json_prints()
    options = LocalOptions(family=family, host=host, port=port, metrics_port=metrics_port)
    cluster = LocalCluster(options)
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
    metrics_url = metrics_file(Settings()).read_text().strip()
    out.print(f"Metrics: {metrics_url}   (look at them: sm4ll top)", highlight=False)
    key_file = local_key_file(Settings())
    # Not into a file: whoever may read that one may not read everything.
    key = key_file.read_text().strip() if out.is_terminal else "sk_..."
    out.print(f"Key: {key}   (in {key_file})", markup=False, highlight=False)
    out.print("Try it:")
    out.print(
        f'  curl -s {url}/v1/tryon -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" '
        f"-F expert={case.expert} -F person=@{case.person_path} "
        f"-F product=@{case.product_path} -F format=png -o out.png",
        markup=False,
        highlight=False,
    )


def _pid_file(port: int) -> Path:
    return Settings().state_dir / f"up-{port}.pid"


def _detach(port: int, host: str, family: Path | None, metrics_port: int | None) -> None:
    pid_file = _pid_file(port)
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log = pid_file.with_suffix(".log")
    command = [sys.executable, "-m", "serve.cli", "up", "--port", str(port), "--host", host]
    command.append("--json-log")
    if family is not None:
        command += ["--family", str(family.resolve())]
    if metrics_port is not None:
        command += ["--metrics-port", str(metrics_port)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command, stdout=log_file, stderr=log_file, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    pid_file.write_text(str(process.pid))
    url = f"http://{host}:{port}"
    give_up_s = time.monotonic() + DETACH_TIMEOUT_S
    with connect(url) as client, err.status("Starting ...") as status:
        while not (readiness := client.readiness()).ready:
            if process.poll() is not None or time.monotonic() > give_up_s:
                err.print(log.read_text(errors="replace")[-2000:], markup=False)
                err.print(f"It did not start; the log is {log}", markup=False)
                raise typer.Exit(1)
            status.update(f"Waiting for {', '.join(readiness.waiting_for)}")
            time.sleep(0.5)
    _say_ready(url)
    out.print(f"Stop it with: sm4ll down --port {port}   (log: {log})", markup=False)


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


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder.")] = Path("demo"),
    family: Family = None,
    data: Data = None,
    url: Annotated[
        str | None, typer.Option(help="A running API; without it, a cluster for the demo.")
    ] = None,
) -> None:
    """Try all seven experts on bundled pictures; write a page."""
    from serve.demo.run import run_demo

    if url is not None:
        with connect(url) as running:
            raise typer.Exit(run_demo(running, output, out))
    export_ray_flags()
    from serve.local import LocalCluster, LocalOptions

    stopped = threading.Event()
    _stop_on_signals(stopped)
    with tempfile.TemporaryDirectory(prefix="sm4ll-demo-", ignore_cleanup_errors=True) as folder:
        options = LocalOptions(family=family, port=free_port(), data_dir=data or Path(folder))
        cluster = LocalCluster(options)
        try:
            with _StartProgress() as progress:
                cluster.start(progress.show, stopped)
            with Client(cluster.url, cluster.api_key) as client:
                code = run_demo(client, output, out)
        finally:
            with err.status("Stopping ..."):
                cluster.stop()
    raise typer.Exit(code)
