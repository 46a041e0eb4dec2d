"""Headers by which a client could steer Serve itself are taken off before Serve reads them.

Serve calls `ingress_middleware` by its path (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`) in every
process that answers HTTP: its own proxies, and the replicas that HAProxy asks directly, which look
at these headers before they call the application.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.pacing import PacedBodies

# They switch off timeouts or cancellation, or steer Serve's routing; Serve takes `-` for `_` in
# some of them (ray/serve/_private/{constants,http_util,replica}.py, 2.60).
CONTROL_HEADERS = frozenset(
    (
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    )
)
CONTROL_PREFIX = b"x-serve-router-"


def is_control_header(name: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    return plain in CONTROL_HEADERS or plain.startswith(CONTROL_PREFIX)


class NoControlHeaders:
    """Pure ASGI, outermost."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            kept = [pair for pair in scope["headers"] if not is_control_header(pair[0])]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def ingress_middleware() -> list[Middleware]:
    """What Serve puts around everything that it serves by HTTP."""
    return [Middleware(NoControlHeaders), Middleware(PacedBodies)]
