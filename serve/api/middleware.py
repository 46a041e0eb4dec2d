"""Pure-ASGI middleware: the request id and the body limit."""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import problem_response
from serve.errors import ImageTooLarge, InvalidRequest
from serve.observing.logs import note_fields

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


# What is sent to any other route is text, and is parsed as a whole: 80 MiB of `[],[],...` would
# hold up the event loop for seconds and fill gigabytes.
PICTURE_PATHS = frozenset(("/v1/tryon", "/v1/jobs", "/v1/assets"))
MAX_TEXT_BODY_BYTES = 2**20
MAX_BATCH_BODY_BYTES = 6 * 2**20
MAX_TEXT_MARKS, MAX_BATCH_MARKS = 20_000, 150_000
"""Commas and brackets: 1,000 outcomes have 4,000, 10,000 products 40,000, beside those in words and
URLs. Each field that is wrong costs 25 us: 1 MiB of `1,1,...` held up the event loop for 12 s."""
MARKS = (b",", b"[", b"{")
TOO_MANY_MARKS = "body: far more fields than there are"
TEXT_REMEDY = "send less at once; POST /v1/assets takes pictures, whose ids are short"


class RequestContext:
    """Gives every request an id, and echoes it.

    Args:
        is_echoed_outside: the server around this app already puts the id on the answer.
    """

    def __init__(self, app: ASGIApp, is_echoed_outside: bool):
        self._app = app
        self._is_echoed_outside = is_echoed_outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id")
        request_id = f"req_{secrets.token_hex(12)}" if wanted is None else wanted[:128]
        scope.setdefault("state", {})["request_id"] = request_id
        note_fields(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # Pictures come from strangers: no browser shall find a page in one.
                headers["X-Content-Type-Options"] = "nosniff"
                if not self._is_echoed_outside:
                    headers["X-Request-Id"] = request_id
            await send(message)

        if REQUEST_ID.fullmatch(request_id):
            await self._app(scope, receive, send_with_id)
            return
        scope["state"]["request_id"] = ""
        note_fields(request_id=None)
        error = InvalidRequest(
            "X-Request-Id: not an id", remedy="letters, digits, '.', '_' and '-', at most 128"
        )
        await problem_response(error, "")(scope, receive, send)


class BodyLimit:
    """Refuses a body above the limit: by its declared length, or as it arrives."""

    def __init__(self, app: ASGIApp, max_body_bytes: int):
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_pictures = scope["path"] in PICTURE_PATHS
        max_bytes = self._max_body_bytes
        is_batch = scope["path"] == "/v1/batches"
        max_marks = MAX_BATCH_MARKS if is_batch else MAX_TEXT_MARKS
        if not has_pictures:
            max_bytes = min(max_bytes, MAX_BATCH_BODY_BYTES if is_batch else MAX_TEXT_BODY_BYTES)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > max_bytes:
            request_id = scope.get("state", {}).get("request_id", "")
            refusal = problem_response(_too_large(max_bytes, has_pictures), request_id)
            await refusal(scope, receive, send)
            return
        received_bytes = received_marks = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes, received_marks
            message = await receive()
            body = message.get("body", b"")
            received_bytes += len(body)
            if received_bytes > max_bytes:
                raise _too_large(max_bytes, has_pictures)
            if not has_pictures:
                received_marks += sum(map(body.count, MARKS))
                if received_marks > max_marks:
                    raise InvalidRequest(TOO_MANY_MARKS, remedy=TEXT_REMEDY)
            return message

        await self._app(scope, receive_counted, send)


def _too_large(max_bytes: int, has_pictures: bool) -> ImageTooLarge:
    pictures = "send smaller files: JPEG at quality 95 keeps a 20-megapixel photo below 15 MiB"
    return ImageTooLarge(
        f"the request body is larger than {max_bytes / 2**20:.0f} MiB",
        remedy=pictures if has_pictures else TEXT_REMEDY,
    )
