"""`sm4ll top`: what a running cluster does now, drawn again every few seconds."""

import dataclasses
import json
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console, RenderableType
from rich.live import Live

from serve.commands.console import out
from serve.commands.top_drawing import Place, draw_top
from serve.commands.top_sample import Sample, take_sample
from serve.errors import NotFound
from serve.exposition import REMEDY, TIMEOUT, Reading, query_prometheus, read_nodes
from serve.interval import Interval
from serve.settings import Settings, metrics_file

ONCE_S = 5.0
# Ray's processes report every 2 s where `sm4ll up` started them: shorter windows would flicker.
WINDOW_S = 10.0
# Prometheus scrapes every 15 s or so.
SERVER_WINDOW_S = 60.0
MAX_RATES = 240
KEYS_THAT_END = ("q", "Q", "\x1b")


def top(
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between pictures.")] = 2.0,
    window: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds that rates and p50/p95 are of; 10, or 60 of a server."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Where a node exports; repeat for several nodes.")
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(help="A Prometheus server that scrapes the whole cluster.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One picture, then exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One sample as JSON, then exit.")] = False,
) -> None:
    """Show what a running cluster does now; q or Ctrl-C ends it.

    Without --metrics and --prometheus: the cluster that `sm4ll up` runs on this data directory.

    For example: sm4ll top --interval 1

    With KubeRay: sm4ll top --prometheus http://prometheus.monitoring:9090
    """
    with httpx2.Client(timeout=TIMEOUT) as http:
        source = _Source(http, metrics or [], prometheus, window)
        if once or as_json:
            sample = source.sample_once(min(source.window_s, ONCE_S))
            if as_json:
                out.print_json(json.dumps(tell_sample(sample)))
            else:
                size = out.size
                out.print(draw_top(sample, Place(source.where, size.width, 200)))
            return
        _follow(source, interval, Console())


class _Source:
    """Reads again and again, and remembers what a window ago was."""

    def __init__(
        self, http: httpx2.Client, urls: list[str], server: str | None, window_s: float | None
    ) -> None:
        self._http = http
        self._server = server
        self._urls = urls if urls or server is not None else [_local_url()]
        self._readings: deque[Reading] = deque()
        self.window_s = window_s or (WINDOW_S if server is None else SERVER_WINDOW_S)
        self.where = server or " ".join(self._urls)

    def sample(self) -> Sample:
        """
        Raises:
            NotFound: nothing answers where it was said to be.
        """
        if self._server is not None:
            now = query_prometheus(self._server, self._http, time.time())
            before = query_prometheus(self._server, self._http, now.at_s - self.window_s)
            return _sample(before, now)
        now = read_nodes(self._urls, self._http)
        self._readings.append(now)
        while len(self._readings) > 2 and self._readings[1].at_s <= now.at_s - self.window_s:
            self._readings.popleft()
        return _sample(self._readings[0], now)

    def sample_once(self, seconds: float) -> Sample:
        """Of two readings, where rates need two."""
        first = self.sample()
        if self._server is not None:
            return first
        time.sleep(seconds)
        return self.sample()


def _sample(before: Reading, now: Reading) -> Sample:
    up_s = None if now.started_at_s is None else now.at_s - now.started_at_s
    return take_sample(Interval(before, now), now.at_s, up_s)


def _local_url() -> str:
    file = metrics_file(Settings())
    try:
        return file.read_text().strip()
    except OSError:
        raise NotFound(f"no cluster runs on {file.parent}", remedy=REMEDY) from None


def tell_sample(sample: Sample) -> dict[str, Any]:
    """As plain values; what is not known is null."""
    return dataclasses.asdict(sample)


def _follow(source: _Source, interval_s: float, console: Console) -> None:
    rates: deque[float] = deque(maxlen=MAX_RATES)
    sample = source.sample()  # where nothing answers, it is said on the terminal as it is

    def draw() -> RenderableType:
        nonlocal sample
        trouble = ""
        try:
            sample = source.sample()
        except NotFound as exc:  # it may come back
            trouble = str(exc)
        rates.append(sample.requests_per_s)
        size = console.size
        return draw_top(sample, Place(source.where, size.width, size.height, tuple(rates), trouble))

    first = draw()
    try:
        with (
            _read_keys() as read_key,
            Live(first, console=console, screen=True, auto_refresh=False) as live,
        ):
            while read_key(interval_s) not in KEYS_THAT_END:
                live.update(draw(), refresh=True)
    except KeyboardInterrupt:
        pass


@contextmanager
def _read_keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key at most so long, and returns it or nothing."""
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal to press keys on

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return

    def read(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(sys.stdin)
        yield read
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
