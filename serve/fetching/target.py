"""What a URL asks for, refused before anything is looked up."""

import re
from dataclasses import dataclass
from typing import Self

import httpx2

from serve.config import FetchConfig
from serve.errors import FetchRefused

MAX_URL_CHARS = 4096
DEFAULT_PORTS = {"https": 443, "http": 80}
# A host name, an IPv4 address in any spelling, or an IPv6 address; no %, so no zone either.
HOST = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")
REMEDY = "send the file itself, a data URI, or an https URL that anyone can open"


@dataclass(frozen=True, slots=True)
class Target:
    """One URL that the configuration lets us ask; its address is not judged yet."""

    url: httpx2.URL
    scheme: str
    host: str
    """ASCII: an international name is in its xn-- form."""
    port: int

    @classmethod
    def read(cls, text: str, config: FetchConfig, source: Self | None = None) -> Self:
        """Take a URL apart once; the connection, TLS and Host header all use these parts.

        Args:
            source: what redirected here; the text may be relative to it.

        Raises:
            FetchRefused: not a URL, or one that the configuration does not allow.
        """
        url = _parse(text, source)
        target = cls(url, url.scheme, url.raw_host.decode("ascii"), _port(url))
        _check(target, config)
        if source is not None and (source.scheme, target.scheme) == ("https", "http"):
            raise FetchRefused("redirected from https to http", remedy=REMEDY)
        return target


def _parse(text: str, source: Target | None) -> httpx2.URL:
    if len(text) > MAX_URL_CHARS:
        raise FetchRefused(f"the URL has more than {MAX_URL_CHARS} characters", remedy=REMEDY)
    # Parsers disagree about these; a URL that needs one can percent-encode it.
    if not text.isprintable() or " " in text or "\\" in text:
        raise FetchRefused("the URL holds spaces, control characters or \\", remedy=REMEDY)
    try:
        return httpx2.URL(text) if source is None else source.url.join(text)
    except (httpx2.InvalidURL, ValueError) as exc:
        raise FetchRefused("not a URL", remedy=REMEDY) from exc


def _port(url: httpx2.URL) -> int:
    return DEFAULT_PORTS.get(url.scheme, 0) if url.port is None else url.port


def _check(target: Target, config: FetchConfig) -> None:
    if target.scheme not in config.schemes:
        raise FetchRefused(f"only {' and '.join(config.schemes)} URLs are fetched", remedy=REMEDY)
    if target.url.userinfo:
        raise FetchRefused("the URL holds a user name or password", remedy=REMEDY)
    if not HOST.fullmatch(target.host):
        raise FetchRefused("the URL's host is not a host name", remedy=REMEDY)
    if target.port not in config.ports:
        ports = ", ".join(map(str, config.ports))
        raise FetchRefused(f"only these ports are asked: {ports}", remedy=REMEDY)
    if config.allowed_hosts is not None and not is_listed(target.host, config.allowed_hosts):
        raise FetchRefused("its host is not among those that are allowed here", remedy=REMEDY)


def is_listed(host: str, allowed_hosts: tuple[str, ...]) -> bool:
    """Whether a host is one of these or lies below one of them."""
    name = host.removesuffix(".")
    return any(name == allowed or name.endswith(f".{allowed}") for allowed in allowed_hosts)
