"""Who is calling, as the routes see it."""

from collections.abc import Awaitable, Callable

from fastapi import Request, Security
from fastapi.security import HTTPBearer

from serve.policy import Scope
from serve.tenancy.caller import Caller
from serve.tenancy.keys import unauthenticated

# Only for /openapi.json: the middleware has read the header before any route is found.
BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    bearerFormat="sk_<id>_<secret>",
    description="An API key of a tenant. `sm4ll tenants keys create` makes one.",
)
SECURITY: list[dict[str, list[str]]] = [{BEARER.scheme_name: []}]
"""For the `openapi_extra` of a route that asks for its caller without a dependency: finding out
about those takes a tenth of a millisecond."""


def caller_of(request: Request) -> Caller:
    """
    Raises:
        Unauthenticated: no middleware has put a caller there.
    """
    caller = request.scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        raise unauthenticated()
    return caller


def require(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency: the caller, whose key has all of the scopes; without any, any valid key.

    Raises:
        Forbidden: from the dependency, naming the scope that is missing.
    """

    async def read_caller(request: Request, _: object = Security(BEARER)) -> Caller:
        caller = caller_of(request)
        for scope in scopes:
            caller.require(scope)
        return caller

    return read_caller


def require_any(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency: the caller, whose key has at least one of the scopes.

    Raises:
        Forbidden: from the dependency.
    """

    async def read_caller(request: Request, _: object = Security(BEARER)) -> Caller:
        caller = caller_of(request)
        if caller.scopes.isdisjoint(scopes):
            caller.require(scopes[0])
        return caller

    return read_caller
