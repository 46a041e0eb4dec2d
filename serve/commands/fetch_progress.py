"""How a fetch goes: bars on a terminal, lines in a log."""

import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from deployments.prefetch import Download

LINE_SHARE = 0.05
"""Of all bytes: so often a log hears of a file that takes long."""


class BarsWatcher:
    """One bar for all, one for each file that is on its way."""

    def __init__(self, console: Console):
        name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        figures = (DownloadColumn, TransferSpeedColumn, TimeRemainingColumn)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=name),
            BarColumn(bar_width=16),
            *(column(table_column=Column(no_wrap=True)) for column in figures),
            console=console,
            transient=True,
            expand=True,
        )
        self._all: TaskID | None = None
        self._bars: dict[Download, TaskID] = {}
        self._left = 0

    def __enter__(self) -> "BarsWatcher":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, downloads: Sequence[Download]) -> None:
        num_bytes = sum(download.file.num_bytes for download in downloads)
        self._all = self._progress.add_task(f"{len(downloads)} files", total=num_bytes)

    def start(self, download: Download) -> None:
        total = download.file.num_bytes
        self._bars[download] = self._progress.add_task(download.file.name, total=total)

    def advance(self, download: Download, num_bytes: int) -> None:
        self._progress.advance(self._bars[download], num_bytes)
        if self._all is not None:
            self._progress.advance(self._all, num_bytes)

    def finish(self, download: Download) -> None:
        self._progress.remove_task(self._bars.pop(download))


class LinesWatcher:
    """A line for every file that came, and while a large one comes."""

    def __init__(self, console: Console):
        self._console = console
        self._lock = threading.Lock()
        self._num_files = self._num_done = 0
        self._num_bytes = self._came_bytes = self._told_bytes = 0
        self._started_s: dict[Download, float] = {}

    def __enter__(self) -> "LinesWatcher":
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, downloads: Sequence[Download]) -> None:
        self._num_files = len(downloads)
        self._num_bytes = sum(download.file.num_bytes for download in downloads)
        self._print(f"{self._num_files} files to fetch, {decimal(self._num_bytes)}")

    def start(self, download: Download) -> None:
        with self._lock:
            self._started_s[download] = time.monotonic()

    def advance(self, download: Download, num_bytes: int) -> None:
        with self._lock:
            self._came_bytes += num_bytes
            if self._came_bytes - self._told_bytes < LINE_SHARE * self._num_bytes:
                return
            self._tell(download.label)

    def finish(self, download: Download) -> None:
        with self._lock:
            self._num_done += 1
            took_s = time.monotonic() - self._started_s[download]
            self._tell(f"{download.label} ({decimal(download.file.num_bytes)}, {took_s:.0f} s)")

    def _tell(self, words: str) -> None:
        self._told_bytes = self._came_bytes
        share = self._came_bytes / self._num_bytes if self._num_bytes else 1.0
        self._print(
            f"{self._num_done}/{self._num_files} files, {decimal(self._came_bytes)} of "
            f"{decimal(self._num_bytes)} ({share:.0%}): {words}"
        )

    def _print(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False)
