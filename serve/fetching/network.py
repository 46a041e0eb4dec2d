"""Names to addresses, and connections to addresses that were judged already."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore2

from serve.fetching.address import Address

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""A host name, or an address in any spelling, to addresses; none when there are none."""


class SystemResolver:
    """Asks what the machine asks, on threads of its own: a name server that hangs holds up no
    decoding."""

    def __init__(self, num_threads: int = 8):
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="resolve")

    async def __call__(self, host: str) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up, host)


def look_up(host: str) -> tuple[str, ...]:
    """Every address of a host; getaddrinfo also reads what inet_aton does (`0x7f.1`)."""
    try:
        # As bytes: for text Python applies its own, older international names.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to the given addresses, whatever host is asked for: there is no second lookup
    for a name server to answer differently."""

    def __init__(self, addresses: Sequence[Address], network: httpcore2.AsyncNetworkBackend):
        self._addresses = addresses
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        *others, last = self._addresses
        for address in others:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(
            str(last), port, timeout, local_address, socket_options
        )
