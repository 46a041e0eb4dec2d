"""Asks a server somebody else chose, without being their hands in our network."""

import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import httpcore2

from serve.config import FetchConfig
from serve.errors import FetchRefused
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
MAX_ADDRESSES = 4
NOT_PUBLIC = "the URL does not lead to a public address"

Headers = Sequence[tuple[bytes, bytes]]


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


class Dialer:
    """Asks only public addresses, and only those it judged.

    A name is resolved once per request, every answer must be allowed, and the connection goes to
    one of these very addresses; TLS and Host keep the name. No proxy, cookie or credential is
    used, and no redirect followed: whoever follows one asks again, and is judged again.

    Args:
        resolve: names to addresses; the machine's own when absent.
        is_allowed: judges an address; by config.allow_private when absent.
        ssl_context: whom to trust; the machine's authorities when absent.
        network: makes the connections, to addresses only.
    """

    def __init__(
        self,
        config: FetchConfig,
        resolve: Resolve | None = None,
        is_allowed: AddressRule | None = None,
        ssl_context: ssl.SSLContext | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ):
        self._connect_timeout_s = config.connect_timeout_s
        self._resolve = resolve or SystemResolver()
        self._is_allowed = is_allowed or rule_of(config)
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()
        self._network = network or httpcore2.AnyIOBackend()

    @asynccontextmanager
    async def ask(
        self, method: str, target: Target, headers: Headers, body: bytes | None = None
    ) -> AsyncIterator[httpcore2.Response]:
        """One request on a connection of its own, which is closed when the block ends.

        Raises:
            FetchRefused: not a public address, or the server does not answer as it must.
        """
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=self._ssl_context,
            network_backend=PinnedNetwork(await self._judge(target), self._network),
        )
        url = httpcore2.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.url.raw_path
        )
        all_headers = [
            (b"Host", target.url.netloc),
            (b"User-Agent", USER_AGENT),
            *headers,
            (b"Accept-Encoding", b"identity"),
            (b"Connection", b"close"),
        ]
        timeouts = {"connect": self._connect_timeout_s}
        with map_fetch_errors():
            try:
                async with connection.stream(
                    method,
                    url,
                    headers=all_headers,
                    content=body,
                    extensions={"timeout": timeouts},
                ) as response:
                    yield response
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
            raise FetchRefused(NOT_PUBLIC, remedy=REMEDY)
        return judged[:MAX_ADDRESSES]


def rule_of(config: FetchConfig) -> AddressRule:
    return is_public_or_private if config.allow_private else is_public


def header_of(response: httpcore2.Response, name: bytes) -> bytes:
    """A header's value; several of one name are read as one list (RFC 9110, 5.3)."""
    return b", ".join(value for key, value in response.headers if key.lower() == name)
