"""Finds the face to work on: proposals from cascades, kept only when many jittered looks agree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from deployments.segmenters.classical.cascades import Cascades, Hit, Search
from deployments.segmenters.classical.skin import is_grey_picture, loose_skin
from serve.messages import Point, UInt8Array

FAST_SIDE_PX = 640
PROFILE_SIDE_PX = 512
LOOK_FACE_PX = 60
"""Size at which a proposal is looked at again."""
LOOK_SIDE_PX = 126
NEAR_SIDE_PX = 150
LOOK_ROLLS = (-30.0, -15.0, 0.0, 15.0, 30.0)
NEAR_ROLLS = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)
HEAD_ROLLS = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)
MIN_HEAD_VOTES = 5
"""Where a figure is sure, about its head: heads thrown back answer seldom, but in one place."""
MIN_NEAR_VOTES = 3
MIN_NEAR_FRONTAL = 3
ENOUGH_VOTES = 4.0
MIN_VOTES = 2.6
MIN_SUSPICION = 1.7
MIN_SKIN = 0.3
MIN_NEAR_SKIN = 0.5
MIN_RELIEF = 2.0
"""Faces measure 5 and more, thighs and shoulders about 1."""
RELIEF_AREA = (slice(45, 90), slice(40, 86))
"""Rows and columns of a close-up that hold brows to mouth."""
PROFILE_VOTE = 0.9
MERGE_DISTANCE = 0.5


@dataclass(frozen=True, slots=True)
class FaceFound:
    """One face, as the cascades see it: a square about the features, without hair."""

    x: float
    y: float
    """Centre, in pixels."""
    size_px: float
    """Side of the square; about 1.0 to 1.1 times the distance between the ears."""
    roll: float
    """Degrees the head is tilted clockwise in the picture."""
    facing: float
    """-1 in profile to the picture's left, 1 to its right, 0 towards the camera."""
    votes: float
    skin: float
    """Fraction of the inner face that may be skin, 1.0 in a black-and-white picture."""

    @property
    def score(self) -> float:
        return float(self.votes * (0.35 + self.skin) * self.size_px**0.5)


