"""How likely each pixel is the person: proportions, barriers and colours, weighed together."""

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import BoolArray, Float32Array, barrier_distance
from deployments.segmenters.classical.colours import ColourPlaces
from deployments.segmenters.classical.figure import SURE
from serve.messages import UInt8Array

CERTAIN = 4.0
"""Log odds above which, or below minus which, a prior is a seed."""
ROUNDS = 3
MAX_COLOUR_ODDS = 5.0
FILTER_RADIUS_PX = 4


def weigh(
    lab_hwc: UInt8Array, prior_hw: Float32Array, background_hw: BoolArray, share_hw: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Combine the cues at reduced size.

    Args:
        prior_hw: (H, W) log odds of being the person, from geometry alone.
        background_hw: (H, W) true where the background surely is.
        share_hw: (H, W) in [0, 1], what being unreachable from the background counts.

    Returns:
        Probability of being the person (H, W), and the prior with seeds that proved wrong undone.
    """
    distance, trust = _barrier_odds(lab_hwc, prior_hw, background_hw)
    is_seed = (prior_hw > CERTAIN) & ((distance > -2.0) | (prior_hw >= SURE))
    distance = np.where(distance > 0.0, share_hw * distance, distance)
    prior = np.where(is_seed, prior_hw, np.minimum(prior_hw, 2.0) * (1 - 0.3 * trust) + distance)
    prior = np.where(background_hw, np.float32(-CERTAIN), prior).astype(np.float32)
    places = ColourPlaces(lab_hwc)
    light = lab_hwc[..., 0].astype(np.float32) / 255.0
    belief = _probability(prior)
    for _ in range(ROUNDS):
        certainty = np.abs(2 * belief - 1) ** 1.5
        on = places.seen((belief * certainty).astype(np.float32))
        off = places.seen(((1 - belief) * certainty).astype(np.float32))
        odds = np.log((on + 0.02) / (off + 0.02))
        odds = 0.8 * prior + np.clip(odds, -MAX_COLOUR_ODDS, MAX_COLOUR_ODDS)
        belief = guided(light, _probability(odds), FILTER_RADIUS_PX, 4e-4)
    return belief, prior


def _barrier_odds(
    lab_hwc: UInt8Array, prior_hw: Float32Array, background_hw: BoolArray
) -> tuple[Float32Array, float]:
    """Log odds from the barrier distance, and in [0, 1] how well it tells inside from outside."""
    nothing = np.zeros_like(prior_hw), 0.0
    inside, outside = prior_hw > CERTAIN, background_hw | (prior_hw < -2.5)
    if not background_hw.any() or int(outside.sum()) < 50 or not inside.any():
        return nothing
    distance = barrier_distance(lab_hwc, background_hw)
    low = float(np.percentile(distance[outside], 80))
    span = max(float(np.percentile(distance[inside], 35)) - low, 0.0)
    trust = float(np.clip(span / 30.0, 0.0, 1.0))
    middle = low + 0.25 * span
    slope = np.where(distance < middle, 0.16 * span + 2.0, 0.3 * span + 2.0)
    odds = 2.0 * trust * np.clip((distance - middle) / slope, -1.4, 1.4)
    return odds.astype(np.float32), trust


def guided(
    guide_hw: Float32Array, values_hw: Float32Array, radius_px: int, epsilon: float
) -> Float32Array:
    """Smooth values in [0, 1] along the guide's edges (He et al., guided image filtering, 2010)."""
    size = (2 * radius_px + 1,) * 2
    mean_guide, mean_values = cv2.blur(guide_hw, size), cv2.blur(values_hw, size)
    shared = cv2.blur(guide_hw * values_hw, size) - mean_guide * mean_values
    slope = shared / (cv2.blur(guide_hw * guide_hw, size) - mean_guide**2 + epsilon)
    smooth = cv2.blur(slope, size) * guide_hw + cv2.blur(mean_values - slope * mean_guide, size)
    return np.asarray(np.clip(smooth, 0.0, 1.0), np.float32)


def _probability(odds: Float32Array) -> Float32Array:
    return (1.0 / (1.0 + np.exp(-odds))).astype(np.float32)
