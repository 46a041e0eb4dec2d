"""A body is read ahead of the application by so much and no more, and never withheld."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.pacing import AHEAD_BYTES, PacedBodies, follow_pace

PIECE = b"x" * (AHEAD_BYTES // 4)
NUM_PIECES = 40

Reader = Callable[[asyncio.Queue[Message]], Awaitable[int]]


class Body:
    """What a client sends; counts what was read of it."""

    def __init__(self) -> None:
        self.num_read = 0

    async def __call__(self) -> Message:
        await asyncio.sleep(0)
        self.num_read += 1
        if self.num_read > NUM_PIECES:
            return {"type": "http.disconnect"}
        return {
            "type": "http.request",
            "body": PIECE,
            "more_body": self.num_read < NUM_PIECES,
        }


def serve_with(application: Reader) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """As Serve does: all that comes goes into a queue, in a task beside the application."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[Message] = asyncio.Queue()

        async def fetch() -> None:
            while True:
                message = await receive()
                await queue.put(message)
                if message["type"] == "http.disconnect":
                    return

        fetching = asyncio.create_task(fetch())
        try:
            await asyncio.create_task(application(queue))  # type: ignore[arg-type]
        finally:
            fetching.cancel()

    return serve


async def nothing(message: Message) -> None: ...


async def settle() -> None:
    for _ in range(10 * NUM_PIECES):
        await asyncio.sleep(0)


def run(application: Reader, body: Body) -> None:
    app = PacedBodies(serve_with(application))
    asyncio.run(asyncio.wait_for(app({"type": "http"}, body, nothing), 10))


def test_who_takes_nothing_is_sent_little() -> None:
    body = Body()

    async def look(queue: asyncio.Queue[Message]) -> int:
        follow_pace()
        await settle()
        return 0

    run(look, body)
    # What was on its way when the application began comes beside it.
    assert AHEAD_BYTES // len(PIECE) <= body.num_read <= AHEAD_BYTES // len(PIECE) + 3


def test_all_of_it_comes_to_who_takes_it_and_then_the_disconnect() -> None:
    body, seen = Body(), []

    async def take(queue: asyncio.Queue[Message]) -> int:
        pace = follow_pace()
        while True:
            message = await queue.get()
            if message["type"] == "http.disconnect":
                return 0
            seen.append(len(message["body"]))
            pace.take(len(message["body"]))
            assert queue.qsize() <= AHEAD_BYTES // len(PIECE) + 2

    run(take, body)
    assert sum(seen) == NUM_PIECES * len(PIECE)


@pytest.mark.parametrize("num_bytes", [AHEAD_BYTES * 3])
def test_piece_larger_than_what_may_wait_is_not_withheld(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_pacing.PIECE", b"x" * num_bytes)
    test_all_of_it_comes_to_who_takes_it_and_then_the_disconnect()


def test_proxy_whose_application_is_elsewhere_is_not_held_up() -> None:
    body = Body()

    async def wait(queue: asyncio.Queue[Message]) -> int:
        await settle()
        return 0

    run(wait, body)
    assert body.num_read == NUM_PIECES + 1
