"""Bodies come into a replica no faster than the application takes them.

Serve reads a body into a queue without a bound, beside the application and whatever that does
(ray/serve/_private/direct_ingress_http_util.py, 2.60): twenty uploads that wait for a database
would all lie in memory. `PacedBodies` stands around Serve, `follow` is called inside of it.
"""

import asyncio
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

AHEAD_BYTES = 2**20
"""Of a body that may wait in the queue."""


class Pace:
    """One request's body, between who reads it and who takes it. Used from one event loop."""

    def __init__(self) -> None:
        self._is_followed = False
        self._is_over = False
        self._ahead_bytes = 0
        self._taken = asyncio.Event()

    def follow(self) -> None:
        """Somebody takes what comes, and will say so. Serve's proxies have nobody who does."""
        self._is_followed = True

    def take(self, num_bytes: int) -> None:
        self._ahead_bytes -= num_bytes
        self._taken.set()

    def arrive(self, num_bytes: int, is_last: bool) -> None:
        self._ahead_bytes += num_bytes
        self._is_over = self._is_over or is_last

    async def room(self) -> None:
        """Until the next piece may be read. After the last one there are only signs of life."""
        while self._is_followed and not self._is_over and self._ahead_bytes > AHEAD_BYTES:
            self._taken.clear()
            await self._taken.wait()


_PACE: ContextVar[Pace | None] = ContextVar("pace", default=None)


def follow_pace() -> Pace:
    """The pace of the request that runs here; one that nobody waits for where there is none."""
    pace = _PACE.get() or Pace()
    pace.follow()
    return pace


class PacedBodies:
    """Pure ASGI, around Serve."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pace = Pace()

        async def receive_paced() -> Message:
            await pace.room()
            message = await receive()
            pace.arrive(len(message.get("body", b"")), not message.get("more_body", False))
            return message

        token = _PACE.set(pace)
        try:
            await self._app(scope, receive_paced, send)
        finally:
            _PACE.reset(token)
