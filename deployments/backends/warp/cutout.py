"""Cuts a product out of its catalogue photo: plain or graded background, soft cast shadows."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.errors import GenerationFailed
from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_MAX_SIDE_PX = 1024
"""Crops are of the 768 px class: a larger product carries detail that nothing can show."""
_NEAR = (1.3, 4.0)
"""Least and most Lab distance below which a pixel is background, whatever the noise seems."""
_BLURRED_GAP = 14.0
"""Lab distance up to which compression pulls a gap of a few pixels toward the product's colour."""
_EDGE_PER_PX = 2.2
"""Lightness step per pixel that a cast shadow's soft rim does not reach and an outline does."""


def cut_out(product_hwc: UInt8Array) -> UInt8Array:
    """Separate the product from its background and crop tightly around it.

    Args:
        product_hwc: (h, w, 4) RGBA. Its alpha is used when any of it is transparent.

    Returns:
        (h', w', 4) RGBA, straight alpha, longer side at most 1024; colours under the soft edge are
        the product's, without background. The whole picture when it has no plain background.

    Raises:
        GenerationFailed: the picture shows nothing but background.
    """
    product_hwc = _limit_size(product_hwc)
    if np.count_nonzero(product_hwc[..., 3] < 250) > 0.002 * product_hwc[..., 3].size:
        return _crop(_decontaminate(product_hwc[..., :3], product_hwc[..., 3]))
    rgb_hwc = np.ascontiguousarray(product_hwc[..., :3])
    lab_hwc = _to_lab(rgb_hwc)
    background_hwc = _fit_background(lab_hwc)
    if background_hwc is None:
        return product_hwc.copy()
    solid_hw = _find_solid(rgb_hwc, lab_hwc, background_hwc)
    if not solid_hw.any():
        raise GenerationFailed(
            "The product picture was searched for a product on a plain background and holds "
            "nothing that differs from its background.",
            remedy="Send a picture of the product, or one with a transparent background.",
        )
    return _crop(_decontaminate(rgb_hwc, _soften(lab_hwc, solid_hw)))


def _limit_size(product_hwc: UInt8Array) -> UInt8Array:
    scale = _MAX_SIDE_PX / max(product_hwc.shape[:2])
    if scale >= 1.0:
        return product_hwc
    size = [max(1, round(side * scale)) for side in product_hwc.shape[1::-1]]
    # Premultiplied, so that hidden colours under zero alpha do not leak into the edge.
    alpha = product_hwc[..., 3:].astype(np.float32) / 255.0
    weighted = np.concatenate([product_hwc[..., :3] * alpha, alpha], axis=2)
    small = cv2.resize(weighted, size, interpolation=cv2.INTER_AREA)
    rgb = small[..., :3] / np.maximum(small[..., 3:], 1e-4)
    return np.asarray(np.rint(np.dstack([rgb, small[..., 3] * 255.0])).clip(0, 255), np.uint8)


def _to_lab(rgb_hwc: UInt8Array) -> FloatArray:
    lab = cv2.cvtColor(rgb_hwc.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    return np.asarray(lab, np.float32)


def _terms(height: int, width: int, degree: int) -> FloatArray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.stack([x**i * y**j for i, j in powers], axis=-1)


def _border(height: int, width: int) -> BoolArray:
    ring = np.ones((height, width), bool)
    depth = max(2, round(0.03 * min(height, width)))
    ring[depth:-depth, depth:-depth] = False
    return ring


def _fit_background(lab_hwc: FloatArray) -> FloatArray | None:
    """Model the background as a smooth surface per channel; None when the border is not plain."""
    height, width = lab_hwc.shape[:2]
    small = cv2.resize(lab_hwc, (96, 96), interpolation=cv2.INTER_AREA).astype(np.float32)
    used = _border(96, 96)
    start = np.median(small[used], axis=0)
    weights = used & (np.linalg.norm(small - start, axis=2) < 30.0)
    if weights.sum() < 0.4 * used.sum():
        return None
    surface = np.broadcast_to(start.astype(np.float32), small.shape)
    # Twice from the border alone, then from all that already looks like background.
    for degree, tolerance in ((1, 12.0), (2, 8.0), (2, 6.0), (3, 4.0), (3, 3.0)):
        terms = _terms(96, 96, degree)
        solution = np.linalg.lstsq(terms[weights], small[weights], rcond=None)[0]
        surface = (terms @ solution).astype(np.float32)
        close = np.linalg.norm(small - surface, axis=2) < tolerance
        grown = close if degree == 3 else close & used
        if grown.sum() < 40:
            break
        weights = grown
    inliers = np.linalg.norm(small - surface, axis=2)[used] < 5.0
    if inliers.mean() < 0.4:
        return None
    return np.asarray(cv2.resize(surface, (width, height)), np.float32)


def _touching_border(mask_hw: BoolArray) -> BoolArray:
    _, labels = cv2.connectedComponents(mask_hw.astype(np.uint8), connectivity=4)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.setdiff1d(edge, [0])) & mask_hw


