"""Who asks `sm4ll up` to end is heard by us, whatever else listens for it in C."""

import faulthandler
import os
import signal
from pathlib import Path

from serve.local import _own_signal


def test_handler_that_was_there_is_there_again(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with (tmp_path / "trace").open("w") as trace, _own_signal(signal.SIGUSR1):
            faulthandler.register(signal.SIGUSR1, trace)  # as Ray does: Python is not told
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert not (tmp_path / "trace").read_text()
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, before)
