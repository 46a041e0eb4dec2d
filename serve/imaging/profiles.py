"""ICC profiles: what kind they are, and transforms between them and sRGB.

A profile that lcms cannot use is treated as sRGB: a colour a shade off is better than a refusal.
"""

from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

ColourSpace = Literal["RGB", "GRAY", "CMYK", "Lab", ""]
_SPACES: dict[bytes, ColourSpace] = {
    b"RGB ": "RGB",
    b"GRAY": "GRAY",
    b"CMYK": "CMYK",
    b"Lab ": "Lab",
}


def profile_space(icc_profile: bytes | None) -> ColourSpace:
    """The colour space a profile describes; empty for no profile or one that is damaged."""
    if icc_profile is None or len(icc_profile) < 132 or icc_profile[36:40] != b"acsp":
        return ""
    return _SPACES.get(icc_profile[16:20], "")


def convert_to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """One 8-bit picture of any mode as RGB in sRGB; without a usable profile, Pillow's guess."""
    transform = _build_transform(icc_profile, image.mode, "RGB", to_srgb=True)
    if transform is None:
        return image.convert("RGB")
    return ImageCms.applyTransform(image, transform) or image.convert("RGB")


def rgb_to_srgb(pixels_hwc: NDArray[np.uint8], icc_profile: bytes | None) -> NDArray[np.uint8]:
    """(H, W, 3) in the profile's space -> the same in sRGB."""
    return _apply(pixels_hwc, icc_profile, to_srgb=True)


def srgb_to_rgb(pixels_hwc: NDArray[np.uint8], icc_profile: bytes | None) -> NDArray[np.uint8]:
    """(H, W, 3) in sRGB -> the same in the profile's space."""
    return _apply(pixels_hwc, icc_profile, to_srgb=False)


def _apply(
    pixels_hwc: NDArray[np.uint8], icc_profile: bytes | None, *, to_srgb: bool
) -> NDArray[np.uint8]:
    transform = _build_transform(icc_profile, "RGB", "RGB", to_srgb=to_srgb)
    if transform is None:
        return pixels_hwc
    converted = ImageCms.applyTransform(Image.fromarray(pixels_hwc), transform)
    return pixels_hwc if converted is None else np.asarray(converted)


@lru_cache(maxsize=16)
def _build_transform(
    icc_profile: bytes | None, in_mode: str, out_mode: str, *, to_srgb: bool
) -> ImageCms.ImageCmsTransform | None:
    """None where there is nothing to convert or the profile cannot be used."""
    space = profile_space(icc_profile)
    if icc_profile is None or not space:
        return None
    srgb = ImageCms.createProfile("sRGB")
    try:
        other = ImageCms.ImageCmsProfile(BytesIO(icc_profile))
        first, second = (other, srgb) if to_srgb else (srgb, other)
        return ImageCms.buildTransform(
            first,
            second,
            in_mode,
            out_mode,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
