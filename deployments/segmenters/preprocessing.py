"""What a network wants done to a picture, read from its preprocessor_config.json.

Done here with Pillow and numpy: the processors of transformers need torchvision.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve.errors import BundleInvalid
from serve.messages import UInt8Array

Float32Array = NDArray[np.float32]
FILES = ("preprocessor_config.json", "processor_config.json")
# Source: transformers 5.23.0, image_utils.py, IMAGENET_DEFAULT_MEAN and _STD.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pictures become a network's input."""

    width_px: int
    height_px: int
    resample: Image.Resampling
    scale: float
    """What pixel values are multiplied by."""
    mean: Triple
    std: Triple
    is_bgr: bool = False

    def apply(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Pictures of any size as one batch (N, 3, height_px, width_px), aspect not kept."""
        return self.normalise([self.resize(image) for image in images])

    def resize(self, image_hwc: UInt8Array) -> UInt8Array:
        if image_hwc.shape[:2] == (self.height_px, self.width_px):
            return image_hwc
        size = (self.width_px, self.height_px)
        return np.asarray(Image.fromarray(image_hwc).resize(size, self.resample), np.uint8)

    def normalise(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Pictures of one size (H, W, 3) as a batch (N, 3, H, W)."""
        scaled: Float32Array = np.stack(images).astype(np.float32) * np.float32(self.scale)
        pixels = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.is_bgr:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def read_preprocessing(folder: Path, default_size: tuple[int, int] = (512, 512)) -> Preprocessing:
    """Read a network's preprocessing.

    Args:
        default_size: width and height, where the file says none.

    Raises:
        BundleInvalid: no such file, or it says something that cannot be done.
    """
    settings = _read_settings(folder)
    width_px, height_px = _size(settings, folder, default_size)
    mean, std = (
        _triple(settings, "image_mean", IMAGENET[0]),
        _triple(settings, "image_std", IMAGENET[1]),
    )
    normalises = settings.get("do_normalize", True)
    return Preprocessing(
        width_px=width_px,
        height_px=height_px,
        resample=Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)),
        scale=float(settings.get("rescale_factor", 1 / 255))
        if settings.get("do_rescale", True)
        else 1.0,
        mean=mean if normalises else (0.0, 0.0, 0.0),
        std=std if normalises else (1.0, 1.0, 1.0),
        is_bgr=bool(settings.get("do_flip_channel_order", False)),
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise BundleInvalid(f"{path}: not readable as JSON: {exc}") from exc
        nested: dict[str, Any] = settings.get("image_processor", settings)
        return nested
    raise BundleInvalid(
        f"{folder}: no {FILES[0]}, so nothing says how the network wants its pictures",
        remedy="save the network's image processor beside it",
    )


def _size(settings: dict[str, Any], folder: Path, default_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that every picture is brought to, so that a batch is one pass."""
    # Crops would lose the borders of the picture: it is resized to the crop's size instead.
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if size is None:
        return default_size
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["width"]), int(size["height"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise BundleInvalid(
        f"{folder / FILES[0]}: size is {size}, not height and width",
        remedy='write {"height": ..., "width": ...} as the network was trained',
    )


def _triple(settings: dict[str, Any], key: str, default: Triple) -> Triple:
    red, green, blue = settings.get(key) or default
    return float(red), float(green), float(blue)
