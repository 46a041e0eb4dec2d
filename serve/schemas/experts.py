"""Which version an expert's requests get about which nothing else decides."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from serve.messages import Expert
from serve.schemas.base import Wire, shown


class DefaultChange(Wire):
    """`PUT /v1/experts/{expert}/default`."""

    model_config = shown(version="eye@2")

    version: Annotated[str, Field(min_length=1, max_length=80)]
    """`eye@2` or just `2`; must be deployed."""


class ExpertCard(Wire):
    """One expert and its default."""

    expert: Expert
    default: str | None
    """What a request of a tenant without limits gets now; null where nothing is deployed."""
    source: Literal["family", "cluster"]
    """`cluster` where somebody set it while it ran; `family` where the first version listed in the
    family file counts, also because the one that was set is not deployed."""
    set: str | None
    """The version that somebody set, deployed or not."""
    previous: str | None
    """The default before it."""
    changed_by: str | None
    changed_at: datetime | None
    versions: tuple[str, ...]
    """Those that are deployed."""


class ExpertList(Wire):
    """In the order in which experts are listed everywhere."""

    items: tuple[ExpertCard, ...]
