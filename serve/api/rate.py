"""Pure-ASGI middleware: every request with a key counts against its tenant's minute."""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.problems import problem_response
from serve.api.watching import watch_of
from serve.errors import Sm4llError
from serve.tenancy.caller import Caller

Hit = Callable[[str, int | None], Awaitable[None]]


class RateLimit:
    """Refuses before anything of the body is read. Inside Authentication; public paths pass."""

    def __init__(self, app: ASGIApp, hit: Hit):
        self._app = app
        self._hit = hit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        caller = state.get("caller")
        if isinstance(caller, Caller):
            try:
                with watch_of(scope).stage("admit"):
                    await self._hit(caller.tenant_id, caller.policy.requests_per_minute)
            except Sm4llError as exc:
                response = problem_response(exc, str(state.get("request_id", "")))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
