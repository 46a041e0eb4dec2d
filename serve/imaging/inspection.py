"""What a picture file holds, told from its header: nothing is decoded."""

from dataclasses import dataclass

import pillow_heif

from serve.imaging.decode import map_decoder_errors
from serve.imaging.encode import MEDIA_TYPES
from serve.imaging.headers import read_header
from serve.imaging.limits import ImageLimits, check_num_bytes, check_size


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """A picture as it would be seen: upright."""

    media_type: str
    width_px: int
    height_px: int


def inspect_picture(data: bytes, limits: ImageLimits) -> PictureFacts:
    """
    Raises:
        ImageTooLarge: more bytes, pixels or a longer side than `limits` allow.
        InvalidImage: no picture of a kind known here, damaged in its header, animated, too small.
    """
    check_num_bytes(data, limits)
    header = read_header(data)
    width_px, height_px = header.width_px, header.height_px
    if header.format == "heic":
        with map_decoder_errors("heic"):
            file = pillow_heif.open_heif(data)
            width_px, height_px = file[file.primary_index].size
    check_size(width_px, height_px, header.num_frames, limits)
    if header.orientation >= 5:
        width_px, height_px = height_px, width_px
    return PictureFacts(MEDIA_TYPES[header.format], width_px, height_px)
