"""A picture file as upright pixels in its own colours and depth, or a typed refusal.

The pixels decoded here are the reference of the exactness promise: everything outside the region
is delivered as it leaves this module.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
import pillow_heif
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from serve.errors import ImageTooLarge, InvalidImage, Sm4llError
from serve.imaging import tiff
from serve.imaging.copies import CopyKind, note_copy
from serve.imaging.exif import clean_exif
from serve.imaging.headers import Format, Header, read_header, strip_png
from serve.imaging.limits import ImageLimits, check_num_bytes, check_size
from serve.imaging.profiles import convert_to_srgb, profile_space

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
_OPAQUE_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One picture, upright. Arrays are read-only: many steps look at the same memory."""

    pixels: Pixels
    """(H, W, 3) RGB in the space of `icc_profile`."""
    alpha: Pixels | None
    """(H, W), straight, in the depth of the pixels."""
    bit_depth: int
    icc_profile: bytes | None
    """To embed again on delivery; None means sRGB."""
    format: Format
    sha256: str
    """Hex digest of the file."""
    exif: bytes | None
    """Orientation 1 and no thumbnail; without the "Exif" prefix."""
    source_mode: str
    """Channels of the file: RGB, RGBA, L, LA, P, CMYK, LAB."""

    @property
    def has_pixels(self) -> bool:
        """False where they were dropped, to be decoded again when they are needed."""
        return any(self.pixels.strides)

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


class _Stored(NamedTuple):
    """Pixels as the file stores them, before orientation."""

    pixels: Pixels
    alpha: Pixels | None
    mode: str
    is_srgb: bool = False
    """True where the file's own space could not be kept and was converted."""


def decode_image(
    data: bytes, limits: ImageLimits, *, counts_as: CopyKind = "decode"
) -> DecodedImage:
    """Decode JPEG, PNG, WebP, TIFF or HEIC after checking size and frames from the header.

    CMYK, Lab and grey pictures with a profile become sRGB here, once.

    Args:
        counts_as: what the pixels are to whoever counts copies.

    Raises:
        ImageTooLarge: more bytes, pixels or a longer side than `limits` allow.
        InvalidImage: another format (named), damaged, truncated, animated or too small.
    """
    check_num_bytes(data, limits)
    header = read_header(data)
    if header.format != "heic":
        check_size(header.width_px, header.height_px, header.num_frames, limits)
    with map_decoder_errors(header.format):
        if header.format == "heic":
            header, stored = _decode_heic(data, header, limits)
        else:
            stored = _DECODERS[header.format](data, header)
            _check_decoded(stored, header)
    note_copy(counts_as, stored.pixels)
    keeps_profile = not stored.is_srgb and profile_space(header.icc_profile) == "RGB"
    pixels = _turn_upright(stored.pixels, header.orientation)
    alpha = None if stored.alpha is None else _turn_upright(stored.alpha, header.orientation)
    return DecodedImage(
        pixels=pixels,
        alpha=alpha,
        bit_depth=16 if pixels.dtype == np.uint16 else 8,
        icc_profile=header.icc_profile if keeps_profile else None,
        format=header.format,
        sha256=hashlib.sha256(data).hexdigest(),
        exif=clean_exif(header.exif),
        source_mode=stored.mode,
    )


@contextmanager
def map_decoder_errors(format: Format) -> Iterator[None]:
    try:
        yield
    except Sm4llError:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLarge(f"the {format} picture does not fit memory") from exc
    except Exception as exc:
        # Four decoders with no common error type, fed by strangers: whatever they raise on these
        # bytes is about these bytes.
        raise InvalidImage(
            f"the {format} file is damaged or truncated", remedy="save it anew and send it whole"
        ) from exc


def _check_decoded(stored: _Stored, header: Header) -> None:
    if stored.pixels.shape[:2] != (header.height_px, header.width_px):
        raise InvalidImage(f"the {header.format} file contradicts its header", remedy="save anew")


def _decode_jpeg(data: bytes, header: Header) -> _Stored:
    if header.num_channels != 3:
        return _from_pillow(JpegImagePlugin.JpegImageFile(BytesIO(data)), header)
    try:
        # Straight into the array, as RGB: bit for bit what OpenCV and Pillow give, at 12 MP in a
        # third of their time (tests/bench/codecs.py).
        return _Stored(simplejpeg.decode_jpeg(data, "RGB"), None, "RGB")
    except ValueError:
        # It refuses what is damaged but readable, and kinds it cannot name.
        return _from_cv2(data, _OPAQUE_RGB)


def _decode_png(data: bytes, header: Header) -> _Stored:
    pixels_only = strip_png(data)
    if header.num_channels >= 3:
        return _from_cv2(pixels_only, _OPAQUE_RGB if header.is_opaque else cv2.IMREAD_UNCHANGED)
    if header.bit_depth == 16:
        return _from_grey16(_from_cv2(pixels_only, cv2.IMREAD_UNCHANGED), header)
    return _from_pillow(PngImagePlugin.PngImageFile(BytesIO(pixels_only)), header)


