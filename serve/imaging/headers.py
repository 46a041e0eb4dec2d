"""What a picture file says about itself, read from its bytes without decoding a pixel.

Own parsers, because the libraries allocate (WebP), follow endless chains (TIFF) or inflate
metadata (PNG) before they say how large a picture is. File names are never looked at.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from serve.errors import InvalidImage
from serve.imaging import tiff
from serve.imaging.exif import read_orientation

Format = Literal["png", "webp", "jpeg", "tiff", "heic"]
SUPPORTED = "JPEG, PNG, WebP, TIFF and HEIC"
REMEDY = f"send one of {SUPPORTED}"
MAX_PROFILE_BYTES = 4 * 1024 * 1024  # press profiles have 0.5-3 MiB
MAX_CHUNKS = 100_000
MAX_JPEG_SCANS = 100  # libjpeg's progressive script writes 10; each costs a pass over the picture
_PIECE_BYTES = 2**20
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
_HEIC_SEQUENCES = (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1")
_OTHER_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
    (b"v/1\x01", "OpenEXR"),
    (b"\x1aE\xdf\xa3", "WebM video"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """A picture file before decoding; sizes are as stored, before orientation."""

    format: Format
    width_px: int
    height_px: int
    num_frames: int = 1
    bit_depth: int = 8
    num_channels: int = 3
    is_opaque: bool = False
    """True only where the header rules transparency out."""
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """TIFF-style bytes without the "Exif" prefix."""
    orientation: int = 1


def read_header(data: bytes) -> Header:
    """Tell the format by content and read size, frames, depth, profile and EXIF.

    Raises:
        InvalidImage: not a supported format (names what was found), damaged or truncated.
    """
    try:
        if data.startswith(_PNG_MAGIC):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data[:4] in (b"II*\x00", b"MM\x00*"):
            return _read_tiff(data)
    except (struct.error, IndexError) as exc:
        raise InvalidImage("the file is truncated inside its header", remedy=REMEDY) from exc
    if data[4:8] == b"ftyp" and _is_heic(data):
        # Size and frames are libheif's to tell; it reads them without decoding.
        return Header("heic", 0, 0, num_frames=2 if data[8:12] in _HEIC_SEQUENCES else 1)
    raise InvalidImage(f"{_name_kind(data)} is not supported", remedy=REMEDY)


def strip_png(data: bytes) -> bytes:
    """The same picture with only the chunks that make its pixels, so that no text inflates."""
    kept = (
        data[at - 8 : at + length + 4]
        for kind, at, length in _walk_png(data)
        if kind in _PNG_PIXEL_CHUNKS
    )
    return _PNG_MAGIC + b"".join(kept)


def _walk_png(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Every chunk as (kind, where its content starts, length), up to and with IEND."""
    at = len(_PNG_MAGIC)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise InvalidImage("the PNG file is truncated", remedy="send the whole file")
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
    raise InvalidImage(f"the PNG file has over {MAX_CHUNKS} chunks", remedy="save it anew")


def _read_png(data: bytes) -> Header:
    width_px, height_px, bit_depth, colour = struct.unpack_from(">IIBB", data, 16)
    num_frames, icc_profile, exif = 1, None, None
    is_opaque = colour == 2
    for kind, at, length in _walk_png(data):
        content = memoryview(data)[at : at + length]
        if kind == b"acTL":
            num_frames = struct.unpack_from(">I", content)[0]
        elif kind == b"tRNS":
            is_opaque = False
        elif kind == b"iCCP":
            icc_profile = _inflate_profile(bytes(content))
        elif kind == b"eXIf":
            exif = bytes(content)
    return Header(
        "png",
        width_px,
        height_px,
        num_frames=num_frames,
        bit_depth=16 if bit_depth == 16 else 8,
        num_channels={0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 3),
        is_opaque=is_opaque,
        icc_profile=icc_profile,
        exif=exif,
        orientation=read_orientation(exif),
    )


