"""Pure-ASGI middleware: a POST with an `Idempotency-Key` runs once and answers every time."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import MEDIA_TYPE, problem_response
from serve.errors import Cancelled, InvalidRequest, Sm4llError
from serve.imaging.spool import SpooledBody
from serve.tenancy.caller import Caller
from serve.tenancy.idempotency import Answer, FirstAnswers, Held, work_item_of

KEY = re.compile(rb"[\x20-\x7e]{1,255}")
MAX_ANSWER_BYTES = 256 * 2**20
HASHED_ON_LOOP_BYTES = 256 * 1024
# The key is free again: these say nothing about the request itself, or may pass.
NOT_KEPT = frozenset((401, 403, 408, 429, 499))
KEPT_HEADERS = ("location", "etag", "content-disposition", "link")
KEPT_PREFIX = "sm4ll-"
T = TypeVar("T")


class Idempotency:
    """Belongs inside authentication: keys are a tenant's own."""

    def __init__(self, app: ASGIApp, answers: FirstAnswers, logger: logging.Logger):
        self._app = app
        self._answers = answers
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = Headers(scope=scope).getlist("idempotency-key") if _is_post(scope) else []
        caller = scope.get("state", {}).get("caller")
        if not keys or not isinstance(caller, Caller):
            await self._app(scope, receive, send)
            return
        try:
            key = _read_key(keys)
            body = await _read_body(receive)
            request_sha256 = await _hash_apart(scope, body)
            take = self._answers.take(caller.tenant_id, key, request_sha256)
            row = await _unless_gone(take, receive)
            if row.locked_until is None:
                answer = await self._answers.recall(row, caller.scopes)
                _note_problem(scope, answer)
                await _replay(answer)(scope, receive, send)
                return
        except Sm4llError as exc:
            request_id = str(scope["state"].get("request_id", ""))
            await problem_response(exc, request_id)(scope, receive, send)
            return
        scope["state"]["work_item"] = work_item_of(row)
        scope["state"]["first_at"] = row.created_at
        scope["state"]["refers"] = set()
        async with self._answers.holding(row) as held:
            recorder = _Recorder(self, held, caller, scope, send)
            await self._app(scope, _replayed(body, receive), recorder)

    async def keep(self, held: Held, answer: Answer | None, caller: Caller, scope: Scope) -> None:
        try:
            refers = scope["state"]["refers"]
            await self._answers.keep(held, answer, caller.policy, refers, caller.scopes)
        except Sm4llError as exc:
            # The work is done and its caller waits. A repeat runs it again, charged once.
            self._logger.error("an answer could not be kept: %s", exc.detail, exc_info=exc)


def note_reference(request: Request, *references: str) -> None:
    """Say which objects or content hashes an answer is about: erasing them erases it too."""
    request.scope.get("state", {}).get("refers", set()).update(references)


class _Recorder:
    """Passes an answer on as it comes; keeps it before its last piece goes out."""

    def __init__(
        self, owner: Idempotency, held: Held, caller: Caller, scope: Scope, send: Send
    ) -> None:
        self._owner = owner
        self._held = held
        self._caller = caller
        self._scope = scope
        self._send = send
        self._start: Message = {}
        self._body = bytearray()
        self._is_too_large = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and self._is_kept:
            self._collect(message.get("body", b""))
            if not message.get("more_body", False):
                answer = None if self._is_too_large else self._answer()
                await self._owner.keep(self._held, answer, self._caller, self._scope)
        await self._send(message)

    @property
    def _is_kept(self) -> bool:
        status = self._start["status"]
        # A new key's token is shown once and lies nowhere: a repeat makes another key.
        is_secret = (b"cache-control", b"no-store") in self._start["headers"]
        return status < 500 and status not in NOT_KEPT and not is_secret

    def _collect(self, piece: bytes) -> None:
        if len(self._body) + len(piece) > MAX_ANSWER_BYTES:
            self._is_too_large = True
            self._body.clear()
        if not self._is_too_large:
            self._body += piece

    def _answer(self) -> Answer:
        headers = Headers(raw=list(self._start["headers"]))
        kept = tuple(
            (name, value)
            for name, value in headers.items()
            if name in KEPT_HEADERS or name.startswith(KEPT_PREFIX)
        )
        media_type = headers.get("content-type", "")
        return Answer(
            status=self._start["status"],
            headers=kept,
            media_type=media_type,
            body=bytes(self._body),
        )


