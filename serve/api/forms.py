"""Reads a try-on request body, multipart or JSON, into options and what was sent as pictures."""

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serve.api.problems import invalid_fields
from serve.errors import ImageTooLarge, InvalidImage, InvalidRequest
from serve.imaging.spool import SPOOL_ABOVE_BYTES, Encoded, SpooledFile, read_encoded
from serve.schemas.tryon import TryOnJson, TryOnOptions

PICTURES = ("person", "product", "mask")
MAX_TEXT_BYTES = 4096
MAX_PARTS = 32
PARSED_ON_LOOP_BYTES = 128 * 1024
BASE64_PIECE = 2**20
"""Characters; a multiple of four, so that each piece stands for whole bytes."""
# Pictures as text hold one comma each and no bracket. 20 MiB of `[],[],...` would take seconds and
# gigabytes to be refused.
MAX_JSON_MARKS = 10_000
DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.=+-]+)*?)(;base64)?,", re.ASCII)


@dataclass(frozen=True, slots=True)
class PictureUrl:
    """Where a picture is said to be; nobody has looked yet."""

    url: str


@dataclass(frozen=True, slots=True)
class PictureAsset:
    """The id of a picture that was uploaded before; whose it is, nobody has looked yet."""

    id: str


Picture = Encoded | PictureUrl | PictureAsset


@dataclass(frozen=True, slots=True)
class TryOnForm:
    """One request's options and its pictures as they were sent."""

    options: TryOnOptions
    person: Picture
    product: Picture
    mask: Picture | None


@dataclass(frozen=True, slots=True)
class FormModels:
    """What a body is validated as besides its pictures, and with them where it is JSON."""

    form: type[TryOnOptions]
    json: type[BaseModel]
    """Has the fields of `form`, and `person`, `product` and `mask` as text."""


TRYON = FormModels(TryOnOptions, TryOnJson)


async def read_tryon(
    request: Request, max_image_bytes: int, models: FormModels = TRYON
) -> TryOnForm:
    """Read the body of `POST /v1/tryon`, or of a route that takes the same and more.

    Raises:
        InvalidRequest: not multipart or JSON, or a field is missing, unknown, doubled or wrong.
        ImageTooLarge: a picture has more than max_image_bytes.
    """
    content_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    if content_type == b"multipart/form-data":
        boundary = parameters.get(b"boundary", b"")
        fields = await read_multipart(request, boundary, max_image_bytes)
        return _from_fields(fields, models.form)
    if content_type == b"application/json":
        return await _read_json(request, max_image_bytes, models)
    raise InvalidRequest(
        f"content type {content_type.decode('latin-1') or 'missing'!r} is not read here",
        remedy="send multipart/form-data or application/json",
    )


class _Parts:
    """Collects the parts of one multipart body as the parser calls back."""

    def __init__(self, max_image_bytes: int, pictures: tuple[str, ...]):
        self._max_image_bytes = max_image_bytes
        self._pictures = pictures
        self._header = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = bytearray()
        self._data = bytearray()
        self._spooled: SpooledFile | None = None
        self._num_bytes = 0
        self._limit_bytes = MAX_TEXT_BYTES
        self.fields: dict[str, Encoded] = {}

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._extend,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data, self._spooled, self._num_bytes = {}, bytearray(), None, 0
        if len(self.fields) >= MAX_PARTS:
            raise InvalidRequest(f"more than {MAX_PARTS} form fields")

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        self._name = _part_name(self._headers.get(b"content-disposition", b""))
        if not self._name:
            raise InvalidRequest("a form part has no name")
        if self._name in self.fields:
            raise InvalidRequest(f"{self._name}: given twice")
        is_picture = self._name in self._pictures
        # A data URI in a text part is a third longer than the bytes it carries.
        self._limit_bytes = self._max_image_bytes * 4 // 3 + 64 if is_picture else MAX_TEXT_BYTES

    def _extend(self, data: bytes, start: int, end: int) -> None:
        self._num_bytes += end - start
        if self._num_bytes > self._limit_bytes:
            raise ImageTooLarge(f"{self._name}: larger than {self._limit_bytes} bytes")
        piece = memoryview(data)[start:end]
        if self._spooled is not None:
            self._spooled.write(piece)
            return
        self._data += piece
        if self._num_bytes > SPOOL_ABOVE_BYTES:
            self._spooled = SpooledFile()
            self._spooled.write(self._data)
            self._data = bytearray()

    def _end(self) -> None:
        self.fields[self._name] = bytes(self._data) if self._spooled is None else self._spooled


@lru_cache(maxsize=256)
def _part_name(disposition: bytes) -> str:
    """A client sends the same few headers with every request; parsing one takes 15 us."""
    _, options = parse_options_header(disposition)
    name: str = options.get(b"name", b"").decode("utf-8", "replace")
    return name


