"""The points of one person, named, with what is implied by several of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.segmenters.landmarks.layouts import LAYOUTS, Layout, Points
from serve.messages import Box, Landmarks, Point

FloatArray = NDArray[np.float64]

SEEN = 0.3
"""Value of a heatmap's peak below which the point is not there. Source: ViTPose's demos."""
FOREHEAD = 0.8
"""From the brows up, of the way from the brows to the base of the nose: thirds, less the hair."""
# Of the distance between the eyes: half a face's width, and from the eyes up and down to its ends.
# Source: adult means of 63 mm between pupils, 140 mm across, 113 mm to the chin, 75 mm up.
FACE_HALF, FACE_UP, FACE_DOWN = 1.1, 1.2, 1.8


@dataclass(frozen=True, slots=True)
class Pose:
    """What a keypoint network found of one person, in pixels of the picture."""

    points_k2: FloatArray
    scores_k: FloatArray
    layout_name: Points

    @property
    def nbytes(self) -> int:
        return self.points_k2.nbytes + self.scores_k.nbytes

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.layout_name]

    def named(self) -> dict[str, Point]:
        """Every named point whose parts were all seen."""
        found: dict[str, Point] = {}
        for name, indices in self.layout.named.items():
            parts = list(indices)
            if (self.scores_k[parts] >= SEEN).all():
                x, y = self.points_k2[parts].mean(axis=0)
                found[name] = float(x), float(y)
        return found

    def seen(self, indices: tuple[int, ...]) -> FloatArray | None:
        """These points (N, 2), where most of them were seen; else None."""
        parts = np.array(indices, np.int64)
        if not len(parts) or float((self.scores_k[parts] >= SEEN).mean()) < 0.6:
            return None
        return self.points_k2[parts[self.scores_k[parts] >= SEEN]]

    def forehead(self) -> Point | None:
        """Above the brows, where brows and the base of the nose were seen."""
        brows, base = self.seen(self.layout.brows), self.layout.nose_base
        if brows is None or base is None or self.scores_k[base] < SEEN:
            return None
        middle = brows.mean(axis=0)
        x, y = middle + FOREHEAD * (middle - self.points_k2[base])
        return float(x), float(y)

    def face_outline(self) -> FloatArray | None:
        """Points (N, 2) whose hull is the face: measured, else implied by eyes; None without."""
        outline = self.seen(self.layout.outline)
        if outline is not None:
            top = self.forehead()
            return outline if top is None else np.vstack([outline, top])
        axes = self.eye_axes()
        if axes is None:
            return None
        middle, across, down = axes
        turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        half = (FACE_UP + FACE_DOWN) / 2
        below = half * np.sin(turns) + (FACE_DOWN - FACE_UP) / 2
        sideways = FACE_HALF * np.cos(turns)
        return np.asarray(middle + sideways[:, None] * across + below[:, None] * down, np.float64)

    def eye_axes(self) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """Middle of the eyes, the way from the picture's left eye to its right one, and down."""
        points = self.named()
        if not {"left_eye", "right_eye"} <= set(points):
            return None
        left, right = np.array(points["right_eye"]), np.array(points["left_eye"])
        across = right - left
        down = np.array([-across[1], across[0]])
        nose = points.get("nose")
        if nose is not None and (np.array(nose) - (left + right) / 2) @ down < 0:
            down = -down
        return (left + right) / 2, across, down

    def landmarks(self) -> Landmarks:
        """What was found, by our names."""
        points = self.named()
        top = self.forehead()
        if top is not None:
            points["forehead"] = top
        return Landmarks(points, self.face_box())

    def face_box(self) -> Box | None:
        outline = self.face_outline()
        if outline is None:
            return None
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)
