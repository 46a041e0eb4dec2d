"""Sends a message to a URL somebody else chose, and reads no more of the answer than its head."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import inet_aton, inet_ntoa

import httpcore2

from serve.config import FetchConfig
from serve.errors import FetchRefused, InvalidRequest
from serve.fetching.address import AddressRule, read_address
from serve.fetching.dialer import NOT_PUBLIC, Dialer, header_of, rule_of
from serve.fetching.network import Resolve
from serve.fetching.target import REMEDY, Target

LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")
FIELD = "webhook_url"
RECEIVER_REMEDY = "name an https URL that anyone on the internet can reach"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver said to a message."""

    status: int
    retry_after_s: float | None
    """As it asked for; none where it did not, or not in a way HTTP knows."""


class Poster:
    """Every message is judged anew: a name may have turned inside since the last one.

    Args:
        resolve, is_allowed, ssl_context, network: as a Dialer takes them.
    """

    def __init__(
        self,
        config: FetchConfig,
        resolve: Resolve | None = None,
        is_allowed: AddressRule | None = None,
        ssl_context: ssl.SSLContext | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ):
        self._config = config
        self._dialer = Dialer(config, resolve, is_allowed, ssl_context, network)

    @property
    def timeout_s(self) -> float:
        return self._config.timeout_s

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """POST a JSON body; a redirect is an answer like any other.

        Raises:
            FetchRefused: not allowed, not public, not HTTP, too slow, or sending is off.
        """
        if not self._config.enabled:
            raise FetchRefused("messages are not sent from here", remedy=RECEIVER_REMEDY)
        target = Target.read(url, self._config)
        all_headers = [
            *((name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", str(len(body)).encode()),
        ]
        try:
            async with asyncio.timeout(self._config.timeout_s):
                async with self._dialer.ask("POST", target, all_headers, body) as response:
                    # Its body is never read: nobody needs it, and it may have no end.
                    return Reply(response.status, _retry_after_s(response))
        except TimeoutError as exc:
            detail = f"the server needs more than {self._config.timeout_s:g} s"
            raise FetchRefused(detail, remedy=REMEDY) from exc


def check_webhook_url(url: str, config: FetchConfig, field: str = FIELD) -> str:
    """The URL as it will be asked, if nothing about it is wrong yet; no name is looked up.

    Whether its address is public is judged at every attempt.

    Raises:
        InvalidRequest: not a URL, or one that no message will ever be sent to.
    """
    try:
        target = Target.read(url, config)
    except FetchRefused as exc:
        raise _refused(field, exc.detail) from exc
    name = target.host.removesuffix(".")
    if any(name == local or name.endswith(f".{local}") for local in LOCAL_NAMES):
        raise _refused(field, NOT_PUBLIC)
    address = read_address(_spelled_out(name))
    if address is not None and not rule_of(config)(address):
        raise _refused(field, NOT_PUBLIC)
    asked = target.url.netloc + target.url.raw_path
    return f"{target.scheme}://{asked.decode('ascii')}"


def _spelled_out(host: str) -> str:
    """`0x7f.1` is 127.0.0.1 to whoever resolves it."""
    try:
        return inet_ntoa(inet_aton(host))
    except OSError:
        return host


def _refused(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {detail}", remedy=RECEIVER_REMEDY, fields=((field, detail),))


def _retry_after_s(response: httpcore2.Response) -> float | None:
    """Seconds or a date (RFC 9110, 10.2.3)."""
    text = header_of(response, b"retry-after").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
