"""Collections that stay on the versions they were begun with."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field

from serve.messages import Expert
from serve.schemas.base import Wire, shown

VersionText = Annotated[str, Field(min_length=1, max_length=80)]


class PinRequest(Wire):
    """`PUT /v1/pins/{collection}`."""

    model_config = shown(versions={"eye": "eye@1", "top": "2"})

    versions: Annotated[Mapping[Expert, VersionText], Field(min_length=1)] | None = None
    """`eye@1` or just `1` by expert; when absent, the default of every expert you may use."""


class PinnedCard(Wire):
    """One version, as it is."""

    version: str
    bundle_sha256: str
    """Of everything that shapes its pictures; a request is refused once it is another."""


class PinCard(Wire):
    """One collection that is pinned."""

    collection: str
    versions: Mapping[Expert, PinnedCard]
    """An expert that is absent is chosen as ever."""
    created_at: datetime
    updated_at: datetime


class PinPage(Wire):
    """Newest first."""

    items: tuple[PinCard, ...]
    next: str | None
    """Pass it as `after` for the next page; null on the last."""
