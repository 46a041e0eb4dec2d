"""Backend kinds, by the name bundles use."""

from collections.abc import Callable

from deployments.backends.base import Backend
from deployments.backends.noop import NoopBackend


def _create_warp(version: str) -> Backend:
    # OpenCV takes 100 ms to import; a replica of another kind does not pay for it.
    from deployments.backends.warp.backend import WarpBackend

    return WarpBackend(version)


BACKENDS: dict[str, Callable[[str], Backend]] = {
    "warp": _create_warp,
    "noop": NoopBackend,
}


def create_backend(kind: str, version: str) -> Backend:
    """Build the backend of one expert version; `load` is the caller's."""
    return BACKENDS[kind](version)
