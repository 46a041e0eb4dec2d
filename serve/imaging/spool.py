"""A picture file as it was sent: small ones in memory, large ones on disk until they are needed.

Twenty uploads of 20 MB are nothing in memory but those that are being decoded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from serve.errors import Overloaded

SPOOL_ABOVE_BYTES = 4 * 2**20
"""Below, the file system would cost more than the memory is worth."""
PIECE_BYTES = 256 * 1024


class SpooledFile:
    """Bytes in a file without a name, which is gone with its last user, whatever happens.

    Raises:
        Overloaded: the disk is full, or too many files are open.
    """

    def __init__(self) -> None:
        with _map_full_disk():
            self._file = TemporaryFile(buffering=0)  # closes with this object
        self.num_bytes = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append; from one thread at a time."""
        left = memoryview(piece)
        with _map_full_disk():
            while left:
                left = left[self._file.write(left) :]
        self.num_bytes += len(piece)

    def read(self) -> bytes:
        """All of it, from any thread."""
        return self.read_at(0, self.num_bytes)

    def read_at(self, start: int, num_bytes: int) -> bytes:
        """As many, or what there is from `start` on; below 2 GiB one call reads them all."""
        return os.pread(self._file.fileno(), num_bytes, start)


@contextmanager
def _map_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise Overloaded(f"there is no room for large uploads: {why}", retry_after_s=5.0) from exc


class SpooledBody:
    """What is written once and read from the start again: in memory while it is small."""

    def __init__(self) -> None:
        self._small = bytearray()
        self._file: SpooledFile | None = None
        self.num_bytes = 0

    def write(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        if self._file is None and self.num_bytes > SPOOL_ABOVE_BYTES:
            self._file = SpooledFile()
            self._file.write(self._small)
            self._small = bytearray()
        if self._file is None:
            self._small += piece
        else:
            self._file.write(piece)

    def pieces(self) -> Iterator[bytes]:
        """All of it, in order; at least one, maybe empty."""
        for start in range(0, max(self.num_bytes, 1), PIECE_BYTES):
            if self._file is None:
                yield bytes(self._small[start : start + PIECE_BYTES])
            else:
                yield self._file.read_at(start, PIECE_BYTES)


Encoded = bytes | SpooledFile


def read_encoded(encoded: Encoded) -> bytes:
    """The file's bytes; reading a spooled one blocks for milliseconds."""
    return encoded.read() if isinstance(encoded, SpooledFile) else encoded
