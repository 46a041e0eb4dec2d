"""The answer as layers: the final picture, the product alone, the region and the receipt."""

import zipfile
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.imaging.decode import DecodedImage
from serve.imaging.encode import encode_image
from serve.imaging.paste import Overlay

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same inputs give the same zip


def build_product_layer(image: DecodedImage, overlay: Overlay) -> NDArray[np.uint8]:
    """(H, W, 4) sRGB: what was painted, opaque where the picture changed, clear elsewhere."""
    x0, y0, x1, y1 = overlay.box
    layer = np.zeros((image.height, image.width, 4), np.uint8)
    weight = np.rint(overlay.weight_hw * 255).astype(np.uint8)
    layer[y0:y1, x0:x1, 3] = weight
    layer[y0:y1, x0:x1, :3] = np.where(weight[..., None] > 0, overlay.painted_hwc, 0)
    return layer


def build_region_map(
    image: DecodedImage, region_box_hw: NDArray[np.uint8], box: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """(H, W): the region at the size of the picture; white may change."""
    x0, y0, x1, y1 = box
    region = np.zeros((image.height, image.width), np.uint8)
    region[y0:y1, x0:x1] = region_box_hw
    return region


def pack_layers(
    final_bytes: bytes,
    ext: str,
    product_rgba: NDArray[np.uint8],
    region_full_hw: NDArray[np.uint8],
    receipt_json: bytes | str,
) -> bytes:
    """A zip of final.<ext>, product.png, region.png and receipt.json.

    Args:
        product_rgba: (H, W, 4) sRGB, straight alpha, at the size of the picture.
        region_full_hw: (H, W), white where the picture may change.
    """
    product = encode_image(product_rgba[..., :3], product_rgba[..., 3], format="png")
    _, region = cv2.imencode(".png", region_full_hw, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    receipt = receipt_json.encode() if isinstance(receipt_json, str) else receipt_json
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            (f"final.{ext}", final_bytes),
            ("product.png", product),
            ("region.png", region.tobytes()),
            ("receipt.json", receipt),
        ):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()
