"""The first page of a TIFF file, read without following anything that could grow.

Refuses what only looks like a picture: camera raw files (their first page is a thumbnail),
floating point, planes of unequal depth, and directories that declare more bytes than they have.
"""

import struct
from dataclasses import dataclass

from serve.errors import InvalidImage

_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WIDTH, _HEIGHT, _BITS, _SUBFILE, _ORIENTATION = 256, 257, 258, 254, 274
_PHOTOMETRIC, _NUM_SAMPLES, _SAMPLE_FORMAT, _EXTRA = 262, 277, 339, 338
_TILE_WIDTH, _TILE_HEIGHT, _ICC, _DNG = 322, 323, 34675, 50706
_COLOUR_FILTER, _LINEAR_RAW = 32803, 34892  # photometric interpretations of camera raw files
MAX_ENTRIES = 1000
MAX_TILE_PX = 16_384


@dataclass(frozen=True, slots=True)
class TiffPage:
    """What one page declares."""

    width_px: int
    height_px: int
    num_pages: int
    bits_per_sample: int
    num_channels: int
    photometric: int
    has_premultiplied_alpha: bool
    orientation: int
    orientation_at: int | None
    """Where in the file the orientation is written."""
    icc_profile: bytes | None


class _Directory:
    """Values of one directory, read on demand and only from inside the file."""

    def __init__(self, data: bytes):
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        (offset,) = self._unpack("I", 4)
        (num_entries,) = self._unpack("H", offset)
        if num_entries > MAX_ENTRIES:
            raise InvalidImage(f"the TIFF page has {num_entries} tags", remedy="save it anew")
        self._entries: dict[int, tuple[int, int, int]] = {}
        num_bytes = 0
        for at in range(offset + 2, offset + 2 + 12 * num_entries, 12):
            tag, kind, count = self._unpack("HHI", at)
            length = count * _KIND_BYTES.get(kind, 1)
            where = at + 8 if length <= 4 else self._unpack("I", at + 8)[0]
            num_bytes += length
            if where + length > len(data):
                raise InvalidImage("the TIFF file is truncated", remedy="send the whole file")
            self._entries[tag] = kind, where, length
        if num_bytes > len(data):
            # Tags that share their bytes: each reader would copy them once per tag.
            raise InvalidImage("the TIFF page declares more than the file has", remedy="save anew")
        (self.next_offset,) = self._unpack("I", offset + 2 + 12 * num_entries)

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self._data, at)

    def numbers(self, tag: int) -> tuple[int, ...]:
        kind, where, length = self._entries.get(tag, (3, 0, 0))
        if kind not in (1, 3, 4) or length > 64:
            return ()
        letter = {1: "B", 3: "H", 4: "I"}[kind]
        return self._unpack(f"{length // _KIND_BYTES[kind]}{letter}", where)

    def number(self, tag: int, default: int) -> int:
        return next(iter(self.numbers(tag)), default)

    def position(self, tag: int) -> int | None:
        return self._entries[tag][1] if tag in self._entries else None

    def content(self, tag: int) -> bytes | None:
        _, where, length = self._entries.get(tag, (0, 0, 0))
        return self._data[where : where + length] or None


def read_page(data: bytes) -> TiffPage:
    """Read the first page of a classic TIFF file.

    Raises:
        InvalidImage: damaged, truncated, camera raw, or a kind of samples nobody edits.
        struct.error: truncated inside the directory.
    """
    directory = _Directory(data)
    photometric = directory.number(_PHOTOMETRIC, 2)
    if directory.content(_DNG) or photometric in (_COLOUR_FILTER, _LINEAR_RAW):
        raise InvalidImage("camera raw is not supported", remedy="export the picture as TIFF")
    if directory.number(_SUBFILE, 0) & 1:
        raise InvalidImage(
            "the first page of the TIFF file is a thumbnail", remedy="save it as one page"
        )
    bits = directory.numbers(_BITS) or (1,)
    if len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16):
        raise InvalidImage(f"TIFF samples of {bits} bits are not supported", remedy="use 8 or 16")
    if set(directory.numbers(_SAMPLE_FORMAT)) - {1, 4}:
        raise InvalidImage("TIFF samples must be unsigned integers", remedy="use 8 or 16 bit")
    if max(directory.number(_TILE_WIDTH, 1), directory.number(_TILE_HEIGHT, 1)) > MAX_TILE_PX:
        raise InvalidImage("the TIFF tiles are larger than any picture", remedy="save it anew")
    return TiffPage(
        width_px=directory.number(_WIDTH, 0),
        height_px=directory.number(_HEIGHT, 0),
        num_pages=2 if directory.next_offset else 1,
        bits_per_sample=bits[0],
        num_channels=directory.number(_NUM_SAMPLES, len(bits)),
        photometric=photometric,
        has_premultiplied_alpha=directory.number(_EXTRA, 2) == 1,
        orientation=_as_orientation(directory.number(_ORIENTATION, 1)),
        orientation_at=directory.position(_ORIENTATION),
        icc_profile=directory.content(_ICC),
    )


def reset_orientation(data: bytes, page: TiffPage) -> bytes:
    """The same file, stored upright: libraries disagree on who turns a TIFF."""
    at = page.orientation_at
    if at is None or page.orientation == 1:
        return data
    return data[:at] + (b"\x01\x00" if data[:2] == b"II" else b"\x00\x01") + data[at + 2 :]


def _as_orientation(value: int) -> int:
    return value if 1 <= value <= 8 else 1
