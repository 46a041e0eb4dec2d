"""No server makes a fetch hang, overflow, unpack or believe what an answer says of itself."""

import asyncio
import gzip
import inspect
import socket
import threading
from collections.abc import Iterator

import httpcore2
import pytest

from serve.config import FetchConfig
from serve.errors import FetchRefused, ImageTooLarge
from serve.fetching.dialer import map_fetch_errors
from serve.fetching.fetch import Fetcher
from tests.loopback_web import PICTURE, URL, Play, Web, answer, open_web, refusal


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with open_web(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def web(opened: Web) -> Web:
    opened.reset()
    return opened


def pour(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        return


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
    pour(connection)


def endless_chunks(connection: socket.socket) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    try:
        connection.sendall(head)
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    except OSError:
        return


def declared_huge(connection: socket.socket) -> None:
    connection.sendall(answer(b"", "Content-Length: 1000000000000"))
    wait_for_hangup(connection)


def wait_for_hangup(connection: socket.socket) -> None:
    """Sends nothing more; ends when the client leaves."""
    try:
        while connection.recv(4096):
            pass
    except OSError:
        return


@pytest.mark.parametrize("play", [endless, endless_chunks, declared_huge])
def test_body_above_the_limit_is_cut_off(web: Web, play: Play) -> None:
    web.shop.answers["/a.png"] = play
    with pytest.raises(ImageTooLarge, match="larger than 0.125 MiB"):
        asyncio.run(web.fetcher(max_bytes=2**17)(URL))


@pytest.mark.parametrize("num_bytes", [2**17, 2**17 + 1])
def test_limit_is_exact(web: Web, num_bytes: int) -> None:
    web.shop.answers["/a.png"] = answer(b"x" * num_bytes)
    fetch = web.fetcher(max_bytes=2**17)
    if num_bytes == 2**17:
        assert len(asyncio.run(fetch(URL))) == num_bytes
        return
    with pytest.raises(ImageTooLarge):
        asyncio.run(fetch(URL))


def drip_body(connection: socket.socket) -> None:
    connection.sendall(answer(b"a", "Content-Length: 100"))
    wait_for_hangup(connection)


def drip_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")
    wait_for_hangup(connection)


def endless_interim(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
    except OSError:
        return


@pytest.mark.parametrize("play", [drip_body, drip_head, endless_interim])
def test_server_that_never_ends_is_given_up(web: Web, play: Play) -> None:
    web.shop.answers["/a.png"] = play
    detail = refusal(web.fetcher(FetchConfig(timeout_s=0.3)))
    assert detail == "the server needs more than 0.3 s"


def test_name_server_that_never_answers_is_given_up(web: Web) -> None:
    async def hang(host: str) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    fetcher = Fetcher(FetchConfig(timeout_s=0.05), 2**20, resolve=hang, network=web.network())
    assert refusal(fetcher) == "the server needs more than 0.05 s"


def endless_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    pour(connection)


@pytest.mark.parametrize(
    "played",
    [
        answer(b"half", "Content-Length: 100"),
        answer(b"", "Content-Length: -5"),
        answer(b"abc", "Content-Length: 3", "Content-Length: 4"),
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
        endless_header,
    ],
)
def test_answer_that_is_not_what_it_says_is_refused(web: Web, played: bytes | Play) -> None:
    web.shop.answers["/a.png"] = played
    assert refusal(web.fetcher()) == "the answer breaks off or is not HTTP"


def test_bytes_beyond_the_declared_length_are_not_read(web: Web) -> None:
    web.shop.answers["/a.png"] = answer(PICTURE + b"more", f"Content-Length: {len(PICTURE)}")
    assert asyncio.run(web.fetcher()(URL)) == PICTURE


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "identity, gzip", "zstd", "x-unknown"])
def test_compressed_answer_is_refused_unopened(web: Web, encoding: str) -> None:
    bomb = gzip.compress(b"\0" * 2**24)
    web.shop.answers["/a.png"] = answer(bomb, f"Content-Encoding: {encoding}")
    assert refusal(web.fetcher()) == "the answer is compressed"


def test_archive_that_says_it_is_a_picture_stays_packed(web: Web) -> None:
    bomb = gzip.compress(b"\0" * 2**24)
    web.shop.answers["/a.png"] = answer(bomb)
    assert asyncio.run(web.fetcher()(URL)) == bomb


@pytest.mark.parametrize(
    "media_type", ["text/html", "application/json", "", "image", "text/html; image/png"]
)
def test_answer_of_another_type_is_refused(web: Web, media_type: str) -> None:
    web.shop.answers["/a.png"] = answer(PICTURE, media_type=media_type)
    assert "content type" in refusal(web.fetcher())


@pytest.mark.parametrize(
    "media_type",
    ["image/jpeg", "Image/WebP; q=1", "application/octet-stream", "binary/octet-stream"],
)
def test_picture_types_are_left_to_the_decoder(web: Web, media_type: str) -> None:
    web.shop.answers["/a.png"] = answer(PICTURE, media_type=media_type)
    assert asyncio.run(web.fetcher()(URL)) == PICTURE


@pytest.mark.parametrize("status", ["404 Not Found", "206 Partial Content", "204 No Content"])
def test_answer_without_the_picture_is_refused_by_status(web: Web, status: str) -> None:
    web.shop.answers["/a.png"] = answer(b"", status=status)
    assert refusal(web.fetcher()) == f"the server answers {status[:3]}"


def test_empty_answer_is_refused(web: Web) -> None:
    web.shop.answers["/a.png"] = answer(b"")
    assert refusal(web.fetcher()) == "the answer is empty"


def test_cancelled_fetch_hangs_up(web: Web) -> None:
    arrived, left = threading.Event(), threading.Event()

    def play(connection: socket.socket) -> None:
        connection.sendall(answer(b"a", "Content-Length: 100"))
        arrived.set()
        wait_for_hangup(connection)
        left.set()

    web.shop.answers["/a.png"] = play

    async def cancel() -> None:
        task = asyncio.create_task(web.fetcher()(URL))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(left.wait, 10)

    asyncio.run(cancel())


def test_every_error_of_the_http_library_becomes_a_refusal() -> None:
    raised = [
        kind
        for kind in (getattr(httpcore2, name) for name in httpcore2.__all__)
        if inspect.isclass(kind) and issubclass(kind, Exception)
    ]
    assert len(raised) > 10
    for kind in raised:
        with pytest.raises(FetchRefused), map_fetch_errors():
            raise kind("x")
