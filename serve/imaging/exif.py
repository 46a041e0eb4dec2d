"""EXIF as bytes: read the orientation, and clean the block for a picture that was changed.

Edited in place: writing the block anew would break the offsets inside maker notes.
"""

import struct
from typing import NamedTuple

MAX_EXIF_BYTES = 65_527  # what fits one JPEG APP1 segment behind its "Exif\0\0"
_ORIENTATION = 0x0112
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202


class _Directory(NamedTuple):
    values: dict[int, tuple[int, int]]
    """Tag -> (where its value field lies, first number in it)."""
    next_at: int
    """Where the offset of the next directory is written."""
    next_offset: int


def read_orientation(exif: bytes | None) -> int:
    """The EXIF orientation 1-8; 1 where there is none or the block is damaged."""
    if exif is None:
        return 1
    try:
        order, offset = _read_start(exif)
        values = _read_directory(exif, order, offset).values
    except (struct.error, ValueError):
        return 1
    orientation = values.get(_ORIENTATION, (0, 1))[1]
    return orientation if 1 <= orientation <= 8 else 1


def clean_exif(exif: bytes | None) -> bytes | None:
    """The block for an upright, changed picture: orientation 1, no thumbnail of the old picture.

    Args:
        exif: TIFF-style bytes without the "Exif" prefix.

    Returns:
        The same kind of bytes, or None for a damaged or oversized block.
    """
    if exif is None or len(exif) > MAX_EXIF_BYTES:
        return None
    block = bytearray(exif)
    try:
        order, offset = _read_start(block)
        main = _read_directory(block, order, offset)
        if _ORIENTATION in main.values:
            struct.pack_into(f"{order}H", block, main.values[_ORIENTATION][0], 1)
        if main.next_offset:
            block = _drop_thumbnail(block, order, main)
    except (struct.error, ValueError):
        return None
    return bytes(block)


def _drop_thumbnail(block: bytearray, order: str, main: _Directory) -> bytearray:
    struct.pack_into(f"{order}I", block, main.next_at, 0)
    second = _read_directory(block, order, main.next_offset).values
    if _THUMBNAIL_OFFSET not in second or _THUMBNAIL_LENGTH not in second:
        return block
    start = second[_THUMBNAIL_OFFSET][1]
    end = start + second[_THUMBNAIL_LENGTH][1]
    if start <= main.next_at < end:
        raise ValueError("thumbnail overlaps the directory")
    if end >= len(block):
        return block[:start]
    block[start:end] = bytes(end - start)
    return block


def _read_start(block: bytes | bytearray) -> tuple[str, int]:
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None:
        raise ValueError("no byte order")
    (offset,) = struct.unpack_from(f"{order}I", block, 4)
    return order, offset


def _read_directory(block: bytes | bytearray, order: str, offset: int) -> _Directory:
    (num_entries,) = struct.unpack_from(f"{order}H", block, offset)
    values = {}
    for at in range(offset + 2, offset + 2 + 12 * num_entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", block, at)
        number = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", block, at + 8)[0]
        values[tag] = (at + 8, number)
    next_at = offset + 2 + 12 * num_entries
    return _Directory(values, next_at, struct.unpack_from(f"{order}I", block, next_at)[0])
