"""Pure-ASGI middleware around everything: the clock, the span and the counts of every request."""

import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Sm4llError
from serve.observing.requests import METHODS, Requests
from serve.observing.tracing import (
    FIRST_STATUS_OF_OURS,
    NOT_RECORDED,
    Recording,
    open_span,
)
from serve.observing.watch import Stopwatch
from serve.pacing import follow_pace
from serve.tenancy.caller import Caller

UNMATCHED = "unmatched"
TRACERESPONSE = "traceresponse"
"""Where a recorded request is found: its trace and its span (W3C Trace Context, level 2 draft)."""
OTHER_METHOD = "_OTHER"
"""Strangers make up others (OpenTelemetry HTTP conventions)."""
DOCUMENTS = frozenset(("/openapi.json", "/docs"))
"""Of FastAPI's own, which say nothing of their route."""


def watch_of(scope: MutableMapping[str, Any]) -> Stopwatch:
    """The request's clock; a new one where no middleware has started any."""
    watch = scope.setdefault("state", {}).get("watch")
    if not isinstance(watch, Stopwatch):
        watch = scope["state"]["watch"] = Stopwatch()
    return watch


class Watching:
    """Times every request, and puts `Server-Timing` on every answer."""

    def __init__(self, app: ASGIApp, requests: Requests):
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        self._requests.began()
        num_body_bytes = 0
        status = 499  # the caller left before there was an answer (nginx)
        watch = Stopwatch()
        state = scope.setdefault("state", {})
        state["watch"] = watch
        pace = follow_pace()
        with watch.record(scope["method"]) as span:

            async def receive_counted() -> Message:
                nonlocal num_body_bytes
                message = await receive()
                num_bytes = len(message.get("body", b""))
                num_body_bytes += num_bytes
                pace.take(num_bytes)
                return message

            sending = NOT_RECORDED

            async def send_timed(message: Message) -> None:
                nonlocal status, sending
                if message["type"] == "http.response.start":
                    status = message["status"]
                    headers = MutableHeaders(scope=message)
                    headers["Server-Timing"] = watch.server_timing()
                    if traceparent := span.traceparent:
                        headers[TRACERESPONSE] = traceparent
                    sending = open_span("send", parent=span)
                await send(message)

            try:
                await self._app(scope, receive_counted, send_timed)
            except Exception:
                # What answers it stands outside of all middleware.
                status, state["problem"] = 500, Sm4llError.code
                raise
            finally:
                sending.end()
                self._describe(span, scope, status)
                self._requests.ended(
                    route=route_of(scope),
                    method=scope["method"],
                    status=status,
                    elapsed_s=time.perf_counter() - started_s,
                    num_body_bytes=num_body_bytes,
                    code=state.get("problem"),
                    tenant_id=_tenant_of(scope),
                )

    def _describe(self, span: Recording, scope: Scope, status: int) -> None:
        route, state = route_of(scope), scope["state"]
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        span.rename(f"{method} {route}")
        span.note(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "sm4ll.request_id": state.get("request_id"),
                "sm4ll.tenant": _tenant_of(scope),
            }
        )
        if code := state.get("problem"):
            span.fail(code, is_ours=status >= FIRST_STATUS_OF_OURS)


def _tenant_of(scope: Scope) -> str | None:
    caller = scope["state"].get("caller")
    return caller.tenant_id if isinstance(caller, Caller) else None


def route_of(scope: Scope) -> str:
    # Never the path: it has ids, and strangers make up others.
    fallback = scope["path"] if scope["path"] in DOCUMENTS else UNMATCHED
    return str(getattr(scope.get("route"), "path", fallback))
