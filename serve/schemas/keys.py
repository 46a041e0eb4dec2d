"""API keys as administrators see them: never the secret, but once."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from serve.policy import DAY_S, Scope
from serve.schemas.base import Wire, shown
from serve.schemas.tenants import Name

KEY_ID = r"^key_[0-9a-hjkmnp-tv-z]{26}$"
MAX_LIFETIME_S = 3650 * DAY_S


class KeyCard(Wire):
    """One key, without its secret."""

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""


class KeyList(Wire):
    """One page, newest first."""

    items: tuple[KeyCard, ...]
    next: str | None
    """`after` of the next page."""


class KeyMinted(KeyCard):
    """A new key, with the secret that nobody can show again."""

    token: str = Field(repr=False)


class NewKey(Wire):
    """What a key may do and for how long."""

    model_config = shown(name="storefront", scopes=["tryon", "jobs"], expires_in_s=7_776_000)

    name: Name
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=5)] = (
        "tryon",
        "jobs",
        "versions",
    )
    expires_in_s: Annotated[float | None, Field(gt=0, le=MAX_LIFETIME_S)] = None
    """It never expires when absent."""


class KeyRotation(Wire):
    """How the old key leaves."""

    model_config = shown(overlap_s=86_400)

    overlap_s: Annotated[float, Field(ge=0, le=90 * DAY_S)] = DAY_S
    """How much longer the old key works."""
