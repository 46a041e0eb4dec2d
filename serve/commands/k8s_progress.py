"""How a long apply tells what it does: one moving line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

EVERY_S = 5.0


class Progress:
    """A `k8s.changes.teller.Teller`. In a log a line is written only when it is a new one, and not
    the next at once: what a CI shows is read afterwards."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._began_s = clock()
        self._live = Status("", console=console) if console.is_terminal else None
        self._is_live = False
        self._last = ""
        self._last_s = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def said(self, text: str) -> None:
        self._print(text)

    def doing(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(f"{self._elapsed()} {text}", overflow="ellipsis", no_wrap=True))
            if not self._is_live:
                self._is_live = True
                self._live.start()
            return
        now_s = self._clock()
        if text != self._last and now_s - self._last_s >= EVERY_S:
            self._print(text)
            self._last, self._last_s = text, now_s

    def _print(self, text: str) -> None:
        self._console.print(f"{self._elapsed()} {text}", markup=False, highlight=False)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(round(self._clock() - self._began_s), 60)
        return f"[{minutes:3d}:{seconds:02d}]"
