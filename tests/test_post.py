"""No URL, name, redirect or answer makes a webhook go where it should not, or hang, or overflow."""

import asyncio
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.config import FetchConfig
from serve.errors import FetchRefused, InvalidRequest
from serve.fetching.post import Poster, Reply, check_webhook_url
from tests.loopback_web import (
    CDN,
    CDN_IP,
    SHOP,
    SHOP_IP,
    Names,
    Play,
    Web,
    answer,
    open_site,
    open_web,
    redirect,
)

HOOK = f"https://{SHOP}/hook?for=us"
BODY = b'{"type":"job.succeeded"}'


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with open_web(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def web(opened: Web) -> Web:
    opened.reset()
    for site in (opened.shop, opened.cdn, opened.plain):
        site.answers = {"/hook?for=us": answer(b"thanks", media_type="text/plain")}
    return opened


def send(poster: Poster, url: str = HOOK) -> Reply:
    return asyncio.run(poster(url, {"webhook-id": "whd_1"}, BODY))


def refusal(poster: Poster, url: str = HOOK) -> str:
    with pytest.raises(FetchRefused) as caught:
        send(poster, url)
    return caught.value.detail


def test_message_arrives_whole_and_the_name_goes_into_tls_and_host(web: Web) -> None:
    network = web.network()
    assert send(web.poster(network=network)) == Reply(200, None)
    assert network.dialled == [(SHOP_IP, 443)]
    assert web.shop.server_names == [SHOP]
    (head,) = web.shop.heads
    assert head.splitlines()[0] == "POST /hook?for=us HTTP/1.1"
    assert f"Host: {SHOP}\r\n" in head
    assert "webhook-id: whd_1\r\n" in head
    assert "Content-Type: application/json\r\n" in head
    assert head.lower().count("content-length:") == 1
    assert "transfer-encoding" not in head.lower()
    assert not {"cookie", "authorization", "referer"} & set(head.lower().replace(":", "\n").split())
    assert web.shop.bodies == [BODY]


def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(web.poster()).status == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", [f"https://{CDN}/hook", "https://127.0.0.1/", "/elsewhere"])
def test_redirect_is_never_followed(web: Web, status: int, location: str) -> None:
    web.shop.answers["/hook?for=us"] = redirect(location, status)
    network = web.network()
    assert send(web.poster(network=network)).status == status
    assert network.dialled == [(SHOP_IP, 443)]
    assert web.cdn.heads == []


def test_name_that_turns_inside_after_the_check_is_not_asked_again(web: Web) -> None:
    names = web.names(**{SHOP: [(SHOP_IP,), ("127.0.0.1",)]})
    network = web.network({("127.0.0.1", 443): web.cdn.port})
    assert send(web.poster(names=names, network=network)).status == 200
    assert names.asked == [SHOP]
    assert network.dialled == [(SHOP_IP, 443)]


def test_name_that_turns_inside_between_two_attempts_is_refused(web: Web) -> None:
    names = web.names(**{SHOP: [(SHOP_IP,), ("127.0.0.1",)]})
    network = web.network({("127.0.0.1", 443): web.cdn.port})
    poster = web.poster(names=names, network=network)
    assert send(poster).status == 200
    assert "public" in refusal(poster)
    assert network.dialled == [(SHOP_IP, 443)]


@pytest.mark.parametrize("inside", ["10.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_one_private_answer_among_public_ones_is_enough_to_refuse(web: Web, inside: str) -> None:
    for answers in ((SHOP_IP, inside), (inside, SHOP_IP)):
        network = web.network()
        names = web.names(**{SHOP: [answers]})
        assert "public" in refusal(web.poster(names=names, network=network))
        assert network.dialled == []


def test_second_address_is_tried_when_the_first_does_not_answer(web: Web) -> None:
    network = web.network()
    names = web.names(**{SHOP: [("2a00::1", SHOP_IP)]})
    assert send(web.poster(names=names, network=network)).status == 200
    assert network.dialled == [("2a00::1", 443), (SHOP_IP, 443)]


INSIDE = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0/",
    "https://10.0.0.1/",
    "https://172.16.5.4/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://168.63.129.16/",
    "https://224.0.0.1/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[2002:7f00:1::]/",
    "https://127。0。0。1/",
]
WRONG = [
    ("http://shop.example.org/", "only https"),
    ("ftp://shop.example.org/", "only https"),
    ("file:///etc/passwd", "only https"),
    ("gopher://127.0.0.1:6379/_INFO", "only https"),
    ("https://user:secret@shop.example.org/", "user name or password"),
    ("https://shop.example.org@127.0.0.1/", "user name or password"),
    ("https://shop.example.org:22/", "ports"),
    ("https://shop.example.org:8443/", "ports"),
    ("https://", "host"),
    ("https:/hook", "host"),
    ("https://[fe80::1%25eth0]/", "host"),
    ("https://[::1/", "not a URL"),
    ("https://0177.0.0.1/", "not a URL"),
    ("https://shop.example.org/\r\nX: y", "spaces, control"),
    ("https://shop.example.org\\@127.0.0.1/", "spaces, control"),
    (f"https://{SHOP}/{'a' * 5000}", "characters"),
    ("", "only https"),
]


@pytest.mark.parametrize("url", INSIDE)
def test_address_inside_is_refused_when_it_is_given_and_when_it_is_asked(
    web: Web, url: str
) -> None:
    with pytest.raises(InvalidRequest, match="public"):
        check_webhook_url(url, FetchConfig())
    network = web.network()
    poster = Poster(FetchConfig(), network=network)  # the machine's own resolver: it spells out
    assert "public" in refusal(poster, url)
    assert network.dialled == []


@pytest.mark.parametrize(("url", "reason"), WRONG)
def test_url_that_is_refused_when_it_is_given_and_when_it_is_asked(
    web: Web, url: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        check_webhook_url(url, FetchConfig())
    assert [field for field, _ in caught.value.fields] == ["webhook_url"]
    network = web.network()
    assert reason in refusal(web.poster(network=network), url)
    assert network.dialled == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "printer.local", "vault.internal", "x.local."],
)
def test_name_that_is_only_known_inside_is_refused_when_it_is_given(host: str) -> None:
    with pytest.raises(InvalidRequest, match="public"):
        check_webhook_url(f"https://{host}/", FetchConfig())


def test_url_is_given_back_as_it_will_be_asked() -> None:
    config = FetchConfig()
    assert check_webhook_url("HTTPS://Shop.Example.org/Hook", config) == f"https://{SHOP}/Hook"
    assert check_webhook_url("https://shop.example.org", config) == "https://shop.example.org/"
    assert check_webhook_url("https://93.184.216.34/a", config) == "https://93.184.216.34/a"
    closed = FetchConfig(allow_private=True)
    assert check_webhook_url("https://10.0.0.5/a", closed) == "https://10.0.0.5/a"
    with pytest.raises(InvalidRequest, match="public"):
        check_webhook_url("https://127.0.0.1/a", closed)


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,20}[@:%#?\[\]\\]{0,3}.{0,20}"))
def test_any_text_is_a_url_of_a_receiver_or_refused(text: str) -> None:
    config = FetchConfig()
    try:
        url = check_webhook_url(text, config)
    except InvalidRequest:
        return
    assert url.startswith("https://")
    assert check_webhook_url(url, config) == url


def test_certificate_of_another_name_is_refused(web: Web) -> None:
    names = web.names(**{CDN: [(SHOP_IP,)]})
    assert "TLS certificate" in refusal(web.poster(names=names), f"https://{CDN}/hook")
    assert web.shop.heads == []


def test_certificate_of_an_unknown_authority_is_refused(web: Web) -> None:
    poster = Poster(FetchConfig(), resolve=web.names(), network=web.network())
    assert "TLS certificate" in refusal(poster)
    assert web.shop.bodies == []


def test_site_without_tls_behind_https_gets_nothing(web: Web) -> None:
    with open_site(None) as plain:
        network = web.network({(SHOP_IP, 443): plain.port})
        poster = web.poster(FetchConfig(connect_timeout_s=0.2), network=network)
        assert refusal(poster) == "the server cannot be reached"
        assert plain.bodies == []


def test_http_and_private_networks_where_the_configuration_says_so(web: Web) -> None:
    config = FetchConfig(schemes=("https", "http"), allow_private=True)
    network = web.network({("10.0.0.5", 80): web.plain.port, (CDN_IP, 80): web.plain.port})
    names = web.names(**{SHOP: [("10.0.0.5",)]})
    assert send(web.poster(config, names, network), f"http://{SHOP}/hook?for=us").status == 200
    assert "public" in refusal(web.poster(config, names, network), "http://127.0.0.1/")


def test_sending_that_is_switched_off_asks_nobody(web: Web) -> None:
    names = web.names()
    assert (
        refusal(web.poster(FetchConfig(enabled=False), names)) == "messages are not sent from here"
    )
    assert names.asked == []


def endless(connection: socket.socket) -> None:
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        return


def never_ending(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
    wait_for_hangup(connection)


def wait_for_hangup(connection: socket.socket) -> None:
    try:
        while connection.recv(4096):
            pass
    except OSError:
        return


@pytest.mark.parametrize("play", [endless, never_ending])
def test_answer_counts_by_its_head_whatever_its_body_is(web: Web, play: Play) -> None:
    web.shop.answers["/hook?for=us"] = play
    assert send(web.poster()).status == 200


def drip_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")
    wait_for_hangup(connection)


@pytest.mark.parametrize("play", [drip_head, wait_for_hangup])
def test_receiver_that_never_answers_is_given_up(web: Web, play: Play) -> None:
    web.shop.answers["/hook?for=us"] = play
    assert refusal(web.poster(FetchConfig(timeout_s=0.3))) == "the server needs more than 0.3 s"


def endless_header(connection: socket.socket) -> None:
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        return


@pytest.mark.parametrize("played", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", endless_header])
def test_answer_that_is_not_http_is_refused(web: Web, played: bytes | Play) -> None:
    web.shop.answers["/hook?for=us"] = played
    assert refusal(web.poster()) == "the answer breaks off or is not HTTP"


@pytest.mark.parametrize(
    ("header", "expected_s"),
    [("120", 120), ("0", 0), ("soon", None), ("-5", None), ("1e9", None), ("9" * 30, 999_999_999)],
)
def test_wish_for_a_later_attempt_is_read(web: Web, header: str, expected_s: float | None) -> None:
    web.shop.answers["/hook?for=us"] = answer(
        b"", f"Retry-After: {header}", status="503 Service Unavailable"
    )
    assert send(web.poster()) == Reply(503, expected_s)


def test_wish_for_a_later_attempt_may_be_a_date(web: Web) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    web.shop.answers["/hook?for=us"] = answer(b"", f"Retry-After: {at}", status="429 Slow down")
    retry_after_s = send(web.poster()).retry_after_s
    assert retry_after_s is not None
    assert 80 < retry_after_s <= 90


def test_name_server_that_never_answers_is_given_up(web: Web) -> None:
    async def hang(host: str) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    poster = Poster(FetchConfig(timeout_s=0.05), resolve=hang, network=web.network())
    assert refusal(poster) == "the server needs more than 0.05 s"


def test_unknown_name_and_one_inside_are_refused_in_the_same_words(web: Web) -> None:
    names = Names({"inside.example.org": [("10.0.0.1",)]})
    assert refusal(web.poster(names=names), "https://inside.example.org/") == refusal(
        web.poster(names=names), "https://unknown.example.org/"
    )
