"""Drawn people and products for the tests of the warp accessories."""

import cv2
import numpy as np

from serve.messages import ExpertRequest, Landmarks, UInt8Array

SIDE = 400
SKIN, HAIR, WALL = (214, 168, 140), (70, 45, 30), (150, 160, 165)
FRAME, LENS = (200, 30, 40), (40, 36, 34)


def make_request(
    crop: UInt8Array,
    region: UInt8Array,
    product: UInt8Array,
    landmarks: Landmarks | None = None,
    silhouette: UInt8Array | None = None,
    product_landmarks: Landmarks | None = None,
) -> ExpertRequest:
    if product.shape[2] == 3:
        product = np.dstack([product, np.full(product.shape[:2], 255, np.uint8)])
    return ExpertRequest(
        request_id="r",
        version="eye@1",
        crop_hwc=crop,
        region_hw=region,
        silhouette_hw=silhouette,
        landmarks=landmarks or Landmarks(),
        product_hwc=product,
        product_landmarks=product_landmarks or Landmarks(),
        seed=5,
    )


def turn(points: dict[str, tuple[float, float]], roll_deg: float) -> dict[str, tuple[float, float]]:
    """Points turned about the middle of the picture."""
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), roll_deg, 1.0)
    moved = {name: matrix @ (*point, 1.0) for name, point in points.items()}
    return {name: (float(x), float(y)) for name, (x, y) in moved.items()}


def draw_face(
    roll_deg: float = 0.0,
    skin: tuple[int, int, int] = SKIN,
    iris: tuple[int, int, int] = (60, 90, 60),
    lips: tuple[int, int, int] = (180, 70, 80),
) -> tuple[UInt8Array, Landmarks, UInt8Array]:
    """A frontal face, its landmarks and its silhouette."""
    image = np.full((SIDE, SIDE, 3), WALL, np.uint8)
    cv2.ellipse(image, (200, 190), (118, 150), 0, 0, 360, HAIR, -1)
    cv2.ellipse(image, (200, 210), (96, 125), 0, 0, 360, skin, -1)
    silhouette = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(silhouette, (200, 190), (118, 150), 0, 0, 360, 255, -1)
    for x in (155, 245):
        cv2.ellipse(image, (x, 190), (17, 9), 0, 0, 360, (240, 240, 240), -1)
        cv2.circle(image, (x, 190), 8, iris, -1)
        cv2.line(image, (x - 22, 168), (x + 22, 168), HAIR, 7)
    cv2.line(image, (200, 200), (200, 240), tuple(int(0.8 * c) for c in skin), 6)
    cv2.ellipse(image, (200, 285), (34, 11), 0, 0, 360, lips, -1)
    points = {"right_eye": (155.0, 190.0), "left_eye": (245.0, 190.0), "nose": (200.0, 243.0)}
    points |= {"mouth": (200.0, 285.0), "chin": (200.0, 334.0), "forehead": (200.0, 88.0)}
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), roll_deg, 1.0)
    size = (SIDE, SIDE)
    image = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE)
    silhouette = cv2.warpAffine(silhouette, matrix, size)
    face = (104.0, 86.0, 296.0, 336.0) if roll_deg == 0 else None
    return image, Landmarks(turn(points, roll_deg), face), silhouette


def eye_band(roll_deg: float = 0.0) -> UInt8Array:
    region = np.zeros((SIDE, SIDE), np.uint8)
    cv2.rectangle(region, (75, 135), (325, 265), 255, -1)
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), roll_deg, 1.0)
    return cv2.warpAffine(region, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST)


def draw_glasses() -> UInt8Array:
    """A front view on white: dark lenses 150 px apart, red rims."""
    image = np.full((360, 760, 3), 250, np.uint8)
    for x in (230, 530):
        cv2.ellipse(image, (x, 180), (135, 100), 0, 0, 360, FRAME, -1, cv2.LINE_AA)
    cv2.rectangle(image, (350, 130), (410, 165), FRAME, -1)
    for x in (230, 530):
        cv2.ellipse(image, (x, 180), (105, 72), 0, 0, 360, LENS, -1, cv2.LINE_AA)
    return cv2.resize(image, (380, 180), interpolation=cv2.INTER_AREA)


def draw_turned_glasses() -> UInt8Array:
    """The same glasses in a three-quarter view, the near temple folded out to the left."""
    corners = np.array([(42, 35), (338, 35), (338, 145), (42, 145)], np.float32)
    seen = np.array([(165, 130), (320, 95), (320, 170), (165, 235)], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    image = cv2.warpPerspective(
        draw_glasses(), matrix, (370, 280), flags=cv2.INTER_AREA, borderValue=(250, 250, 250)
    )
    temple = np.array([(172, 168), (45, 150), (30, 165), (38, 172), (55, 165), (172, 192)])
    cv2.fillPoly(image, [temple], FRAME, cv2.LINE_AA)
    return image


def draw_shoe(shape: tuple[int, int] = (240, 420), at: tuple[int, int] = (20, 20)) -> UInt8Array:
    """A shoe on white, toe left: yellow toe, blue heel, dark sole."""
    image = np.full((*shape, 3), 250, np.uint8)
    add_shoe(image, at)
    return image


def add_shoe(image: UInt8Array, at: tuple[int, int]) -> None:
    outline = np.array([(0, 150), (20, 100), (150, 60), (230, 0), (330, 0), (370, 60), (370, 150)])
    sole = np.array([(0, 150), (370, 150), (365, 190), (10, 190)])
    cv2.fillPoly(image, [outline + at], (40, 70, 190))
    toe = np.array([(0, 150), (20, 100), (130, 66), (130, 150)])
    cv2.fillPoly(image, [toe + at], (225, 190, 40))
    for k in range(4):
        x, y = 165 + 22 * k + at[0], 72 - 10 * k + at[1]
        cv2.line(image, (x, y), (x + 14, y + 34), (20, 20, 20), 5)
    cv2.fillPoly(image, [sole + at], (45, 45, 48))


def draw_legs(toes_right: bool) -> tuple[UInt8Array, Landmarks, UInt8Array]:
    """Two legs in green trousers with white shoes on brown ground, their landmarks, a region."""
    image = np.full((SIDE, SIDE, 3), (120, 95, 75), np.uint8)
    points = {}
    region = np.zeros((SIDE, SIDE), np.uint8)
    sign = 1 if toes_right else -1
    for side, x in (("right", 130), ("left", 290)):
        heel, toe = (x - 25 * sign, 320), (x + 65 * sign, 320)
        body = np.array([heel, (heel[0], 262), (x + 20 * sign, 262), (toe[0], 300), toe])
        cv2.fillPoly(image, [body], (236, 236, 232))
        cv2.rectangle(image, (x - 32, 0), (x + 32, 275), (30, 90, 60), -1)
        points[f"{side}_heel"] = (float(heel[0]), 320.0)
        points[f"{side}_toe"] = (float(toe[0]), 320.0)
        points[f"{side}_ankle"] = (float(x - 5 * sign), 268.0)
        points[f"{side}_knee"] = (float(x), 90.0)
        low, high = sorted((heel[0], toe[0]))
        cv2.rectangle(region, (low - 14, 235), (high + 14, 345), 255, -1)
    return image, Landmarks(points), region
