"""Finds the row where what is worn above ends and what is worn below begins."""

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import Float32Array
from deployments.segmenters.classical.figure import Figure
from deployments.segmenters.classical.outline import Outline
from serve.messages import UInt8Array

UNIT_PX = 32.0
"""Face size in the copy that is searched."""
ROWS = (2.7, 4.7)
"""Below the eyes in face sizes: from a waistband worn high to the hem of a long shirt."""
ASIDE = 0.5
"""Face sizes either side of the spine: hands hang further out."""
WINDOW = 0.3
MAX_BARE = 0.4
MIN_STEP = 14.0
"""Lab units by which the two garments differ."""


def find_hem(
    image_hwc: UInt8Array, skin_hw: UInt8Array, outline: Outline, figure: Figure
) -> float | None:
    """The row, in pixels, of the strongest change of colour down the trunk.

    None where there is no such change, or where it is the end of a swimsuit or a short dress.
    """
    scale = UNIT_PX / figure.unit_px
    top, bottom = (int(figure.row(row)) for row in (ROWS[0] - 2 * WINDOW, ROWS[1] + 2 * WINDOW))
    top, bottom = max(top, 0), min(bottom, outline.bottom_row)
    if (bottom - top) * scale < 5 * WINDOW * UNIT_PX:
        return None
    strip = _strip(image_hwc, outline, (top, bottom), ASIDE * figure.unit_px)
    size = (strip.shape[1], max(round((bottom - top) * scale), 1))
    column = cv2.cvtColor(cv2.resize(strip, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2Lab)
    steps = _steps(np.median(column.astype(np.float32), axis=1))
    row = int(steps.argmax())
    hem = top + (row + 0.5) / scale
    below = slice(int(hem), int(hem + 2 * WINDOW * figure.unit_px))
    reach = ASIDE * figure.unit_px
    left, right = (max(int(outline.spine(hem) + side * reach), 0) for side in (-1, 1))
    bare = skin_hw[below, left:right]
    is_bare = bool(bare.size) and float(bare.mean()) > MAX_BARE
    return None if is_bare or steps[row] < MIN_STEP else hem


def _strip(
    image_hwc: UInt8Array, outline: Outline, rows: tuple[int, int], reach_px: float
) -> UInt8Array:
    """The trunk straightened: (rows, columns, 3) about the spine."""
    across = np.linspace(-reach_px, reach_px, 17, dtype=np.float32)
    spine = np.array([outline.spine(row) for row in range(*rows)], np.float32)
    columns = spine[:, None] + across[None]
    lines = np.broadcast_to(np.arange(*rows, dtype=np.float32)[:, None], columns.shape)
    strip = cv2.remap(
        image_hwc, columns, np.array(lines), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(strip, np.uint8)


def _steps(column: Float32Array) -> Float32Array:
    """Difference (N,) between the mean colours just above and just below each row."""
    reach = round(WINDOW * UNIT_PX)
    sums = np.concatenate((np.zeros((1, 3)), np.cumsum(column, axis=0)))
    steps = np.zeros(len(column), np.float32)
    for row in range(reach, len(column) - reach):
        above, below = sums[row] - sums[row - reach], sums[row + reach] - sums[row]
        steps[row] = np.linalg.norm((below - above) / reach)
    return steps
