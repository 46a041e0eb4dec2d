"""Who is calling: the seam where API keys and tenants enter.

Until then every caller is the one local tenant. Every route that works for a tenant takes its
`Caller` from `identify`, so that keys change this file and no other.
"""

from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs."""

    tenant: str


def identify(request: Request) -> Caller:
    """Say who calls; will raise Unauthenticated and Forbidden once there are keys."""
    return Caller(tenant="local")
