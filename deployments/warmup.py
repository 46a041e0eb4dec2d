"""Has kernels compiled before the first request has to wait for them."""

from collections.abc import Iterator

from deployments.backends.base import Backend
from deployments.bundle import Bundle, Size
from deployments.footprint import build_request
from deployments.recipes import Diffusion


def warm_up(bundles: tuple[Bundle, ...], backend: Backend) -> None:
    """Paint noise at every shape that compiled kernels will be asked for.

    Versions on one base share its kernels, so the first stands for all. Nothing is painted for
    versions that compile nothing.
    """
    for size, batch in _shapes(bundles[0]):
        num_steps = bundles[0].tiers.draft
        requests = [build_request(bundles[0], size, num_steps, seed) for seed in range(batch)]
        backend.generate(requests, lambda step, num_steps: None)


def _shapes(bundle: Bundle) -> Iterator[tuple[Size, int]]:
    config = bundle.backend
    if not isinstance(config, Diffusion) or not config.speed.compile:
        return
    square = (bundle.crop.size_px, bundle.crop.size_px)
    sizes = bundle.crop.sizes or (square,)
    # Recorded graphs hold for one batch each; compiled kernels for any, once a second was seen.
    largest = config.max_batch_size if config.speed.cuda_graphs else min(2, config.max_batch_size)
    for size in sizes:
        yield size, 1
    for batch in range(2, largest + 1):
        for size in sizes if config.speed.cuda_graphs else sizes[:1]:
            yield size, batch
