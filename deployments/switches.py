"""What each lossy switch of a version costs: its pictures beside those of the plain run."""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np

from deployments.backends.base import Backend
from deployments.backends.diffusion.quality import measure_quality
from deployments.bundle import Bundle, Size
from deployments.footprint import build_request
from deployments.measured import QualityDelta
from deployments.recipes import Diffusion, Speed
from serve.messages import UInt8Array

Switch = Literal["compile", "cuda_graphs", "fp8", "vae_tiling"]
NUM_PICTURES = 4
# No picture is that large, so nothing is decoded in tiles.
NEVER_TILED_MEGAPIXELS = 1e6

CreateBackend = Callable[[Bundle], Backend]
OnSwitch = Callable[[str], None]


def measure_switches(
    create: CreateBackend,
    bundle: Bundle,
    size: Size,
    num_steps: int,
    on_switch: OnSwitch = lambda name: None,
) -> tuple[QualityDelta, ...]:
    """Paint the same inputs from the same seeds without any switch, then with one at a time.

    Args:
        size, num_steps: of the pictures compared, inside the region only.

    Returns:
        One per lossy switch that the bundle has on for that size; none when it has none.
    """
    variants = list(_variants(bundle, size))
    if not variants:
        return ()
    on_switch("plain")
    plain = Speed(vae_tiling_above_megapixels=NEVER_TILED_MEGAPIXELS)
    wanted_nhwc = _paint(create, _with_speed(bundle, plain), size, num_steps)
    deltas = []
    for switch, speed in variants:
        on_switch(switch)
        images_nhwc = _paint(create, _with_speed(bundle, speed), size, num_steps)
        psnr_db, ssim = measure_quality(wanted_nhwc, images_nhwc)
        delta = QualityDelta(switch=switch, psnr_db=round(psnr_db, 2), ssim=round(ssim, 5))
        deltas.append(delta)
    return tuple(deltas)


def lossy_switches(bundle: Bundle, size: Size) -> tuple[Switch, ...]:
    """Which of them change pictures of that size."""
    return tuple(switch for switch, _ in _variants(bundle, size))


def _variants(bundle: Bundle, size: Size) -> Iterator[tuple[Switch, Speed]]:
    if not isinstance(bundle.backend, Diffusion):
        return
    speed = bundle.backend.speed
    above = speed.vae_tiling_above_megapixels
    is_tiled = size[0] * size[1] > above * 1e6
    for switch in get_args(Switch):
        changes: dict[str, object] = {"vae_tiling_above_megapixels": NEVER_TILED_MEGAPIXELS}
        if switch == "vae_tiling":
            changes["vae_tiling_above_megapixels"] = above
        else:
            changes[switch] = True
        if switch == "cuda_graphs":
            changes["compile"] = True  # they are graphs of compiled kernels
        if is_tiled if switch == "vae_tiling" else getattr(speed, switch):
            yield switch, Speed.model_validate(changes)


def _with_speed(bundle: Bundle, speed: Speed) -> Bundle:
    assert isinstance(bundle.backend, Diffusion)
    backend = bundle.backend.model_copy(update={"speed": speed})
    return bundle.model_copy(update={"backend": backend})


def _paint(create: CreateBackend, bundle: Bundle, size: Size, num_steps: int) -> UInt8Array:
    """(NUM_PICTURES, h, w, 3): what was painted, one picture per pass."""
    requests = [build_request(bundle, size, num_steps, seed) for seed in range(NUM_PICTURES)]
    rows, columns = (np.flatnonzero(requests[0].region_hw.any(axis=axis)) for axis in (1, 0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    backend = create(bundle)
    try:
        backend.load()
        painted = [
            backend.generate([request], lambda step, num_steps: None)[0].images_nhwc[0][inside]
            for request in requests
        ]
    finally:
        backend.unload()
    return np.stack(painted)
