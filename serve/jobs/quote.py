"""What a job will cost, told before a pixel of it is decoded; pure."""

from collections.abc import Callable

from deployments.bundle import Bundle
from serve.schemas.tryon import TryOnOptions

PredictUnits = Callable[[str, float], float]
"""GPU-seconds of a version for so many steps x megapixels x images; see `Gate.predict`."""


def quote_s(predict: PredictUnits, bundle: Bundle, options: TryOnOptions) -> float:
    """As the gate will count it, for a square crop of the version's full size."""
    megapixels = bundle.crop.size_px**2 / 1e6
    num_units = bundle.num_steps(options.quality) * megapixels * options.num_images
    return predict(bundle.version, num_units)


def whole_ms(gpu_s: float) -> int:
    """As the ledger has it: nothing is free."""
    return max(1, round(gpu_s * 1e3))
