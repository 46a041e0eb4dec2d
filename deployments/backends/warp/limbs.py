"""Finds bent limbs inside a mask of the person, where landmarks only guess them."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_ARM = (0.86, 0.78, 0.11)
"""Upper arm, forearm and radius in shoulder widths of joints."""
_LEG = (0.86, 0.86)
"""Thigh and shin in torso lengths."""


def refine_arms(body: Body, person_hw: BoolArray, skin_hw: BoolArray) -> Body:
    """Move arms that lie outside the person to where the person has one."""
    depth = _depth(person_hw)
    skin = _depth(skin_hw)
    lengths = _ARM[0] * body.unit_px, _ARM[1] * body.unit_px
    radius = _ARM[2] * body.unit_px
    arms = []
    for side, arm in enumerate(body.arms):
        if not (_is_inside(arm[0], depth.shape) and _is_inside(arm[1], depth.shape)):
            arms.append(arm)  # the crop ends before the arm: nothing to see
            continue
        outward = -1.0 if side == 0 else 1.0
        prior = np.array([0.30 * outward, 0.12])
        arms.append(_search(arm, lengths, radius, (depth, skin), prior, 150.0))
    return replace(body, arms=(arms[0], arms[1]))


def refine_legs(body: Body, legs_hw: BoolArray) -> Body:
    """Move the legs into the mask; the second one may not lie where the first one does."""
    taken: NDArray[np.float32] = np.zeros(legs_hw.shape, np.float32)
    lengths = _LEG[0] * body.torso_px, _LEG[1] * body.torso_px
    radius = 0.15 * body.unit_px
    legs: list[list[FloatArray]] = [[], []]
    depth = _depth(legs_hw)
    for side in (0, 1):
        outward = -1.0 if side == 0 else 1.0
        usual = np.array([0.1 * outward, 1.0])
        leg = _search(
            body.legs[side], lengths, radius, (depth - 2 * taken, taken * 0), usual, outward
        )
        legs[side] = leg
        for start, end in zip(leg[:-1], leg[1:], strict=True):
            first, last = ((int(x), int(y)) for x, y in np.rint(np.array([start, end])))
            cv2.line(taken, first, last, float(radius), max(1, int(1.3 * radius)))
    return replace(body, legs=(legs[0], legs[1]))


def _is_inside(point: FloatArray, shape: tuple[int, ...]) -> bool:
    return bool(0 <= point[0] < shape[1] and 0 <= point[1] < shape[0])


def _depth(mask_hw: BoolArray) -> NDArray[np.float32]:
    # What the picture's border cuts off goes on beyond it.
    padded = np.pad(mask_hw.astype(np.uint8), 1, mode="edge")
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def _search(
    limb: list[FloatArray],
    lengths: tuple[float, float],
    radius: float,
    maps: tuple[NDArray[np.float32], NDArray[np.float32]],
    prior: FloatArray,
    max_bend_deg: float,
) -> list[FloatArray]:
    """Best of many poses of two bones from the same root; the given one is one of them.

    Args:
        maps: depth inside the person and inside bare skin, in pixels.
        prior: direction in which a limb goes without evidence; its length is its weight.
    """
    root = limb[0]
    first = np.radians(np.arange(-180, 180, 7.5))
    bend = np.radians(np.arange(-max_bend_deg, max_bend_deg + 1, max_bend_deg / 10))
    upper, turn = (grid.ravel() for grid in np.meshgrid(first, bend, indexing="ij"))
    middle = root + lengths[0] * np.stack([np.cos(upper), np.sin(upper)], axis=1)
    lower = upper + turn
    end = middle + lengths[1] * np.stack([np.cos(lower), np.sin(lower)], axis=1)
    middle = np.concatenate([limb[1][None], middle])
    end = np.concatenate([limb[2][None], end])
    score = _score(root, middle, end, radius, maps)
    for start, stop, weight in ((root, middle, 1.0), (middle, end, 0.5)):
        way = stop - start
        way = way / np.maximum(np.linalg.norm(way, axis=1), 1e-6)[:, None]
        score += weight * (way @ prior)
    score[1:] -= 0.10 * np.abs(turn) / np.pi
    score[0] += 0.12
    best = int(score.argmax())
    return [root, middle[best], end[best]]


def _score(
    root: FloatArray,
    middle: FloatArray,
    end: FloatArray,
    radius: float,
    maps: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> FloatArray:
    """How well each pose runs along the middle of something as thick as a limb."""
    depth, bonus = maps
    radius = max(radius, 1.0)
    height, width = depth.shape
    total = np.zeros(len(middle))
    shares = np.linspace(0.2, 1.0, 9)
    for start, stop, weight in ((root[None], middle, 1.0), (middle, end, 1.0)):
        for share in shares:
            xy = np.rint((1 - share) * start + share * stop).astype(int)
            outside = (xy < -radius) | (xy > np.array([width, height]) + radius)
            clipped = xy.clip(0, (width - 1, height - 1))
            deep = depth[clipped[:, 1], clipped[:, 0]] / radius
            fits = np.minimum(deep, 1.0) - 0.5 * np.clip(deep - 1.3, 0.0, 1.0)
            bare = bonus[clipped[:, 1], clipped[:, 0]] / (0.6 * radius)
            fits = np.maximum(fits, 1.4 * np.minimum(bare, 1.0))
            fits = np.where(deep < 0.2, -0.8, fits)
            total += weight * np.where(outside.any(axis=1), 0.35, fits)
    return np.asarray(total / (2 * len(shares)))


def refine_hips(body: Body, cloth_hw: BoolArray) -> Body:
    """Move hips and knees sideways to the middle of the garment where it passes the hips."""
    middle = np.mean(body.hips, axis=0)
    shifts = []
    gap_px, margin = 2 * round(0.15 * body.unit_px) + 1, 0.25 * body.unit_px
    # Straps, tubes and prints split a garment that goes on beside them.
    joined = cv2.morphologyEx(
        cloth_hw.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((1, gap_px), np.uint8)
    )
    for share in (-0.25, -0.15, -0.05, 0.05):
        row = round(float(middle[1] + share * body.torso_px))
        if not 0 <= row < cloth_hw.shape[0]:
            continue
        padded = np.concatenate([[0], joined[row].astype(np.int8), [0]])
        starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
        if ((starts < middle[0] - margin) & (ends > middle[0] + margin)).any():
            shifts.append(0.0)  # amid the cloth: an arm beside the body must not pull
            continue
        widths = ends - starts
        fits = (widths > 0.45 * body.unit_px) & (widths < 1.7 * body.unit_px)
        if fits.any():
            centres = (starts + ends)[fits] / 2
            shifts.append(float(centres[np.abs(centres - middle[0]).argmin()] - middle[0]))
    if len(shifts) < 2 or abs(np.median(shifts)) < 0.1 * body.unit_px:
        return body
    move = np.array([np.clip(np.median(shifts), -0.9 * body.unit_px, 0.9 * body.unit_px), 0.0])
    hips = body.hips[0] + move, body.hips[1] + move
    legs = [[joint + move for joint in leg] for leg in body.legs]
    return replace(body, hips=hips, legs=(legs[0], legs[1]))
