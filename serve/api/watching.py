"""Pure-ASGI middleware around everything: the clock, the span and the counts of every request."""

import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observing.meter import Meter
from serve.observing.tracing import child_span, recording_span
from serve.observing.watch import Stopwatch
from serve.tenancy.caller import Caller

UNMATCHED = "unmatched"


def watch_of(scope: MutableMapping[str, Any]) -> Stopwatch:
    """The request's clock; a new one where no middleware has started any."""
    watch = scope.setdefault("state", {}).get("watch")
    if not isinstance(watch, Stopwatch):
        watch = scope["state"]["watch"] = Stopwatch()
    return watch


class Watching:
    """Times every request, and puts `Server-Timing` on every answer."""

    def __init__(self, app: ASGIApp, meter: Meter):
        self._app = app
        self._meter = meter
        self._num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, started_unix_ns = time.perf_counter(), time.time_ns()
        self._count(+1)
        status = 499  # the caller left before there was an answer (nginx)
        method = scope["method"]
        with child_span(recording_span(), method, started_unix_ns) as span:
            watch = Stopwatch(span)
            state = scope.setdefault("state", {})
            state["watch"] = watch

            async def send_timed(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)["Server-Timing"] = watch.server_timing()
                await send(message)

            try:
                await self._app(scope, receive, send_timed)
            finally:
                elapsed_s = time.perf_counter() - started_s
                route = _route_of(scope)
                if span is not None:
                    span.update_name(f"{method} {route}")
                caller = state.get("caller")
                watch.note(
                    {
                        "http.request.method": method,
                        "http.route": route,
                        "http.response.status_code": status,
                        "sm4ll.request_id": state.get("request_id"),
                        "sm4ll.tenant": caller.tenant_id if isinstance(caller, Caller) else None,
                    }
                )
                if span is not None:
                    span.end()
                self._count(-1)
                self._meter.add(
                    "sm4ll_http_requests_total", route=route, method=method, status=str(status)
                )
                self._meter.observe(
                    "sm4ll_http_request_duration_seconds", elapsed_s, route=route, method=method
                )

    def _count(self, change: int) -> None:
        self._num_running += change
        self._meter.set("sm4ll_http_requests_in_progress", self._num_running)


def _route_of(scope: Scope) -> str:
    # Never the path: it has ids, and strangers make up others.
    return str(getattr(scope.get("route"), "path", UNMATCHED))
