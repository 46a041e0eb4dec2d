"""No URL, redirect, name or certificate makes the server ask anybody it should not."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.config import FetchConfig
from serve.errors import FetchRefused
from serve.fetching.fetch import Fetcher
from serve.fetching.target import HOST, Target
from tests.loopback_web import (
    CDN,
    CDN_IP,
    PICTURE,
    SHOP,
    SHOP_IP,
    URL,
    Names,
    Web,
    answer,
    open_site,
    open_web,
    redirect,
    refusal,
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with open_web(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def web(opened: Web) -> Web:
    opened.reset()
    return opened


def test_picture_arrives_whole_and_the_name_goes_into_tls_and_host(web: Web) -> None:
    network = web.network()
    assert asyncio.run(web.fetcher(network=network)(URL)) == PICTURE
    assert network.dialled == [(SHOP_IP, 443)]
    assert web.shop.server_names == [SHOP]
    (head,) = web.shop.heads
    assert head.splitlines()[0] == "GET /a.png HTTP/1.1"
    assert f"Host: {SHOP}\r\n" in head
    assert "User-Agent: sm4ll-serve\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert not {"cookie", "authorization", "referer"} & set(head.lower().replace(":", "\n").split())


def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert asyncio.run(web.fetcher()(URL)) == PICTURE


def test_query_is_kept_and_fragment_is_not_sent(web: Web) -> None:
    web.shop.answers["/b%20c?sig=%2F&x=1"] = answer(PICTURE)
    asyncio.run(web.fetcher()(f"https://{SHOP}/b%20c?sig=%2F&x=1#@127.0.0.1/"))
    assert web.shop.heads[0].startswith("GET /b%20c?sig=%2F&x=1 HTTP/1.1\r\n")


def test_redirect_is_followed_to_another_judged_host(web: Web) -> None:
    web.shop.answers["/a.png"] = redirect(f"https://{CDN}/a.png")
    network, names = web.network(), web.names()
    assert asyncio.run(web.fetcher(network=network, names=names)(URL)) == PICTURE
    assert names.asked == [SHOP, CDN]
    assert network.dialled == [(SHOP_IP, 443), (CDN_IP, 443)]
    assert web.cdn.server_names == [CDN]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_relative_redirect_stays_on_the_host(web: Web, status: int) -> None:
    web.shop.answers = {"/a.png": redirect("../b.png", status), "/b.png": answer(PICTURE)}
    assert asyncio.run(web.fetcher()(URL)) == PICTURE


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[fd00:ec2::254]/latest/",
        "https://internal.example.org/",
        "//10.0.0.1/",
    ],
)
def test_redirect_inside_is_refused_before_it_is_dialled(web: Web, location: str) -> None:
    web.shop.answers["/a.png"] = redirect(location)
    names = Names({SHOP: [(SHOP_IP,)], "internal.example.org": [("10.1.2.3",)]})
    network = web.network()
    detail = refusal(web.fetcher(names=names, network=network))
    assert detail == "the URL does not lead to a public address"
    assert network.dialled == [(SHOP_IP, 443)]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (f"http://{SHOP}/a.png", "https to http"),
        (f"https://user:secret@{CDN}/a.png", "user name or password"),
        (f"https://{CDN}:8443/a.png", "ports"),
        ("file:///etc/passwd", "only https and http"),
        ("gopher://127.0.0.1:6379/_INFO", "only https and http"),
    ],
)
def test_redirect_is_held_to_the_rules_of_the_url(web: Web, location: str, reason: str) -> None:
    web.shop.answers["/a.png"] = redirect(location)
    config = FetchConfig(schemes=("https", "http"))
    assert reason in refusal(web.fetcher(config))
    assert web.plain.heads == []


@pytest.mark.parametrize("location", [URL, "/a.png", ""])
def test_redirect_loop_ends_after_three(web: Web, location: str) -> None:
    web.shop.answers["/a.png"] = redirect(location)
    assert refusal(web.fetcher()) == "redirected more than 3 times"
    assert len(web.shop.heads) == 4


def test_name_that_turns_inside_after_the_check_is_not_asked_again(web: Web) -> None:
    names = web.names(**{SHOP: [(SHOP_IP,), ("127.0.0.1",)]})
    network = web.network({("127.0.0.1", 443): web.cdn.port})
    assert asyncio.run(web.fetcher(names=names, network=network)(URL)) == PICTURE
    assert names.asked == [SHOP]
    assert network.dialled == [(SHOP_IP, 443)]


def test_name_that_turns_inside_between_two_hops_is_refused(web: Web) -> None:
    web.shop.answers["/a.png"] = redirect("/b.png")
    names = web.names(**{SHOP: [(SHOP_IP,), ("127.0.0.1",)]})
    network = web.network()
    assert "public" in refusal(web.fetcher(names=names, network=network))
    assert network.dialled == [(SHOP_IP, 443)]


@pytest.mark.parametrize("inside", ["10.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_one_private_answer_among_public_ones_is_enough_to_refuse(web: Web, inside: str) -> None:
    for answers in ((SHOP_IP, inside), (inside, SHOP_IP)):
        network = web.network()
        names = web.names(**{SHOP: [answers]})
        assert "public" in refusal(web.fetcher(names=names, network=network))
        assert network.dialled == []


def test_second_address_is_tried_when_the_first_does_not_answer(web: Web) -> None:
    network = web.network()
    names = web.names(**{SHOP: [("2a00::1", SHOP_IP)]})
    assert asyncio.run(web.fetcher(names=names, network=network)(URL)) == PICTURE
    assert network.dialled == [("2a00::1", 443), (SHOP_IP, 443)]


def test_private_addresses_are_refused_in_the_same_words_open_or_closed(web: Web) -> None:
    config = FetchConfig(schemes=("https", "http"), ports=(web.plain.port, 9))
    fetcher = Fetcher(config, 2**20)  # the machine's own resolver and network
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.1", "127.1", "[::1]"]
    hosts += ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0", "[::]"]
    hosts += ["10.0.0.1", "192.168.0.1", "169.254.169.254", "[fd00:ec2::254]", "100.64.0.1"]
    details = {
        refusal(fetcher, f"http://{host}:{port}/a.png") for host in hosts for port in config.ports
    }
    details.add(refusal(web.fetcher(), "https://no-such-name.example.org/"))
    assert details == {"the URL does not lead to a public address"}
    assert web.plain.heads == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http://{SHOP}/a.png", "only https"),
        ("ftp://shop.example.org/a.png", "only https"),
        ("https://good@127.0.0.1/", "user name"),
        (f"https://127.0.0.1:443@{SHOP}/a.png", "user name"),
        (f"https://:@{SHOP}/a.png", "user name"),
        (f"https://{SHOP}\\@127.0.0.1/", "spaces, control"),
        (f"https://{SHOP} .evil/", "spaces, control"),
        (f"https://{SHOP}/\r\nHost: 127.0.0.1", "spaces, control"),
        (f"https://{SHOP}/\0", "spaces, control"),
        (f"https://{SHOP}:22/", "ports"),
        (f"https://{SHOP}:8443/", "ports"),
        (f"https://{SHOP}:99999/", "ports"),
        ("https://", "host"),
        ("https:/a.png", "host"),
        ("https:", "host"),
        ("https://127%2e0.0.1/", "host"),
        ("https://[fe80::1%25eth0]/", "host"),
        ("https://[::1/", "not a URL"),
        ("https://0177.0.0.1/", "not a URL"),
        ("https://１２７.0.0.1/", "not a URL"),
        ("https://127。0。0。1/", "public"),
        (f"https://{SHOP}/{'a' * 5000}", "characters"),
    ],
)
def test_url_that_is_not_asked(web: Web, url: str, reason: str) -> None:
    network = web.network()
    assert reason in refusal(web.fetcher(network=network), url)
    assert network.dialled == []


def test_international_name_is_resolved_as_ascii(web: Web) -> None:
    names = web.names()
    assert "public" in refusal(web.fetcher(names=names), "https://münchen.example/ü.png")
    assert names.asked == ["xn--mnchen-3ya.example"]


def test_certificate_of_another_name_is_refused(web: Web) -> None:
    names = web.names(**{CDN: [(SHOP_IP,)]})
    assert "TLS certificate" in refusal(web.fetcher(names=names), f"https://{CDN}/a.png")
    assert web.shop.heads == []


def test_certificate_of_an_unknown_authority_is_refused(web: Web) -> None:
    fetcher = Fetcher(FetchConfig(), 2**20, resolve=web.names(), network=web.network())
    assert "TLS certificate" in refusal(fetcher)
    assert web.shop.heads == []


def test_server_that_is_not_there_is_refused(web: Web) -> None:
    names = web.names(**{SHOP: [("2a00::1",)]})
    assert refusal(web.fetcher(names=names)) == "the server cannot be reached"


def test_http_and_other_ports_where_the_configuration_says_so(web: Web) -> None:
    config = FetchConfig(schemes=("https", "http"), ports=(80, 8080))
    network = web.network({(SHOP_IP, 8080): web.plain.port})
    fetcher = web.fetcher(config, network=network)
    assert asyncio.run(fetcher(f"http://{SHOP}/a.png")) == PICTURE
    assert asyncio.run(fetcher(f"http://{SHOP}:8080/a.png")) == PICTURE
    first, second = web.plain.heads
    assert f"Host: {SHOP}\r\n" in first
    assert f"Host: {SHOP}:8080\r\n" in second
    assert "ports" in refusal(fetcher, URL)


def test_listed_hosts_and_those_below_them_are_asked_and_no_others(web: Web) -> None:
    fetcher = web.fetcher(FetchConfig(allowed_hosts=("example.org",)))
    assert asyncio.run(fetcher(URL)) == PICTURE
    for host in (CDN, "badexample.org", "example.org.evil.net"):
        assert "not among those" in refusal(fetcher, f"https://{host}/a.png")
    web.shop.answers["/a.png"] = redirect(f"https://{CDN}/a.png")
    assert "not among those" in refusal(fetcher)
    assert web.cdn.heads == []


def test_private_network_where_the_configuration_says_so_and_never_loopback(web: Web) -> None:
    config = FetchConfig(allow_private=True)
    network = web.network({("10.0.0.5", 443): web.shop.port})
    fetcher = web.fetcher(config, names=web.names(**{SHOP: [("10.0.0.5",)]}), network=network)
    assert asyncio.run(fetcher(URL)) == PICTURE
    for host in ("127.0.0.1", "169.254.169.254", "[fd00:ec2::254]", "[::1]"):
        assert "public" in refusal(fetcher, f"https://{host}/")
    assert network.dialled == [("10.0.0.5", 443)]


def test_own_rule_replaces_the_configured_one(web: Web) -> None:
    fetcher = Fetcher(
        FetchConfig(), 9, resolve=web.names(), is_allowed=lambda found: False, network=web.network()
    )
    assert "public" in refusal(fetcher)


def test_fetching_that_is_switched_off_asks_nobody(web: Web) -> None:
    names = web.names()
    fetcher = web.fetcher(FetchConfig(enabled=False), names=names)
    assert refusal(fetcher) == "images by URL are not fetched here"
    assert names.asked == []


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,20}[@:%#?\[\]\\]{0,3}.{0,20}"))
def test_any_text_is_taken_apart_or_refused(text: str) -> None:
    config = FetchConfig(schemes=("https", "http"))
    source = Target.read(URL, config)
    for base in (None, source):
        try:
            target = Target.read(text, config, base)
        except FetchRefused:
            continue
        assert HOST.fullmatch(target.host)
        assert target.port in (80, 443)
        assert not target.url.userinfo
        assert base is None or target.scheme == "https"
        assert not set(target.url.raw_path) & set(b" \r\n\0")


def test_site_without_tls_behind_https_is_refused(web: Web) -> None:
    with open_site(None) as plain:
        plain.answers["/a.png"] = answer(PICTURE)
        network = web.network({(SHOP_IP, 443): plain.port})
        fetcher = web.fetcher(FetchConfig(connect_timeout_s=0.2), network=network)
        assert refusal(fetcher) == "the server cannot be reached"
        assert plain.heads == []
