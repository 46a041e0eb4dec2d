"""Fetches a picture from a URL somebody else chose."""

import asyncio
import ssl

import httpcore2

from serve.config import FetchConfig
from serve.errors import FetchRefused, ImageTooLarge
from serve.fetching.address import AddressRule
from serve.fetching.dialer import Dialer, header_of
from serve.fetching.network import Resolve
from serve.fetching.target import REMEDY, Target

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MEDIA_TYPES = (b"application/octet-stream", b"binary/octet-stream")  # the second is S3's own
ACCEPT = ((b"Accept", b"image/*"),)
INLINE = "send the file itself or a data URI (data:image/png;base64,...)"


class Fetcher:
    """Follows a few redirects, each judged like the URL itself, to one bounded picture.

    Args:
        max_bytes: of one picture.
        resolve, is_allowed, ssl_context, network: as a Dialer takes them.
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
        self._dialer = Dialer(config, resolve, is_allowed, ssl_context, network)

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
        async with self._dialer.ask("GET", target, ACCEPT) as response:
            if response.status in REDIRECTS:
                location = header_of(response, b"location").decode("utf-8", "replace")
                return Target.read(location, self._config, target)
            check_answer(response, self._max_bytes)
            return await self._read(response)

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
    if header_of(response, b"content-encoding").lower() not in (b"", b"identity"):
        # Unasked for, and a few kilobytes could unpack to gigabytes.
        raise FetchRefused("the answer is compressed", remedy=REMEDY)
    media_type = header_of(response, b"content-type").split(b";")[0].strip().lower()
    if not media_type.startswith(b"image/") and media_type not in MEDIA_TYPES:
        raise FetchRefused("the answer's content type is not an image's", remedy=REMEDY)
    declared = header_of(response, b"content-length")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the picture behind the URL is larger than {max_bytes / 2**20:g} MiB",
        remedy="put a smaller or more strongly compressed picture there",
    )