async def read_multipart(
    request: Request,
    boundary: bytes,
    max_image_bytes: int,
    pictures: tuple[str, ...] = PICTURES,
) -> dict[str, Encoded]:
    """The parts by name; those that are no pictures are short, and in memory.

    Raises:
        InvalidRequest: the body is damaged or ends early, or a part is doubled or has no name.
        ImageTooLarge: a picture has more than max_image_bytes.
    """
    if not boundary:
        raise InvalidRequest("multipart/form-data without a boundary")
    parts = _Parts(max_image_bytes, pictures)
    ended = False

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(boundary, {**parts.callbacks(), "on_end": on_end})
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except MultipartParseError as exc:
        raise InvalidRequest(f"the multipart body is damaged: {exc}") from exc
    if not ended:
        raise InvalidRequest("the multipart body ends early")
    return parts.fields


def _from_fields(fields: dict[str, Encoded], model: type[TryOnOptions]) -> TryOnForm:
    options = {
        name: value.decode("utf-8", "replace")
        for name, value in fields.items()
        if name not in PICTURES and isinstance(value, bytes) and value != b""
    }
    try:
        parsed = model.model_validate(options)
    except ValidationError as exc:
        raise invalid_fields(exc) from exc
    pictures = {name: _picture(name, fields[name]) for name in PICTURES if name in fields}
    for name in ("person", "product"):
        if name not in pictures:
            raise InvalidRequest(f"{name}: missing", remedy=f"send a form part named {name!r}")
    return TryOnForm(parsed, pictures["person"], pictures["product"], pictures.get("mask"))


def _picture(name: str, value: Encoded) -> Picture:
    start = value.read_at(0, 6) if isinstance(value, SpooledFile) else value[:6]
    if not start:
        raise InvalidImage(f"{name}: the file is empty")
    if start.lower().startswith((b"data:", b"http:", b"https:", b"ast_")):
        return read_reference(name, read_encoded(value).decode("utf-8", "replace"))
    return value


async def _read_json(request: Request, max_image_bytes: int, models: FormModels) -> TryOnForm:
    body = b"".join([chunk async for chunk in request.stream()])  # request.body() would keep it
    if len(body) <= PARSED_ON_LOOP_BYTES:
        return _from_json(body, max_image_bytes, models)
    return await asyncio.to_thread(_from_json, body, max_image_bytes, models)


def _from_json(body: bytes, max_image_bytes: int, models: FormModels) -> TryOnForm:
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_JSON_MARKS:
        raise InvalidRequest(
            "body: far more fields than there are", remedy="send one JSON object, as /docs shows it"
        )
    try:
        parsed: Any = models.json.model_validate_json(body)
    except ValidationError as exc:
        raise invalid_fields(exc) from exc
    mask = None if parsed.mask is None else read_reference("mask", parsed.mask)
    pictures = (
        read_reference("person", parsed.person),
        read_reference("product", parsed.product),
        mask,
    )
    for name, data in zip(PICTURES, pictures, strict=True):
        if isinstance(data, bytes) and len(data) > max_image_bytes:
            raise ImageTooLarge(f"{name}: {len(data)} bytes; at most {max_image_bytes}")
    # Without the pictures' text, which would be kept beside the pictures.
    said = parsed.model_dump(exclude=set(PICTURES), exclude_unset=True)
    return TryOnForm(models.form.model_validate(said), *pictures)


def read_reference(name: str, reference: str) -> Picture:
    """A picture given as text: the bytes of a data URI, or a URL or asset id as it is.

    Raises:
        InvalidRequest: neither a data URI, a URL nor an asset id.
    """
    start = reference[:6].lower()
    if start.startswith("data:"):
        return _data_uri(name, reference)
    if start.startswith(("http:", "https:")):
        return PictureUrl(reference)
    if start.startswith("ast_"):
        return PictureAsset(reference)
    raise InvalidRequest(
        f"{name}: neither a data URI, a URL nor an asset id",
        remedy="send the file, a data URI (data:image/png;base64,...), an https URL or an ast_ id",
    )


def _data_uri(name: str, uri: str) -> bytes:
    match = DATA_URI.match(uri[:256])
    if match is None or not match.group(3):
        raise InvalidRequest(f"{name}: a data URI must be base64", remedy="data:image/png;base64,…")
    try:
        # In pieces: each holds up every other thread, the event loop's too.
        starts = range(match.end(), len(uri), BASE64_PIECE)
        pieces = (uri[start : start + BASE64_PIECE] for start in starts)
        data = b"".join([base64.b64decode(piece, validate=True) for piece in pieces])
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest(f"{name}: the data URI's base64 is damaged: {exc}") from exc
    if not data:
        raise InvalidImage(f"{name}: the file is empty")
    return data