def _inflate_profile(content: bytes) -> bytes | None:
    start = content.find(b"\x00", 0, 80) + 2
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(content[start:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if start > 1 and inflater.eof else None


def _walk_jpeg(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Every segment up to the first scan as (marker, where its content starts, length)."""
    at, num_segments = 2, 0
    while num_segments < MAX_CHUNKS:
        if data[at] != 0xFF:
            raise InvalidImage("the JPEG file is damaged: no marker", remedy="save it anew")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at + 4, length - 2
        if marker == 0xDA:
            return
        at += 2 + length
        num_segments += 1
    raise InvalidImage(f"the JPEG file has over {MAX_CHUNKS} segments", remedy="save it anew")


def _read_jpeg(data: bytes) -> Header:
    frame, exif, profile = None, None, {}
    for marker, at, length in _walk_jpeg(data):
        content = data[at : at + length]
        if marker == 0xE1 and exif is None and content.startswith(b"Exif\x00\x00"):
            exif = content[6:]
        elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\x00"):
            profile[content[12]] = content[14:]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", content)
        elif marker == 0xDA:
            _check_scans(data, at)
    if frame is None:
        raise InvalidImage("the JPEG file holds no picture", remedy="save it anew")
    precision, height_px, width_px, num_channels = frame
    if precision != 8:
        raise InvalidImage(f"a {precision}-bit JPEG is not supported", remedy="save it as 8 bit")
    return Header(
        "jpeg",
        width_px,
        height_px,
        num_channels=num_channels,
        icc_profile=b"".join(profile[number] for number in sorted(profile)) or None,
        exif=exif,
        orientation=read_orientation(exif),
    )


def _check_scans(data: bytes, start: int) -> None:
    num_scans = 0
    # In pieces that overlap by a byte: a search through 20 MB would hold up every other thread.
    for at in range(start, len(data), _PIECE_BYTES):
        stop = at + _PIECE_BYTES + 1
        end = data.find(b"\xff\xd9", at, stop)  # in a scan, 0xff is always followed by 0x00
        num_scans += data.count(b"\xff\xda", at, stop if end < 0 else end)
        if end >= 0:
            break
    else:
        raise InvalidImage("the JPEG file is truncated", remedy="send the whole file")
    if num_scans > MAX_JPEG_SCANS:
        raise InvalidImage(f"the JPEG file has over {MAX_JPEG_SCANS} scans", remedy="save it anew")


def _read_webp(data: bytes) -> Header:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise InvalidImage("the WebP file is truncated", remedy="send the whole file")
    chunks: dict[bytes, bytes] = {}
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length + (length & 1)
    width_px, height_px = _read_webp_size(chunks)
    exif = chunks.get(b"EXIF", b"").removeprefix(b"Exif\x00\x00") or None
    return Header(
        "webp",
        width_px,
        height_px,
        num_frames=2 if b"ANMF" in chunks or b"ANIM" in chunks else 1,
        is_opaque=_is_webp_opaque(chunks),
        icc_profile=chunks.get(b"ICCP"),
        exif=exif,
        orientation=read_orientation(exif),
    )


def _read_webp_size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    if b"VP8X" in chunks:
        canvas = chunks[b"VP8X"]
        return (
            int.from_bytes(canvas[4:7], "little") + 1,
            int.from_bytes(canvas[7:10], "little") + 1,
        )
    if b"VP8L" in chunks:
        bits = struct.unpack_from("<I", chunks[b"VP8L"], 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if b"VP8 " in chunks:
        width_px, height_px = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
        return width_px & 0x3FFF, height_px & 0x3FFF
    raise InvalidImage("the WebP file holds no picture", remedy="save it anew")


def _is_webp_opaque(chunks: dict[bytes, bytes]) -> bool:
    if b"VP8X" in chunks and chunks[b"VP8X"][0] & 0x10:
        return False
    if b"VP8L" in chunks:
        return not struct.unpack_from("<I", chunks[b"VP8L"], 1)[0] >> 28 & 1
    return b"ALPH" not in chunks


def _read_tiff(data: bytes) -> Header:
    page = tiff.read_page(data)
    return Header(
        "tiff",
        page.width_px,
        page.height_px,
        num_frames=page.num_pages,
        bit_depth=16 if page.bits_per_sample == 16 else 8,
        num_channels=page.num_channels,
        icc_profile=page.icc_profile,
        orientation=page.orientation,
    )


def _is_heic(data: bytes) -> bool:
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length, 4))]
    if b"avif" in brands or b"avis" in brands:
        return False
    return any(brand in _HEIC_BRANDS or brand in _HEIC_SEQUENCES for brand in brands)


def _name_kind(data: bytes) -> str:
    for magic, name in _OTHER_KINDS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "AVIF" if b"avif" in data[8:64] else "a video"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "a web page or XML document"
    if head.startswith((b"{", b"[")):
        return "JSON"
    if head and all(byte in b"\t\n\r" or 32 <= byte for byte in head):
        return "text"
    return "a file that is no picture known here"
