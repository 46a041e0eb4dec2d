"""Backend kinds, by the name bundles use."""

from collections.abc import Callable

from deployments.backends.base import Backend
from deployments.backends.noop import NoopBackend
from deployments.bundle import Bundle
from deployments.extras import needing_weights
from deployments.recipes import Drillable, NoopConfig, WarpConfig
from serve.config import ReplicaPlan
from serve.errors import BundleInvalid
from serve.settings import Settings

Bundles = tuple[Bundle, ...]
"""The versions of one replica; more than one only where the kind can share a base."""


def _only(bundles: Bundles) -> Bundle:
    if len(bundles) != 1:
        kind = bundles[0].backend.kind
        raise BundleInvalid(f"{kind} has no base to share", remedy="give each version its own")
    return bundles[0]


def _create_warp(bundles: Bundles, plan: ReplicaPlan) -> Backend:
    # OpenCV takes 100 ms to import; a replica of another kind does not pay for it.
    from deployments.backends.warp.backend import WarpBackend

    bundle = _only(bundles)
    assert isinstance(bundle.backend, WarpConfig)
    return WarpBackend(bundle.version, bundle.backend)


def _create_noop(bundles: Bundles, plan: ReplicaPlan) -> Backend:
    bundle = _only(bundles)
    assert isinstance(bundle.backend, NoopConfig)
    return NoopBackend(bundle.version, bundle.backend)


def _create_diffusion(bundles: Bundles, plan: ReplicaPlan) -> Backend:
    # torch and diffusers take seconds to import and half a gigabyte to hold.
    from deployments.backends.diffusion.backend import DiffusionBackend

    return DiffusionBackend(bundles, plan)


def _create_hosted(bundles: Bundles, plan: ReplicaPlan) -> Backend:
    from deployments.backends.hosted.backend import HostedBackend

    # The key is read where it is used: it never travels through the cluster's own state.
    return HostedBackend(_only(bundles), Settings())


BACKENDS: dict[str, Callable[[Bundles, ReplicaPlan], Backend]] = {
    "warp": _create_warp,
    "noop": _create_noop,
    "inpaint": _create_diffusion,
    "diptych": _create_diffusion,
    "kontext": _create_diffusion,
    "hosted": _create_hosted,
}


def create_backend(bundles: Bundles, plan: ReplicaPlan) -> Backend:
    """Build the backend of one replica's versions; `load` is the caller's.

    Raises:
        BundleInvalid: a library it needs is not installed, or the versions cannot share a base.
    """
    config = bundles[0].backend
    with needing_weights(f"backend {config.kind}"):
        backend = BACKENDS[config.kind](bundles, plan)
    if isinstance(config, Drillable) and config.drill is not None:
        from deployments.backends.drill import DrillBackend

        return DrillBackend(backend, config.drill)
    return backend
