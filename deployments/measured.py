"""What was measured of one version on one kind of device; read from beside the bundle."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from serve.config import Config


class Peak(Config):
    """Most device memory that one pass held, weights included."""

    width_px: PositiveInt
    height_px: PositiveInt
    batch: PositiveInt
    peak_gib: PositiveFloat


class ServiceTime(Config):
    """How long one picture of a batch took."""

    width_px: PositiveInt
    height_px: PositiveInt
    num_steps: PositiveInt
    batch: PositiveInt
    s_per_image: PositiveFloat


class QualityDelta(Config):
    """What a lossy switch cost against the plain run, same inputs and seed."""

    switch: Literal["compile", "cuda_graphs", "fp8", "vae_tiling"]
    psnr_db: float
    """Infinite is written as 99."""
    ssim: float


class Footprint(Config):
    """One version on one kind of device."""

    device: str
    """GPU name, or `cpu`."""
    device_gib: PositiveFloat
    driver: str | None = None
    torch: str
    date: str
    weights_gib: NonNegativeFloat
    adapter_gib: NonNegativeFloat = 0.0
    load_s: NonNegativeFloat
    peaks: tuple[Peak, ...] = ()
    times: tuple[ServiceTime, ...] = ()
    quality: tuple[QualityDelta, ...] = ()