def _decode_webp(data: bytes, header: Header) -> _Stored:
    return _from_cv2(data, _OPAQUE_RGB if header.is_opaque else cv2.IMREAD_UNCHANGED)


def _decode_tiff(data: bytes, header: Header) -> _Stored:
    page = tiff.read_page(data)
    upright = tiff.reset_orientation(data, page)
    if header.bit_depth == 8 or page.photometric not in (0, 1, 2):
        return _from_pillow(TiffImagePlugin.TiffImageFile(BytesIO(upright)), header)
    stored = _from_cv2(upright, cv2.IMREAD_UNCHANGED)
    if page.photometric == 0:  # white is zero
        stored = stored._replace(pixels=np.invert(stored.pixels))
    if page.has_premultiplied_alpha and stored.alpha is not None:
        stored = stored._replace(pixels=_unpremultiply(stored.pixels, stored.alpha))
    return _from_grey16(stored, header) if page.photometric < 2 else stored


_DECODERS: dict[Format, Callable[[bytes, Header], _Stored]] = {
    "jpeg": _decode_jpeg,
    "png": _decode_png,
    "webp": _decode_webp,
    "tiff": _decode_tiff,
}


def _decode_heic(data: bytes, header: Header, limits: ImageLimits) -> tuple[Header, _Stored]:
    """The primary picture; libheif turns it upright itself."""
    file = pillow_heif.open_heif(data)
    picture: Any = file[file.primary_index]
    width_px, height_px = picture.size
    check_size(width_px, height_px, header.num_frames, limits)
    image = Image.frombuffer(
        picture.mode, picture.size, picture.data, "raw", picture.mode, picture.stride
    )
    exif = (picture.info.get("exif") or b"").removeprefix(b"Exif\x00\x00") or None
    profile = picture.info.get("icc_profile")
    header = Header("heic", width_px, height_px, icc_profile=profile, exif=exif)
    return header, _from_pillow(image, header)


def _from_cv2(data: bytes, flags: int) -> _Stored:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if decoded is None or decoded.dtype not in (np.uint8, np.uint16):
        raise InvalidImage("the file is damaged or truncated", remedy="save it anew")
    if decoded.ndim == 2:
        return _Stored(cv2.cvtColor(decoded, cv2.COLOR_GRAY2RGB), None, "L")  # type: ignore[arg-type]
    if flags == _OPAQUE_RGB:
        return _Stored(decoded, None, "RGB")  # type: ignore[arg-type]
    if decoded.shape[2] == 3:
        turned: Any = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        note_copy("convert", turned)
        return _Stored(turned, None, "RGB")
    pixels: Any = cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB)
    note_copy("convert", pixels)
    alpha: Any = np.ascontiguousarray(decoded[..., 3])
    return _Stored(pixels, alpha, "RGBA")


def _from_grey16(stored: _Stored, header: Header) -> _Stored:
    mode = "L" if stored.alpha is None else "LA"
    if profile_space(header.icc_profile) != "GRAY":
        return stored._replace(mode=mode)
    # lcms sees only a ramp: what lies between its 256 steps is interpolated at 16 bit.
    ramp = convert_to_srgb(
        Image.fromarray(np.arange(256, dtype=np.uint8)[None]), header.icc_profile
    )
    steps = np.asarray(ramp)[0, :, 0].astype(np.float64) * 257
    table = np.interp(np.arange(65536), np.arange(256) * 257, steps).round().astype(np.uint16)
    return _Stored(table[stored.pixels], stored.alpha, mode, is_srgb=True)


def _from_pillow(image: Image.Image, header: Header) -> _Stored:
    mode = image.mode
    if mode in ("F", "I"):
        raise InvalidImage(f"pixels of mode {mode} are not supported", remedy="use 8 or 16 bit")
    has_alpha = mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if has_alpha:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        return _Stored(np.asarray(image)[..., :3], alpha, mode)
    space = profile_space(header.icc_profile)
    if mode in ("CMYK", "LAB") or (mode in ("L", "1") and space == "GRAY"):
        image = image.convert("L") if mode == "1" else image
        profile = header.icc_profile if space != "RGB" else None
        return _Stored(np.asarray(convert_to_srgb(image, profile)), None, mode, is_srgb=True)
    if mode in ("L", "1"):
        # One channel out of Pillow, three in OpenCV: a third of the bytes through Pillow's buffers.
        grey = np.asarray(image if mode == "L" else image.convert("L"))
        return _Stored(np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8), None, mode)
    return _Stored(np.asarray(image if mode == "RGB" else image.convert("RGB")), None, mode)


def _unpremultiply(pixels: Pixels, alpha: Pixels) -> NDArray[np.uint16]:
    whole = np.maximum(alpha, 1).astype(np.float32)[..., None] / 65535
    return np.minimum(pixels / whole, 65535).round().astype(np.uint16)


def _turn_upright(array: Any, orientation: int) -> Any:
    """Apply an EXIF orientation; always contiguous and read-only."""
    if orientation >= 5:
        array = np.swapaxes(array, 0, 1)
    if orientation in (2, 3, 7, 6):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
        note_copy("turn", array)
    array.flags.writeable = False
    return array
