"""Fetches a picture from a URL somebody else chose, without being their hands in our network."""

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpcore2

from serve.config import FetchConfig
from serve.errors import FetchRefused, ImageTooLarge
from serve.fetching.address import (
    Address,
    AddressRule,
    is_public,
    is_public_or_private,
    read_address,
)
from serve.fetching.network import PinnedNetwork, Resolve, SystemResolver
from serve.fetching.target import REMEDY, Target

USER_AGENT = b"sm4ll-serve"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MEDIA_TYPES = (b"application/octet-stream", b"binary/octet-stream")  # the second is S3's own
MAX_ADDRESSES = 4
INLINE = "send the file itself or a data URI (data:image/png;base64,...)"


@contextmanager
def map_fetch_errors() -> Iterator[None]:
    """Translate what the HTTP library raises.

    Raises:
        FetchRefused: the server cannot be reached, cannot prove its name, or does not speak HTTP.
    """
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.TimeoutException) as exc:
        if isinstance(exc.__cause__, ssl.SSLError):
            detail = "the server has no valid TLS certificate for that name"
        else:
            detail = "the server cannot be reached"
        raise FetchRefused(detail, remedy=REMEDY) from exc
    except (
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.UnsupportedProtocol,
        httpcore2.ProxyError,
        httpcore2.ConnectionNotAvailable,
    ) as exc:
        raise FetchRefused("the answer breaks off or is not HTTP", remedy=REMEDY) from exc


class Fetcher:
    """Asks only public addresses, and only those it judged.

    A name is resolved once per hop, every answer must be allowed, and the connection goes to one
    of these very addresses; TLS and Host keep the name. No proxy, cookie or credential is used.

    Args:
        max_bytes: of one picture.
        resolve: names to addresses; the machine's own when absent.
        is_allowed: judges an address; by config.allow_private when absent.
        ssl_context: whom to trust; the machine's authorities when absent.
        network: makes the connections, to addresses only.
    """

    def __init__(
        self,
        config: FetchConfig,
        max_bytes: int,
        resolve: Resolve | None = None,
        is_allowed: AddressRule | None = None,
        ssl_context: ssl.SSLContext | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ):
        self._config = config
        self._max_bytes = max_bytes
        self._resolve = resolve or SystemResolver()
        self._is_allowed = is_allowed or _rule_of(config)
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()
        self._network = network or httpcore2.AnyIOBackend()

    async def __call__(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            FetchRefused: not allowed, not public, not a picture, too slow, or fetching is off.
            ImageTooLarge: more than max_bytes.
        """
        if not self._config.enabled:
            raise FetchRefused("images by URL are not fetched here", remedy=INLINE)
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._follow(url)
        except TimeoutError as exc:
            detail = f"the server needs more than {self._config.timeout_s:g} s"
            raise FetchRefused(detail, remedy=REMEDY) from exc

    async def _follow(self, url: str) -> bytes:
        target = Target.read(url, self._config)
        for _ in range(self._config.max_redirects + 1):
            answer = await self._get(target)
            if isinstance(answer, bytes):
                return answer
            target = answer
        raise FetchRefused(
            f"redirected more than {self._config.max_redirects} times", remedy=REMEDY
        )

    async def _get(self, target: Target) -> Target | bytes:
        """One hop: the picture, or where it is said to be."""
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=self._ssl_context,
            network_backend=PinnedNetwork(await self._judge(target), self._network),
        )
        url = httpcore2.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.url.raw_path
        )
        timeouts = {"connect": self._config.connect_timeout_s}
        with map_fetch_errors():
            try:
                async with connection.stream(
                    "GET", url, headers=_headers(target), extensions={"timeout": timeouts}
                ) as response:
                    if response.status in REDIRECTS:
                        location = _header(response, b"location").decode("utf-8", "replace")
                        return Target.read(location, self._config, target)
                    check_answer(response, self._max_bytes)
                    return await self._read(response)
            finally:
                await connection.aclose()

    async def _judge(self, target: Target) -> Sequence[Address]:
        """The addresses of a host, if all of them are allowed.

        Raises:
            FetchRefused: in the same words whether a name is unknown or leads inside, so that
                nobody can list our network by asking.
        """
        addresses = [read_address(answer) for answer in await self._resolve(target.host)]
        judged = [found for found in addresses if found is not None and self._is_allowed(found)]
        if not judged or len(judged) < len(addresses):
            raise FetchRefused("the URL does not lead to a public address", remedy=REMEDY)
        return judged[:MAX_ADDRESSES]

    async def _read(self, response: httpcore2.Response) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_stream():
            if len(data) + len(chunk) > self._max_bytes:
                raise _too_large(self._max_bytes)
            data += chunk
        if not data:
            raise FetchRefused("the answer is empty", remedy=REMEDY)
        return bytes(data)


def check_answer(response: httpcore2.Response, max_bytes: int) -> None:
    """Refuse an answer by its head, before its body is read.

    Raises:
        FetchRefused: not 200, compressed, or declared to be something other than a picture.
        ImageTooLarge: declared to be too large.
    """
    if response.status != 200:
        raise FetchRefused(f"the server answers {response.status}", remedy=REMEDY)
    if _header(response, b"content-encoding").lower() not in (b"", b"identity"):
        # Unasked for, and a few kilobytes could unpack to gigabytes.
        raise FetchRefused("the answer is compressed", remedy=REMEDY)
    media_type = _header(response, b"content-type").split(b";")[0].strip().lower()
    if not media_type.startswith(b"image/") and media_type not in MEDIA_TYPES:
        raise FetchRefused("the answer's content type is not an image's", remedy=REMEDY)
    declared = _header(response, b"content-length")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)


def _rule_of(config: FetchConfig) -> AddressRule:
    return is_public_or_private if config.allow_private else is_public


def _headers(target: Target) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", target.url.netloc),
        (b"User-Agent", USER_AGENT),
        (b"Accept", b"image/*"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]


def _header(response: httpcore2.Response, name: bytes) -> bytes:
    """A header's value; several of one name are read as one list (RFC 9110, 5.3)."""
    return b", ".join(value for key, value in response.headers if key.lower() == name)


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the picture behind the URL is larger than {max_bytes / 2**20:g} MiB",
        remedy="put a smaller or more strongly compressed picture there",
    )
