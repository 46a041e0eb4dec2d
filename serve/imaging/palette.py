"""The colours of a picture as a few samples of equal area, and how far two such sets are apart."""

import numpy as np
from numpy.typing import NDArray

from serve.difference import LabArray, ciede2000

NUM_COLOURS = 64
_NUM_MATCHED = 48
_NEVER = 1e6
_NUM_PIXELS = 4096
_LIGHTNESS_WEIGHT = 2.0
"""As for textiles: a fold in the shade is not another colour."""
_EXPOSURE = (0.75, 1.33)
"""On L* + 16, which goes with the cube root of light: half to twice and a third of it."""


def draw_palette(lab_hwc: LabArray, weight_hw: NDArray[np.float32]) -> LabArray | None:
    """Median cut into boxes of equal weight: the same for a picture of any size and place.

    Returns:
        (64, 3): the boxes' means; None where nothing has weight.
    """
    total = np.cumsum(weight_hw, dtype=np.float64)
    if total[-1] <= 0:
        return None
    places = np.searchsorted(total, (np.arange(_NUM_PIXELS) + 0.5) / _NUM_PIXELS * total[-1])
    boxes = lab_hwc.reshape(-1, 3)[places][None]
    while len(boxes) < NUM_COLOURS:
        widest = boxes.var(axis=1).argmax(axis=1)
        order = np.take_along_axis(boxes, widest[:, None, None], axis=2)[..., 0].argsort(
            axis=1, kind="stable"
        )
        boxes = np.take_along_axis(boxes, order[..., None], axis=1)
        boxes = boxes.reshape(2 * len(boxes), -1, 3)
    return np.asarray(boxes.mean(axis=1), np.float32)


def compare_palettes(product: LabArray, painted: LabArray) -> float:
    """Mean CIEDE2000 (k_L = 2) between matched colours, after taking back how the scene is lit.

    The three quarters of one that fit best go to as many of the other so that the sum is least: a
    partial optimal transport, exact because all weigh the same. Partial, because a pose hides parts
    of a product and beside it skin and shadow are painted too. A scene's exposure moves all colours
    of a thing on one ray; what is left of it is shading, which mostly differs in lightness.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and few requests ask

    lit = np.median(product[:, 0] + 16) / np.median(painted[:, 0] + 16)
    gain = np.clip(lit, *_EXPOSURE)
    exposed = painted * gain + np.array((16 * (gain - 1), 0, 0), np.float32)
    exposed[:, 0] = np.minimum(exposed[:, 0], 100)
    num_spare = NUM_COLOURS - _NUM_MATCHED
    # A spare row or column takes a colour for nothing; two spare ones never meet.
    costs = np.zeros((NUM_COLOURS + num_spare,) * 2)
    costs[:NUM_COLOURS, :NUM_COLOURS] = ciede2000(product[:, None], exposed, _LIGHTNESS_WEIGHT)
    costs[NUM_COLOURS:, NUM_COLOURS:] = _NEVER
    return float(costs[linear_sum_assignment(costs)].sum() / _NUM_MATCHED)
