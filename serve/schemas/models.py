"""Which versions are served, and whether they are ready."""

from typing import Literal

from serve.messages import Expert
from serve.schemas.base import Wire


class ModelCard(Wire):
    """One expert version as `GET /v1/models` lists it."""

    version: str
    expert: Expert
    title: str
    status: str
    """Published status of the expert."""
    state: Literal["ready", "starting", "idle"]
    """`idle` when it has no replica and starts on the first request."""
    default: bool
    backend: str
    preview: bool
    licence: str
    commercial_use: bool
    steps: dict[str, int]


class ModelList(Wire):
    """Every version this deployment serves."""

    models: tuple[ModelCard, ...]


class Readiness(Wire):
    """`GET /readyz`: ready only when everything that must answer does."""

    ready: bool
    waiting_for: tuple[str, ...] = ()