def _is_post(scope: Scope) -> bool:
    return bool(scope["type"] == "http" and scope["method"] == "POST")


def _read_key(keys: list[str]) -> str:
    key = keys[0].encode("latin-1")
    if len(keys) > 1 or KEY.fullmatch(key) is None:
        raise InvalidRequest(
            "Idempotency-Key: not one key of 1 to 255 printable ASCII characters",
            remedy="a UUID is a good key",
        )
    return key.decode("ascii")


async def _read_body(receive: Receive) -> SpooledBody:
    """
    Raises:
        ImageTooLarge: from the body limit around this.
        Cancelled: the client left before it had sent all.
    """
    body = SpooledBody()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left while it sent the request")
        body.write(message.get("body", b""))
        if not message.get("more_body", False):
            return body


async def _unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What a client waits for that has left is not waited for any more.

    Raises:
        Cancelled: it has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client left while another request with its key ran")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


def _replayed(body: SpooledBody, receive: Receive) -> Receive:
    pieces, left_bytes = body.pieces(), body.num_bytes
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given, left_bytes
        if is_given:
            return await receive()
        piece = next(pieces)
        left_bytes -= len(piece)
        is_given = left_bytes == 0
        return {"type": "http.request", "body": piece, "more_body": not is_given}

    return receive_again


def _replay(answer: Answer) -> Response:
    headers = {**dict(answer.headers), "Idempotent-Replayed": "true"}
    response = Response(answer.body, answer.status, headers)
    if answer.media_type:
        response.headers["Content-Type"] = answer.media_type
    return response


def _note_problem(scope: Scope, answer: Answer) -> None:
    """As `ProblemResponse` does, of a refusal that is answered again."""
    if answer.media_type == MEDIA_TYPE:
        scope["state"]["problem"] = str(json.loads(answer.body).get("code"))


async def _hash_apart(scope: Scope, body: SpooledBody) -> str:
    if body.num_bytes <= HASHED_ON_LOOP_BYTES:
        return hash_request(scope, body)
    return await asyncio.to_thread(hash_request, scope, body)


def hash_request(scope: Scope, body: SpooledBody) -> str:
    """Over method, path, query, content type and body.

    A multipart body counts by its parts: clients make up a new boundary for every try.
    """
    written = Headers(scope=scope).get("content-type", "")
    media_type, parameters = parse_options_header(written)
    boundary = parameters.pop(b"boundary", b"")
    digest = hashlib.sha256()
    target = (scope["method"].encode(), scope["path"].encode(), scope.get("query_string", b""))
    for field in (*target, media_type, *(b"%s=%s" % each for each in sorted(parameters.items()))):
        _add(digest.update, field)
    parts = _hash_parts(boundary, body) if media_type == b"multipart/form-data" else None
    for field in parts or ():
        _add(digest.update, field)
    if parts is None:
        digest.update(body.num_bytes.to_bytes(8, "big"))
        for piece in body.pieces():
            digest.update(piece)
    return digest.hexdigest()


def _add(update: Callable[[bytes], None], field: bytes) -> None:
    update(len(field).to_bytes(8, "big"))  # or two fields could share a letter
    update(field)


def _hash_parts(boundary: bytes, body: SpooledBody) -> list[bytes] | None:
    """Headers and content of every part, hashed; None when it is not well-formed."""
    parts: list[bytes] = []
    digest = hashlib.sha256()
    ended = False

    def begin() -> None:
        nonlocal digest
        digest = hashlib.sha256()

    def add(data: bytes, start: int, end: int) -> None:
        digest.update(memoryview(data)[start:end])

    def add_lower(data: bytes, start: int, end: int) -> None:
        digest.update(data[start:end].lower())

    def end() -> None:
        nonlocal ended
        ended = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": add_lower,
        "on_header_value": add,
        "on_header_end": lambda: digest.update(b"\r\n"),
        "on_headers_finished": lambda: digest.update(b"\r\n\r\n"),
        "on_part_data": add,
        "on_part_end": lambda: parts.append(digest.digest()),
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        for piece in body.pieces():
            parser.write(piece)
        parser.finalize()
    except MultipartParseError:
        return None
    return parts if ended else None
