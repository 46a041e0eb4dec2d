"""What an expert is asked, as files: pictures as PNG, the rest as JSON.

`sm4ll prepare` writes training inputs this way and golden samples are kept this way, so either can
be given to a backend again exactly as it was.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from serve.config import Config
from serve.errors import BundleInvalid
from serve.messages import Box, ExpertRequest, Landmarks, Point, UInt8Array

REQUEST_FILES = ("crop.png", "mask.png", "product.png", "silhouette.png", "request.json")


class SampleLandmarks(Config):
    """`Landmarks` as JSON: named points in pixels."""

    points: dict[str, Point] = {}
    face: Box | None = None

    @classmethod
    def of(cls, landmarks: Landmarks) -> "SampleLandmarks":
        points = {name: (float(x), float(y)) for name, (x, y) in landmarks.points.items()}
        face = landmarks.face
        if face is None:
            return cls(points=points)
        x0, y0, x1, y1 = face
        return cls(points=points, face=(float(x0), float(y0), float(x1), float(y1)))

    def read(self) -> Landmarks:
        return Landmarks(self.points, self.face)


class SampleRequest(Config):
    """An `ExpertRequest` without its pictures."""

    version: str
    seed: NonNegativeInt
    num_steps: PositiveInt
    guidance: NonNegativeFloat
    landmarks: SampleLandmarks
    """In pixels of crop.png."""
    product_landmarks: SampleLandmarks
    """In pixels of product.png."""
    has_silhouette: bool


def write_request(folder: Path, request: ExpertRequest) -> None:
    """Write one request; `folder` is there already."""
    write_png(folder / "crop.png", request.crop_hwc)
    write_png(folder / "mask.png", request.region_hw)
    write_png(folder / "product.png", request.product_hwc)
    if request.silhouette_hw is not None:
        write_png(folder / "silhouette.png", request.silhouette_hw)
    said = SampleRequest(
        version=request.version,
        seed=request.seed,
        num_steps=request.num_steps,
        guidance=request.guidance,
        landmarks=SampleLandmarks.of(request.landmarks),
        product_landmarks=SampleLandmarks.of(request.product_landmarks),
        has_silhouette=request.silhouette_hw is not None,
    )
    (folder / "request.json").write_text(said.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_request(folder: Path) -> ExpertRequest:
    """Read what `write_request` wrote; for one picture, without a deadline.

    Raises:
        BundleInvalid: a file is missing or damaged; names it.
    """
    file = folder / "request.json"
    try:
        said = SampleRequest.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise BundleInvalid(f"{file} is missing", remedy="write the sample again") from exc
    except (ValidationError, UnicodeDecodeError) as exc:
        raise BundleInvalid(f"{file}: {exc}", remedy="write the sample again") from exc
    return ExpertRequest(
        request_id=folder.name,
        version=said.version,
        crop_hwc=read_png(folder / "crop.png"),
        region_hw=read_png(folder / "mask.png"),
        silhouette_hw=read_png(folder / "silhouette.png") if said.has_silhouette else None,
        landmarks=said.landmarks.read(),
        product_hwc=read_png(folder / "product.png"),
        product_landmarks=said.product_landmarks.read(),
        seed=said.seed,
        num_steps=said.num_steps,
        guidance=said.guidance,
    )


def write_png(path: Path, pixels: UInt8Array) -> None:
    """(h, w), (h, w, 3) RGB or (h, w, 4) RGBA, every value kept, also under alpha 0."""
    if pixels.ndim == 3:
        to_bgr = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
        pixels = np.asarray(cv2.cvtColor(pixels, to_bgr), np.uint8)
    _, encoded = cv2.imencode(".png", pixels)
    path.write_bytes(encoded.tobytes())


def read_png(path: Path) -> UInt8Array:
    """What `write_png` wrote, the same array.

    Raises:
        BundleInvalid: missing or damaged.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError as exc:
        raise BundleInvalid(f"{path} is missing", remedy="write the sample again") from exc
    pixels: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        raise BundleInvalid(f"{path} is damaged", remedy="write the sample again")
    if pixels.ndim == 2:
        return pixels  # type: ignore[no-any-return]
    to_rgb = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, to_rgb), np.uint8)
