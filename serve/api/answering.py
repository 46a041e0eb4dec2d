"""Writes large answers without holding up the event loop: composed in a thread, sent in pieces."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Iterator

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from serve.schemas.tryon import OutputImage, TryOnAnswer
from serve.steps import TryOnResult

WRITTEN_ON_LOOP_BYTES = 64 * 1024
PIECE_BYTES = 512 * 1024
_BASE64_PIECE_BYTES = 3 * 2**18
"""A multiple of three, so that no padding falls between the pieces."""


class PiecewiseResponse(Response):
    """Hands its body on in pieces, each when the one before is on its way: the transport would
    copy what it cannot send at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        body = bytes(self.body)
        for at in range(0, len(body), PIECE_BYTES):
            piece, is_last = body[at : at + PIECE_BYTES], at + PIECE_BYTES >= len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": not is_last})


async def answer_json(result: TryOnResult, headers: dict[str, str]) -> Response:
    """`TryOnAnswer`, with the pictures in it."""
    if sum(map(len, result.files)) <= WRITTEN_ON_LOOP_BYTES:
        body = write_json(result)
    else:
        body = await asyncio.to_thread(write_json, result)
    return PiecewiseResponse(body, 200, headers, "application/json")


def write_json(result: TryOnResult) -> bytes:
    """The pictures are put in last: as strings of an object they would be copied four times, each
    time in one go."""
    place = secrets.token_hex(16)
    outputs = tuple(
        OutputImage(
            media_type=result.media_type,
            width=result.width,
            height=result.height,
            sha256=hashlib.sha256(file).hexdigest(),
            data=f"data:{result.media_type};base64,{place}",
        )
        for file in result.files
    )
    answer = TryOnAnswer(id=result.receipt.id, outputs=outputs, receipt=result.receipt)
    written = JSONResponse(answer.model_dump(mode="json")).body
    first, *others = bytes(written).split(place.encode())
    pieces = [first]
    for file, following in zip(result.files, others, strict=True):
        pieces.extend(_to_base64(file))
        pieces.append(following)
    return b"".join(pieces)


def _to_base64(file: bytes) -> Iterator[bytes]:
    view = memoryview(file)
    for start in range(0, len(file), _BASE64_PIECE_BYTES):
        yield base64.b64encode(view[start : start + _BASE64_PIECE_BYTES])
