"""Lines for whoever reads the container's log: `kubectl logs`, and what collects them on the node.

Ray gives what its workers write on stdout and stderr to files in the pod, so the log of a Ray
container has nothing of a replica. Its first process, whose stderr the container runtime reads, is
there to be written to all the same: /proc/1/fd/2, by the same user.
"""

import logging
import os
from pathlib import Path


class ContainerLog(logging.Handler):
    """Never waits for a reader: what a full pipe does not take is dropped; Serve's file has it."""

    def __init__(self, path: Path):
        """
        Raises:
            OSError: it cannot be opened for writing.
        """
        super().__init__()
        # A description of our own: that the first process shares its with others is no matter.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode()
            line = b"\n" + line if self._is_torn else line
            self._is_torn = os.write(self._descriptor, line) < len(line)
        except BlockingIOError:
            return
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()
