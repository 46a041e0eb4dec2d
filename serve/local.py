"""One local Ray cluster with the family on it, owned by this process from start to stop.

Ray reads its flags when it is imported: `serve.settings.export_ray_flags` comes before this module.
"""

import asyncio
import contextlib
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from deployments.bundle import load_family
from deployments.judge_models import load_judge
from serve.errors import ConfigError
from serve.settings import Settings, export_data_dir, forget_metrics, free_port, metrics_file

if TYPE_CHECKING:
    from serve.local_app import LocalApp

# Crops and copies live in it for one request; Ray's default of a third of the memory is for
# clusters.
OBJECT_STORE_BYTES = 1 * 2**30
POLL_S = 0.25

OnProgress = Callable[[Mapping[str, str]], None]
"""Called with the status of every deployment, by name, while the cluster starts."""


class StartFailed(RuntimeError):
    """The family did not come up; says which deployment and why."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How to run locally."""

    family: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    num_cpus: int | None = None
    """What Ray may hand out; the machine's cores, and at least 4, when absent."""
    num_gpus: int | None = None
    timeout_s: float = 180.0
    data_dir: Path | None = None
    """Where rows, blobs and the local key are kept; as the settings say when absent."""
    metrics_port: int | None = None
    """Where this node's metrics are to be read; any free port when absent."""


class LocalCluster:
    """Starts Ray, Serve and the family; `stop` leaves no process behind."""

    def __init__(self, options: LocalOptions):
        self._options = options
        self._api_key: str | None = None
        self._app: LocalApp | None = None
        self._metrics_port = options.metrics_port or free_port()

    @property
    def url(self) -> str:
        return f"http://{self._options.host}:{self._options.port}"

    @property
    def api_key(self) -> str | None:
        """The local key; known once Ray runs."""
        return self._api_key

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads what every process of this node recorded."""
        return f"http://127.0.0.1:{self._metrics_port}/metrics"

    @property
    def is_running(self) -> bool:
        """True from the moment Ray runs, whether or not the family came up."""
        return bool(ray.is_initialized())

    def start(self, on_progress: OnProgress, stopped: threading.Event) -> None:
        """Start everything and return when every deployment runs, or when stopped is set.

        Raises:
            ConfigError: the family or the store cannot be used, or the port is taken.
            StoreUnavailable: the database does not answer.
            StartFailed: a deployment failed, or timeout_s passed.
        """
        options = self._options
        _require_free_port(options.host, options.port)
        _require_free_port("127.0.0.1", self._metrics_port)
        family = (options.family or Settings().family).absolute()
        _require_readable(family)
        # Before Ray starts: its processes look where this one's environment says.
        export_data_dir(options.data_dir or Settings().data_dir)
        with ThreadPoolExecutor(1, thread_name_prefix="ground") as aside:
            ground = aside.submit(_lay_ground)
            self._start_ray()
            self._app, self._api_key = ground.result()
        metrics_file(Settings()).write_text(f"{self.metrics_url}\n")
        self._app.deploy(family, options.host, options.port)
        self._wait(self._app, on_progress, stopped)

    def _start_ray(self) -> None:
        options = self._options
        with _own_signal(signal.SIGTERM):
            ray.init(
                address="local",
                num_cpus=options.num_cpus or max(4, os.cpu_count() or 4),
                num_gpus=options.num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _metrics_export_port=self._metrics_port,
            )

    def _wait(self, app: "LocalApp", on_progress: OnProgress, stopped: threading.Event) -> None:
        num_polls = int(self._options.timeout_s / POLL_S)
        for _ in range(num_polls):
            progress = app.look()
            if progress.deployments:
                on_progress(progress.deployments)
            if progress.is_running:
                return
            if progress.failure is not None:
                raise StartFailed(progress.failure)
            if stopped.wait(POLL_S):
                return
        raise StartFailed(f"not running after {self._options.timeout_s:.0f} s")

    def stop(self) -> None:
        """Stop Serve, then Ray. Safe to call twice, and after a failed start."""
        if self.is_running:
            forget_metrics(Settings(), self.metrics_url)
            # The controller kills itself while answering, which Ray prints as a failed task.
            with contextlib.redirect_stdout(io.StringIO()):
                if self._app is not None:
                    self._app.stop()
                ray.shutdown()


@contextlib.contextmanager
def _own_signal(number: signal.Signals) -> Iterator[None]:
    """Whoever handled it before handles it afterwards.

    Ray takes SIGTERM for a crash: it prints a trace and has the process killed 3 s later, in the
    middle of `stop`, which leaves Ray's agents behind with their ports.
    """
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # others may not
            signal.signal(number, handler)


def _require_readable(family: Path) -> None:
    """The controller has the graph built elsewhere, and would tell of a mistake much later."""
    config, _ = load_family(family)
    if config.judge is not None:
        load_judge(family, config.judge)


def _lay_ground() -> tuple["LocalApp", str]:
    """What comes after Ray, and its local key: done while Ray starts, which waits three seconds for
    processes of its own. The imports are here for their time, no less than the work."""
    from serve.local_app import LocalApp
    from serve.tenancy.embedded import prepare_store

    return LocalApp(), asyncio.run(prepare_store(Settings()))


def _require_free_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(f"{host}:{port} cannot be used: {exc.strerror}") from exc
