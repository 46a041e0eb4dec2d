"""A small internet on loopback: its names, addresses and certificates, and servers that misbehave.

The rules under test judge the addresses as they are; only the last step, the connection itself,
is led to 127.0.0.1.
"""

import asyncio
import datetime as dt
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve.config import FetchConfig
from serve.errors import FetchRefused
from serve.fetching.address import read_address
from serve.fetching.fetch import Fetcher
from serve.fetching.post import Poster

SHOP = "shop.example.org"
SHOP_IP = "93.184.216.34"
CDN = "cdn.example.net"
CDN_IP = "2606:2800:220:1::1"
URL = f"https://{SHOP}/a.png"
PICTURE = b"the bytes of a picture"

Play = Callable[[socket.socket], None]


def answer(
    body: bytes = b"", *headers: str, status: str = "200 OK", media_type: str = "image/png"
) -> bytes:
    """One HTTP answer; a Content-Length among the headers replaces the true one."""
    length = [] if any(h.lower().startswith("content-length") for h in headers) else [len(body)]
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {media_type}", *headers]
    lines += [f"Content-Length: {value}" for value in length]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"", f"Location: {location}", status=f"{status} Elsewhere")


class Names:
    """A name server: the answers of each name in turn, the last one for ever."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]):
        self._answers = {name: list(turns) for name, turns in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if read_address(host) is not None:
            return (host,)
        turns = self._answers.get(host, [()])
        return turns.pop(0) if len(turns) > 1 else turns[0]


class LoopbackNetwork(httpcore2.AsyncNetworkBackend):
    """Leads each (address, port) to a port of this machine; nothing listens anywhere else."""

    def __init__(self, ports: Mapping[tuple[str, int], int]):
        self._ports = ports
        self._real = httpcore2.AnyIOBackend()
        self.dialled: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.dialled.append((host, port))
        if (host, port) not in self._ports:
            raise httpcore2.ConnectError("nothing listens there")
        return await self._real.connect_tcp("127.0.0.1", self._ports[host, port], timeout)


class Authority:
    """Signs certificates, and is trusted by `client_context` alone."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name.from_rfc4514_string("CN=an authority of this test run")
        built = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._certificate = built.sign(self._key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    @property
    def client_context(self) -> ssl.SSLContext:
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        return ssl.create_default_context(cadata=pem.decode())

    def server_context(self, *names: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        subject = x509.Name.from_rfc4514_string("CN=a server of this test run")
        built = self._builder(subject, key).add_extension(alternatives, critical=False)
        certificate = built.sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain = self._folder / f"{names[0]}.pem"
        chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


@dataclass
class Site:
    """A server that answers each path with the bytes, or the play, that a test says."""

    answers: dict[str, bytes | Play] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    """Of every request that arrived."""
    bodies: list[bytes] = field(default_factory=list)
    """As above; empty where none was sent."""
    server_names: list[str | None] = field(default_factory=list)
    """What each TLS client asked for (SNI)."""
    port: int = 0

    def serve(self, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(4096)
                if not received:
                    return
                head += received
            head, _, body = head.partition(b"\r\n\r\n")
            head += b"\r\n\r\n"
            self.heads.append(head.decode())
            self.bodies.append(_read_body(connection, head, body))
            played = self.answers[head.split()[1].decode()]
            if callable(played):
                played(connection)
            else:
                connection.sendall(played)


def _read_body(connection: socket.socket, head: bytes, body: bytes) -> bytes:
    declared = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
    while declared is not None and len(body) < int(declared[1]):
        received = connection.recv(65536)
        if not received:
            break
        body += received
    return body


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what most tests are about."""


@contextmanager
def open_site(tls: ssl.SSLContext | None) -> Iterator[Site]:
    """A site on a free port of 127.0.0.1."""
    site = Site()

    class Visit(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            site.serve(self.request, tls)

    def note_name(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        site.server_names.append(name)

    if tls is not None:
        tls.sni_callback = note_name
    with _Server(("127.0.0.1", 0), Visit) as server:
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@dataclass
class Web:
    """Two hosts with certificates, one of them reached over IPv6, and the shop without TLS."""

    authority: Authority
    shop: Site
    cdn: Site
    plain: Site

    def reset(self) -> None:
        """Every host has its picture again, and nobody was there."""
        for site in (self.shop, self.cdn, self.plain):
            site.answers = {"/a.png": answer(PICTURE)}
            site.heads, site.bodies, site.server_names = [], [], []

    def names(self, **more: Sequence[Sequence[str]]) -> Names:
        return Names({SHOP: [(SHOP_IP,)], CDN: [(CDN_IP,)], **more})

    def network(self, more: Mapping[tuple[str, int], int] | None = None) -> LoopbackNetwork:
        ports = {
            (SHOP_IP, 443): self.shop.port,
            (SHOP_IP, 80): self.plain.port,
            (CDN_IP, 443): self.cdn.port,
        }
        return LoopbackNetwork({**ports, **(more or {})})

    def fetcher(
        self,
        config: FetchConfig | None = None,
        max_bytes: int = 2**20,
        names: Names | None = None,
        network: LoopbackNetwork | None = None,
    ) -> Fetcher:
        return Fetcher(
            config or FetchConfig(),
            max_bytes,
            resolve=names or self.names(),
            ssl_context=self.authority.client_context,
            network=network or self.network(),
        )

    def poster(
        self,
        config: FetchConfig | None = None,
        names: Names | None = None,
        network: LoopbackNetwork | None = None,
    ) -> Poster:
        return Poster(
            config or FetchConfig(),
            resolve=names or self.names(),
            ssl_context=self.authority.client_context,
            network=network or self.network(),
        )


@contextmanager
def open_web(folder: Path) -> Iterator[Web]:
    authority = Authority(folder)
    shop_tls, cdn_tls = authority.server_context(SHOP), authority.server_context(CDN)
    with open_site(shop_tls) as shop, open_site(cdn_tls) as cdn, open_site(None) as plain:
        yield Web(authority, shop, cdn, plain)


def refusal(fetcher: Fetcher, url: str = URL) -> str:
    """Why a URL was refused."""
    with pytest.raises(FetchRefused) as caught:
        asyncio.run(fetcher(url))
    assert caught.value.remedy
    return caught.value.detail


def refusing_fetcher() -> Fetcher:
    """For tests about something else: knows no name, and nothing listens anywhere."""
    return Fetcher(FetchConfig(), 2**20, resolve=Names({}), network=LoopbackNetwork({}))
