"""Where the router's time goes: a flame graph of it under load, by py-spy."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

from rich.console import Console

from tests.bench.gateway_bodies import Bodies, write_request
from tests.bench.gateway_cells import run_load
from tests.bench.gateway_servers import Running

SECONDS = 10
CONNECTIONS = 8
RATE_HZ = 200
# Where the kernel says nothing of threads that wait, py-spy takes them for busy: the picture is of
# who holds the interpreter's lock, the text of every thread.
KINDS = (("flamegraph", "svg", "--gil"), ("raw", "txt", "--threads"))
ROUTER = "ServeReplica:sm4ll:Router"
err = Console(stderr=True)


def profile_router(running: Running, bodies: Bodies, folder: Path, artefacts: Path) -> None:
    """Write a flame graph and the same stacks as text for every mode."""
    router = running.find(ROUTER)
    spy = shutil.which("py-spy") or str(Path(sys.executable).parent / "py-spy")
    if router is None or not Path(spy).exists():
        err.print("  no flame graph: py-spy is not installed, or no router found")
        return
    for mode in running.modes:
        file = folder / f"profiled-{mode.name}"
        write_request(file, mode.path, bodies, mode.fields, mode.headers)
        arguments = (running.port, file, CONNECTIONS, SECONDS * 2 + 4.0)
        load = threading.Thread(target=run_load, args=arguments)
        load.start()
        for kind, name, threads in KINDS:
            output = artefacts / f"router-{mode.name}.{name}"
            command = [
                *(spy, "record", "--pid", str(router.pid), "--output", str(output)),
                *("--format", kind, "--rate", str(RATE_HZ), "--duration", str(SECONDS)),
                *(threads, "--nonblocking"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                err.print(f"  no flame graph of {mode.name}: {done.stderr.strip()[-200:]}")
        load.join()
