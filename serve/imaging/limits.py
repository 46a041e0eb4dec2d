"""How large a picture may be, checked before any of its pixels exist."""

from dataclasses import dataclass

from serve.errors import ImageTooLarge, InvalidImage


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one upload may cost."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side_px: int = 16_384
    min_side_px: int = 16
    max_frames: int = 1


def check_num_bytes(data: bytes, limits: ImageLimits) -> None:
    """Refuse an empty or oversized upload.

    Raises:
        InvalidImage: there are no bytes.
        ImageTooLarge: more bytes than allowed.
    """
    if not data:
        raise InvalidImage("the file is empty: 0 bytes", remedy="send the bytes of a picture")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the file has {len(data):,} bytes, {limits.max_bytes:,} are allowed",
            remedy="send a smaller or more strongly compressed picture",
        )


def check_size(width_px: int, height_px: int, num_frames: int, limits: ImageLimits) -> None:
    """Refuse a picture by the size and frame count its header declares.

    Raises:
        InvalidImage: a side is too short, or there is more than one frame.
        ImageTooLarge: a side is too long, or there are too many pixels.
    """
    size = f"the picture is {width_px}x{height_px}"
    if min(width_px, height_px) < limits.min_side_px:
        raise InvalidImage(
            f"{size}, too small: both sides must have at least {limits.min_side_px} pixels",
            remedy="send a larger picture",
        )
    if max(width_px, height_px) > limits.max_side_px:
        raise ImageTooLarge(
            f"{size}, a side may have at most {limits.max_side_px} pixels",
            remedy="scale the picture down",
        )
    if width_px * height_px > limits.max_pixels:
        raise ImageTooLarge(
            f"{size}, {width_px * height_px:,} pixels, {limits.max_pixels:,} are allowed",
            remedy="scale the picture down",
        )
    if num_frames > limits.max_frames:
        raise InvalidImage(
            f"the file is animated or has pages: more than {limits.max_frames} picture in it",
            remedy="send one still picture",
        )
