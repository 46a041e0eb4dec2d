"""Pure-ASGI middleware: one line of the log for every request, and what all its lines say."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.watching import route_of
from serve.observing.logs import REQUEST_LOGGER, log_as, note_fields

PROBES = frozenset(("/healthz", "/readyz"))


class RequestLog:
    """Opens what every line says of its request (id, tenant, version, code of the problem), which
    whoever learns it adds, and writes the line of the request itself.

    Never the path, the query or a header: what strangers send is theirs.
    """

    def __init__(self, app: ASGIApp):
        self._app = app
        self._logger = logging.getLogger(REQUEST_LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = 499  # the caller left before there was an answer (nginx)

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        log_as()  # also for what answers unforeseen exceptions, outside of all middleware
        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            status = 500
            raise
        finally:
            if scope["path"] not in PROBES or status >= 400:
                self._write(scope, status, (time.perf_counter() - started_s) * 1e3)

    def _write(self, scope: Scope, status: int, elapsed_ms: float) -> None:
        method, route = scope["method"], route_of(scope)
        code = scope["state"].get("problem") if status >= 400 else None
        # Not as `extra`: Serve's filter calls the application's prefix the route.
        note_fields(method=method, route=route, status=status, code=code, ms=round(elapsed_ms, 1))
        self._logger.info("%s %s %d", method, route, status)