class FaceFinder:
    """Finds faces in an upright picture. Not thread-safe."""

    def __init__(self, cascades: Cascades) -> None:
        self._cascades = cascades

    def find(self, image_hwc: UInt8Array) -> FaceFound | None:
        """Return the face of the main person, or None when no proposal stands up to scrutiny."""
        gray = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
        picture = _Picture(image_hwc, np.asarray(gray, np.uint8))
        for propose in (self._propose_fast, self._propose_profiles, self._propose_tilted):
            faces = [self._look(picture, hit) for hit in _merge(propose(picture))]
            best = max((face for face in faces if face), key=lambda f: f.score, default=None)
            if best is not None:
                return best
        return None

    def find_near(self, image_hwc: UInt8Array, spot: Point, size_px: float) -> FaceFound | None:
        """Look closely about where a body says the head is."""
        gray = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
        picture = _Picture(image_hwc, np.asarray(gray, np.uint8))
        about = Hit("", spot[0], spot[1], 1.6 * size_px, 0.0, 0)
        hits: list[Hit] = []
        for equalized in (False, True):
            close, to_picture = picture.close_up(about, NEAR_SIDE_PX, equalized=equalized)
            side = size_px / to_picture[0]
            search = Search(0.6 * side, 1.3 * side, 1.1, 1)
            for name in ("frontalface_alt2", "profileface"):
                for roll in HEAD_ROLLS:
                    hits += self._cascades.find(close, name, search, roll)
            cluster = max((_beside(hit, hits) for hit in hits), key=len, default=[])
            if len(cluster) >= MIN_HEAD_VOTES:
                break
        if len(cluster) < MIN_HEAD_VOTES or len({hit.roll for hit in cluster}) < MIN_NEAR_VOTES:
            return None
        face = _agree(cluster, to_picture, 1.0)
        skin = picture.skin_fraction(_as_hit(face))
        relief = picture.relief(_as_hit(face))
        return replace(face, skin=skin) if skin >= MIN_SKIN and relief >= MIN_RELIEF else None

    def _propose_fast(self, picture: "_Picture") -> list[Hit]:
        gray, scale = picture.at(FAST_SIDE_PX, equalized=True)
        hits = self._cascades.find(gray, "frontalface_alt2", _search(gray, 20, neighbors=1))
        return [_scaled(hit, 1 / scale) for hit in hits]

    def _propose_profiles(self, picture: "_Picture") -> list[Hit]:
        gray, scale = picture.at(PROFILE_SIDE_PX, equalized=False)
        hits = self._cascades.find(gray, "profileface", _search(gray, 20, neighbors=1))
        hits += self._cascades.find(gray, "frontalface_default", _search(gray, 24, neighbors=2))
        return [_scaled(hit, 1 / scale) for hit in hits]

    def _propose_tilted(self, picture: "_Picture") -> list[Hit]:
        gray, scale = picture.at(PROFILE_SIDE_PX, equalized=True)
        search = _search(gray, 24, neighbors=1)
        hits = [
            hit
            for roll in (-25.0, 25.0)
            for hit in self._cascades.find(gray, "frontalface_alt2", search, roll)
        ]
        return [_scaled(hit, 1 / scale) for hit in hits]

    def _look(self, picture: "_Picture", proposal: Hit) -> FaceFound | None:
        """Look again at several angles; a face answers at many, a window or a knee at one."""
        skin = picture.skin_fraction(proposal)
        if skin < MIN_SKIN or picture.relief(proposal) < MIN_RELIEF:
            return None
        close, to_picture = picture.close_up(proposal)
        votes: list[Hit] = []
        for name in ("frontalface_alt2", "frontalface_default", "profileface"):
            votes += self._vote(close, name)
            frontal = sum(vote.facing == 0 for vote in votes)
            if name == "frontalface_default" and frontal >= ENOUGH_VOTES:
                break
        # Knees and thighs pass for profiles at a first look; only frontal votes are taken at once.
        if _weigh(votes) >= MIN_VOTES and sum(vote.facing == 0 for vote in votes) >= 2:
            return _agree(votes, to_picture, skin)
        if _weigh(votes) < MIN_SUSPICION:
            return None
        return self._look_again(picture, _as_hit(_agree(votes, to_picture, skin)))

    def _look_again(self, picture: "_Picture", suspect: Hit) -> FaceFound | None:
        """Centred on what was suspected and in finer steps, a profile answers more often."""
        skin = picture.skin_fraction(suspect)
        if skin < MIN_NEAR_SKIN or picture.relief(suspect) < MIN_RELIEF:
            return None
        for equalized in (False, True):
            close, to_picture = picture.close_up(suspect, equalized=equalized)
            votes = [
                vote
                for name in ("frontalface_alt2", "profileface")
                for vote in self._vote(close, name, NEAR_ROLLS)
            ]
            cluster = max((_beside(vote, votes) for vote in votes), key=len, default=[])
            rolls = {(vote.facing, vote.roll) for vote in cluster}
            frontal = sum(facing == 0 for facing, _ in rolls)
            if frontal >= MIN_NEAR_FRONTAL or len(rolls) >= MIN_NEAR_VOTES:
                return _agree(cluster, to_picture, skin)
        return None

    def _vote(
        self, close_hw: UInt8Array, name: str, rolls: Sequence[float] = LOOK_ROLLS
    ) -> list[Hit]:
        # A profile's box is proposed much too wide more often than a frontal one's.
        least = 0.5 if name == "profileface" else 0.66
        search = Search(LOOK_FACE_PX * least, LOOK_FACE_PX * 1.6, 1.15, 1)
        middle = close_hw.shape[0] / 2
        return [
            hit
            for roll in rolls
            for hit in self._cascades.find(close_hw, name, search, roll)
            if max(abs(hit.x - middle), abs(hit.y - middle)) < 0.36 * LOOK_FACE_PX
        ]


