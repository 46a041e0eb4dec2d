"""Versions that run beside those of the family file, as administrators add them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.policy import VersionName
from serve.schemas.base import Wire, shown

ServedStatus = Literal["wanted", "ready", "failed", "removing"]
VERSION_NAME = r"^[a-z]+@[a-z0-9][a-z0-9._-]{0,62}$"


class NewVersion(Wire):
    """A version to be served from now on."""

    model_config = shown(
        bundle={
            "expert": "eye",
            "name": "2",
            "title": "sunglasses, a closer crop",
            "status": "alpha",
            "licence": {"name": "Apache-2.0", "commercial_use": True},
            "backend": {"kind": "warp"},
            "crop": {"context": 1.6},
        },
        deployed={"autoscaling": {"min_replicas": 1, "max_replicas": 2}},
    )

    bundle: dict[str, Any]
    """The document of its bundle, as `configs/experts/*.yaml` have it."""
    deployed: dict[str, Any] = {}
    """As the family file says it of a version: `autoscaling`, `resources`,
    `max_ongoing_requests`, `allow_noncommercial`."""
    home: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] = ""
    """A folder on the cluster's machines, absolute: where relative paths of the bundle start, and
    where its golden samples lie (`<home>/eye.2/golden`). Empty where there are neither."""


class VersionCard(Wire):
    """One added version."""

    version: VersionName
    state: ServedStatus
    """`wanted` until it runs, `failed` where it does not start, `removing` until it is gone."""
    reason: str | None
    """Why it is not ready, or what is the matter with one that is."""
    bundle: dict[str, Any]
    bundle_sha256: str | None
    """As receipts name it; null where this system cannot read the bundle."""
    deployed: dict[str, Any]
    home: str
    created_by: str
    """The id of the key that asked for it."""
    created_at: datetime
    updated_at: datetime


class VersionPage(Wire):
    """One page, newest first."""

    items: tuple[VersionCard, ...]
    next: str | None
    """`after` of the next page."""
