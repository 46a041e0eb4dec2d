"""Pure-ASGI middleware: nobody gets past it without a key, except to health and docs."""

from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.problems import problem_response
from serve.api.watching import watch_of
from serve.errors import Sm4llError
from serve.observing.logs import note_fields
from serve.tenancy.caller import Caller
from serve.tenancy.keys import unauthenticated

PUBLIC_PATHS = frozenset(("/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect"))
POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1


class FindCaller(Protocol):
    """Whose token this is, or Unauthenticated."""

    async def __call__(self, token: str, /) -> Caller: ...


class Authentication:
    """Puts the Caller into the request's state. What is not public is closed, unknown paths too."""

    def __init__(self, app: ASGIApp, find_caller: FindCaller):
        self._app = app
        self._find_caller = find_caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            with watch_of(scope).stage("authenticate"):
                caller = state["caller"] = await self._find_caller(_read_token(scope))
        except Sm4llError as exc:
            await problem_response(exc, str(state.get("request_id", "")))(scope, receive, send)
            return
        note_fields(tenant=caller.tenant_id)
        await self._app(scope, receive, send)


def _read_token(scope: Scope) -> str:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        raise unauthenticated()
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise unauthenticated()
    return str(token.strip(" "))