class _Picture:
    """One picture at the sizes and brightnesses the stages ask for."""

    def __init__(self, image_hwc: UInt8Array, gray_hw: UInt8Array) -> None:
        self._gray = gray_hw
        grey_picture = is_grey_picture(image_hwc)
        self._skin = np.ones_like(gray_hw) if grey_picture else loose_skin(image_hwc)

    def at(self, side_px: int, *, equalized: bool) -> tuple[UInt8Array, float]:
        scale = side_px / max(self._gray.shape)
        mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        gray = cv2.resize(self._gray, None, fx=scale, fy=scale, interpolation=mode)
        if equalized:
            gray = cv2.createCLAHE(2.0, (8, 8)).apply(gray)
        return np.asarray(gray, np.uint8), scale

    def close_up(
        self, hit: Hit, side: int = LOOK_SIDE_PX, *, equalized: bool = True
    ) -> tuple[UInt8Array, tuple[float, float, float]]:
        """A square of twice the proposal's size, and (scale, x, y) back into the picture."""
        scale = side / 2.1 / hit.size_px
        left, top = hit.x - side / 2 / scale, hit.y - side / 2 / scale
        matrix = np.array([[scale, 0.0, -left * scale], [0.0, scale, -top * scale]])
        smooth = self._gray if scale > 0.6 else cv2.blur(self._gray, (_odd(1 / scale),) * 2)
        close = cv2.warpAffine(smooth, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        if equalized:
            close = cv2.createCLAHE(2.0, (3, 3)).apply(close)
        return np.asarray(close, np.uint8), (1 / scale, left, top)

    def relief(self, hit: Hit) -> float:
        """Mean vertical change in grey values per pixel of a small copy: brows, eyes, mouth."""
        close, _ = self.close_up(hit, equalized=False)
        inner = close[RELIEF_AREA].astype(np.float32)
        return float(np.abs(cv2.Sobel(inner, cv2.CV_32F, 0, 1)).mean()) / 8.0

    def skin_fraction(self, hit: Hit) -> float:
        """Over the middle of the box, where even in profile there is face."""
        x0, x1 = (int(hit.x + hit.size_px * f) for f in (-0.28, 0.28))
        y0, y1 = (int(hit.y + hit.size_px * f) for f in (-0.2, 0.36))
        inner = self._skin[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        return float(inner.mean()) if inner.size else 0.0


def _odd(value: float) -> int:
    return 2 * int(value / 2) + 1


def _search(gray_hw: UInt8Array, min_px: float, neighbors: int) -> Search:
    return Search(min_px, 0.9 * min(gray_hw.shape), 1.2, neighbors)


def _moved(hit: Hit, x: float, y: float) -> Hit:
    return replace(hit, x=hit.x + x, y=hit.y + y)


def _as_hit(face: FaceFound) -> Hit:
    return Hit("", face.x, face.y, face.size_px, face.roll, 0)


def _weigh(votes: Sequence[Hit]) -> float:
    return sum(PROFILE_VOTE if vote.facing else 1.0 for vote in votes)


def _scaled(hit: Hit, scale: float) -> Hit:
    return replace(hit, x=hit.x * scale, y=hit.y * scale, size_px=hit.size_px * scale)


def _merge(hits: Sequence[Hit]) -> list[Hit]:
    """One proposal for each place; the first of a group speaks for it."""
    kept: list[Hit] = []
    for hit in hits:
        if not any(_is_same(hit, other) for other in kept):
            kept.append(hit)
    return kept


def _is_same(one: Hit, other: Hit) -> bool:
    reach = MERGE_DISTANCE * min(one.size_px, other.size_px)
    near = max(abs(one.x - other.x), abs(one.y - other.y)) < reach
    return near and 0.6 < one.size_px / other.size_px < 1.6


def _beside(vote: Hit, votes: Sequence[Hit]) -> list[Hit]:
    return [other for other in votes if _is_same(vote, other)]


def _agree(votes: Sequence[Hit], to_picture: tuple[float, float, float], skin: float) -> FaceFound:
    """The median of the votes; profile boxes are wider, so frontal ones rule where they exist."""
    frontal = [vote for vote in votes if vote.facing == 0]
    ruling = frontal if len(frontal) >= 2 else votes
    scale, left, top = to_picture
    x, y, size = np.median([(v.x, v.y, v.size_px) for v in ruling], axis=0)
    shrink = 1.0 if ruling is frontal else 0.88
    return FaceFound(
        x=float(x) * scale + left,
        y=float(y) * scale + top,
        size_px=float(size) * scale * shrink,
        roll=float(np.mean([vote.roll for vote in ruling])),
        facing=float(sum(vote.facing for vote in votes) / len(votes)),
        votes=_weigh(votes),
        skin=skin,
    )