def _find_outside(lab_hwc: FloatArray, background_hwc: FloatArray) -> BoolArray:
    """Background and the soft shadows on it, reached from the border without crossing an edge."""
    difference = lab_hwc - background_hwc
    distance = np.linalg.norm(difference, axis=2)
    near = distance < _near_limit(distance)
    passable = near | _is_shadow(lab_hwc, difference)
    # Opened, so that the flood does not slip through a one-pixel gap in a faint outline.
    kernel = np.ones((3, 3), np.uint8)
    return _touching_border(cv2.morphologyEx(passable.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0)


def _near_limit(distance_hw: FloatArray) -> float:
    noise = float(np.percentile(distance_hw[_border(*distance_hw.shape)], 60))
    return float(np.clip(2.5 * noise, *_NEAR))


def _is_shadow(lab_hwc: FloatArray, difference_hwc: FloatArray) -> BoolArray:
    darker = -difference_hwc[..., 0]
    tint = np.linalg.norm(difference_hwc[..., 1:], axis=2)
    lightness = cv2.GaussianBlur(lab_hwc[..., 0], (0, 0), 0.8)
    across = cv2.Sobel(lightness, -1, 1, 0, scale=0.125)
    down = cv2.Sobel(lightness, -1, 0, 1, scale=0.125)
    smooth = np.hypot(across, down) < _EDGE_PER_PX
    is_tinted = tint > 2.0 + 0.3 * darker  # a clear product tints its shadow
    return np.asarray((darker > 0) & (darker < 40) & ~is_tinted & smooth)


def _find_solid(rgb_hwc: UInt8Array, lab_hwc: FloatArray, background_hwc: FloatArray) -> BoolArray:
    """The product without its soft edge: filled, without specks, see-through holes left open."""
    difference = lab_hwc - background_hwc
    distance = np.linalg.norm(difference, axis=2)
    outside = _find_outside(lab_hwc, background_hwc)
    inside = _drop_specks(_without_halo(~outside, distance))
    if not inside.any():
        return inside
    tint = np.linalg.norm(difference[..., 1:], axis=2)
    strong = inside & ((tint > 9.0) | (difference[..., 0] < -50.0) | (difference[..., 0] > 3.5))
    filled = _fill(_refine(rgb_hwc, inside, strong))
    return _drop_specks(filled & ~_see_through(filled, distance))


def _without_halo(inside_hw: BoolArray, distance_hw: FloatArray) -> BoolArray:
    """Take off the pale rim of one 8 px block that JPEG and sharpening leave beside an outline."""
    pale = inside_hw & (distance_hw < 7.0)
    contrast = (inside_hw & (distance_hw > 20.0)).astype(np.uint8)
    mass = cv2.morphologyEx(contrast, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (23, 23))
    beside_mass = cv2.dilate(mass, reach) > 0
    beside_outside = cv2.dilate((~inside_hw).astype(np.uint8), reach) > 0
    return inside_hw & ~(pale & beside_mass & beside_outside)


def _drop_specks(mask_hw: BoolArray) -> BoolArray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask_hw.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    if count < 2 or areas.max() < 0.0005 * mask_hw.size:
        return np.zeros_like(mask_hw)
    # A second shoe is far above a twentieth of the first, a shadow's rest far below.
    return np.asarray((areas > 0.05 * areas.max())[labels])


def _refine(rgb_hwc: UInt8Array, inside_hw: BoolArray, strong_hw: BoolArray) -> BoolArray:
    """Let colour statistics decide what is neither clearly product nor clearly background."""
    marks = np.where(inside_hw, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    kernel = np.ones((5, 5), np.uint8)
    rim = cv2.dilate(inside_hw.astype(np.uint8), kernel) > inside_hw
    marks[rim] = cv2.GC_PR_BGD
    core = cv2.erode(strong_hw.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    marks[core] = cv2.GC_FGD
    if not core.any():
        return inside_hw
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    x, y, width, height = cv2.boundingRect(inside_hw.astype(np.uint8))
    # The background far from the product tells nothing new and takes most of the time.
    box = slice(max(0, y - 24), y + height + 24), slice(max(0, x - 24), x + width + 24)
    part = np.ascontiguousarray(marks[box])
    if not (part == cv2.GC_BGD).any():
        return inside_hw
    picture = np.ascontiguousarray(rgb_hwc[box])
    cv2.grabCut(picture, part, (0, 0, 1, 1), *models, 2, cv2.GC_INIT_WITH_MASK)
    refined = inside_hw.copy()
    refined[box] = np.isin(part, (cv2.GC_FGD, cv2.GC_PR_FGD))
    return refined


def _see_through(inside_hw: BoolArray, distance_hw: FloatArray) -> BoolArray:
    """Gaps that the product encloses: between legs, a sleeve and the body, glasses and temple.

    A white print on a white background looks the same, but is neither tall and thin nor large, or
    is one of many stripes.
    """
    gaps = (inside_hw & (distance_hw < _BLURRED_GAP)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(gaps, connectivity=8)
    found = []
    product_area, product_height = inside_hw.sum(), np.ptp(np.nonzero(inside_hw)[0])
    limit = 2.0 * _near_limit(distance_hw)
    for label in range(1, count):
        height, area = stats[label, cv2.CC_STAT_HEIGHT], stats[label, cv2.CC_STAT_AREA]
        is_thin = height > 0.04 * product_height and height**2 > 4.0 * area
        if not (is_thin or area > 0.12 * product_area):
            continue
        gap = (labels == label).astype(np.uint8)
        is_open = (cv2.dilate(gap, np.ones((3, 3)))[~inside_hw] > 0).any()
        if is_thin and not is_open and height < 0.15 * product_height:
            continue
        ring = cv2.dilate(gap, np.ones((15, 15))) > cv2.dilate(gap, np.ones((7, 7)))
        around = distance_hw[ring & inside_hw]
        if around.size and np.median(around) > 20.0 and np.median(distance_hw[gap > 0]) < limit:
            found.append(gap)
    return np.asarray(np.sum(found, axis=0) > 0) if 0 < len(found) < 4 else ~inside_hw & inside_hw


def _fill(mask_hw: BoolArray) -> BoolArray:
    return mask_hw | (~mask_hw & ~_touching_border(~mask_hw))


def _shrink(mask_hw: BoolArray, kernel: UInt8Array) -> FloatArray:
    # Beyond the picture counts as product: what the border cuts off has no outline there.
    shrunk = cv2.erode(mask_hw.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(shrunk, np.float32)


def _blurred(image: FloatArray, weight_hw: FloatArray, sigma: float) -> FloatArray:
    """Average of `image` over the pixels that `weight_hw` names, spread to their surroundings."""
    spread = np.zeros_like(image)
    total = np.zeros_like(weight_hw)
    for factor in (1.0, 3.0, 9.0):
        near = cv2.GaussianBlur(image * weight_hw[..., None], (0, 0), sigma * factor)
        mass = cv2.GaussianBlur(weight_hw, (0, 0), sigma * factor)
        fresh = (total < 1e-3) & (mass >= 1e-3)
        spread[fresh] = near[fresh] / mass[fresh, None]
        total[fresh] = mass[fresh]
    return spread


def _soften(lab_hwc: FloatArray, solid_hw: BoolArray) -> UInt8Array:
    """Alpha from where each rim pixel's colour lies between product and background nearby."""
    solid = solid_hw.astype(np.uint8)
    kernel = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)), np.uint8)
    core = _shrink(solid_hw, kernel)
    far = 1.0 - cv2.dilate(solid, kernel).astype(np.float32)
    product = _blurred(lab_hwc, core, 2.0)
    background = _blurred(lab_hwc, far, 2.0)
    span = product - background
    length = np.maximum((span**2).sum(axis=2), 1e-3)
    share = ((lab_hwc - background) * span).sum(axis=2) / length
    shape = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 1.0)
    # Where both sides look alike, the outline's shape decides.
    trust = np.clip((np.sqrt(length) - 8.0) / 20.0, 0.0, 1.0)
    alpha = trust * share.clip(0, 1) + (1 - trust) * shape
    rim = (core == 0) & (far == 0)
    # A step toward the shape removes single stray pixels that the colour test lets through.
    alpha = np.where(rim, np.minimum(alpha, shape * 2.0), core)
    return np.asarray(np.rint(alpha.clip(0, 1) * 255.0), np.uint8)


def _decontaminate(rgb_hwc: UInt8Array, alpha_hw: UInt8Array) -> UInt8Array:
    """Give rim pixels the colour of the solid product beside them."""
    alpha = alpha_hw.astype(np.float32) / 255.0
    core = _shrink(alpha > 0.97, np.ones((3, 3), np.uint8))
    if not core.any():
        return np.dstack([rgb_hwc, alpha_hw])
    clean = _blurred(rgb_hwc.astype(np.float32), core, 1.5)
    rgb = np.where(core[..., None] > 0, rgb_hwc, np.rint(clean)).astype(np.uint8)
    return np.dstack([rgb, alpha_hw])


def _crop(rgba_hwc: UInt8Array) -> UInt8Array:
    x, y, width, height = cv2.boundingRect((rgba_hwc[..., 3] > 8).astype(np.uint8))
    if width == 0 or height == 0:
        raise GenerationFailed(
            "The product picture is transparent everywhere.",
            remedy="Send a picture in which the product is visible.",
        )
    return np.ascontiguousarray(rgba_hwc[y : y + height, x : x + width])
