"""The product layer over the person is the final picture; the zip is the same every time."""

import io
import json
import zipfile

import numpy as np
from PIL import Image

from serve.imaging.colour import crop_to_srgb
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.encode import encode_image
from serve.imaging.layers import build_product_layer, build_region_map, pack_layers
from serve.imaging.limits import ImageLimits
from serve.imaging.paste import Pasted, paste_back
from serve.imaging.region import CropPolicy, extract_crop, plan_crop, upscale_region
from tests.image_files import make_region, make_rgb, save


def make_result() -> tuple[DecodedImage, Pasted, np.ndarray, np.ndarray]:
    image = decode_image(save(make_rgb(200, 150), "PNG"), ImageLimits())
    found = make_region(200, 150, (60, 40, 140, 110))
    plan = plan_crop(found, 200, 150, CropPolicy())
    region = upscale_region(found, plan)
    crop = extract_crop(crop_to_srgb(image, plan.box), plan)
    pasted = paste_back(image, 255 - crop, None, plan, region, feather_px=8)
    return image, pasted, region, found


def pack() -> bytes:
    image, pasted, region, _ = make_result()
    final = encode_image(pasted.pixels, None, format="png")
    layer = build_product_layer(image, pasted.overlay)
    area = build_region_map(image, region, pasted.overlay.box)
    return pack_layers(final, "png", layer, area, '{"exact": true}')


def test_product_layer_over_person_is_the_final_picture() -> None:
    image, pasted, _, _ = make_result()
    layer = build_product_layer(image, pasted.overlay).astype(np.float64)
    alpha = layer[..., 3:] / 255
    recomposed = np.rint(layer[..., :3] * alpha + image.pixels * (1 - alpha))
    assert np.abs(recomposed - pasted.pixels).max() <= 1
    assert alpha.max() == 1


def test_product_layer_is_clear_outside_the_region() -> None:
    image, pasted, _, found = make_result()
    layer = build_product_layer(image, pasted.overlay)
    assert (layer[found == 0] == 0).all()


def test_zip_holds_all_four_at_the_size_of_the_picture() -> None:
    with zipfile.ZipFile(io.BytesIO(pack())) as archive:
        assert archive.testzip() is None
        names = ["final.png", "product.png", "region.png", "receipt.json"]
        assert archive.namelist() == names
        assert json.loads(archive.read("receipt.json")) == {"exact": True}
        pictures = [Image.open(io.BytesIO(archive.read(name))) for name in names[:3]]
        assert [(picture.mode, picture.size) for picture in pictures] == [
            ("RGB", (200, 150)),
            ("RGBA", (200, 150)),
            ("L", (200, 150)),
        ]
        assert np.array_equal(np.asarray(pictures[2]), make_result()[3])


def test_same_inputs_give_the_same_zip() -> None:
    assert pack() == pack()
