"""The last line of defence of the logs: what looks like a secret, a picture or a person is cut out.

Whoever logs keeps such things out of it; this is for what libraries say of them.
"""

import json
import re
from collections.abc import Iterable

MAX_CHARS = 8_000
"""Of one text; a picture in words has millions."""
CUT = "[cut]"
MIN_SECRET_CHARS = 6
"""Shorter ones (`redis`, `test`) are words, and would be cut out of other words."""

MIN_RUN_CHARS = 121

_RUN = r"[A-Za-z0-9+/_-]"
Rule = tuple[tuple[str, ...], "re.Pattern[str]", str]

# Needles, in lower case, that a text must have one of for the pattern to be tried at all.
RULES: tuple[Rule, ...] = (
    (("data:",), re.compile(r"data:[\w.+/-]{0,100}[;,][^\s\"'<>)]*", re.I), f"data:{CUT}"),
    # The beginnings of JPEG, PNG and WebP in base64, however short the rest is.
    (
        ("/9j/", "ivborw0kg", "uklgr"),
        re.compile(rf"(?:/9j/|iVBORw0KG|UklGR){_RUN}*=*"),
        f"[base64 {CUT}]",
    ),
    # Pictures that are printed as bytes, and what is left of such.
    (
        ("\\x",),
        re.compile(r"\bb(['\"])(?:(?!\1)[^\\]|\\.){8,}\1?", re.S),
        f"[bytes {CUT}]",
    ),
    (("\\x",), re.compile(r"(?:\\{1,4}x[0-9a-fA-F]{2}[^\\]{0,8}){8,}"), f"[bytes {CUT}]"),
    # What comes after the host of a URL may be signed, and a name before it is somebody's. Paths
    # on this machine are told.
    (
        ("://",),
        re.compile(
            r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*://)(?:[^\s\"'<>]*@)?"
            r"((?:localhost|127\.0\.0\.1)(?::\d+)?/[^\s?#\"'<>)]*|[^\s/?#\"'<>@]*)[^\s\"'<>)]*",
            re.I,
        ),
        r"\1\2",
    ),
    (("bearer", "basic "), re.compile(r"\b(bearer|basic)[\s:]+[^\s\"',;]+", re.I), rf"\1 {CUT}"),
    (
        ("sk_", "sk-", "fa-", "hf_", "whsec_", "pk_"),
        re.compile(
            r"sk_[A-Za-z0-9]+_[0-9a-f]{8,}"
            r"|(?<![A-Za-z0-9])(?:sk_|pk_|sk-|fa-|hf_)[A-Za-z0-9_-]{4,}|whsec_[^\s\"',;]{4,}"
        ),
        CUT,
    ),
    (
        (
            *("password", "passwd", "passphrase", "pwd", "secret", "token", "api_key", "api-key"),
            *("apikey", "signature", "credential", "authorization"),
        ),
        re.compile(
            r"((?:pass(?:word|wd|phrase)|pwd|secret(?:[_-]\w{1,30})?|token|api[_-]?key|signature|credentials?"
            r"|authorization)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&)}\]]+",
            re.I,
        ),
        rf"\1{CUT}",
    ),
    # PostgreSQL tells the values of the row that it refuses.
    (
        (")=(", "failing row contains"),
        re.compile(r"(\)=\(|failing row contains \()[^\n]*\)", re.I),
        rf"\1{CUT})",
    ),
    (
        ("@",),
        re.compile(
            r"(?<![\w.%+-])(?!(?:eye|shoes|face|top|bottom|dress|bg)@)"
            r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}"
        ),
        f"[e-mail {CUT}]",
    ),
)
LONG_RUN = re.compile(rf"(?<!{_RUN}){_RUN}{{{MIN_RUN_CHARS},}}=*")
"""Nothing of ours is that long in one piece: ids have at most 128 characters, hashes 64."""
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2}")
_NEEDLES = tuple(needle for needles, _, _ in RULES for needle in needles if needle != "@")


class Redactor:
    """Made once; knows the secrets of its process by heart, and others by what they look like."""

    def __init__(self, secrets: Iterable[str] = ()):
        """
        Args:
            secrets: what must not appear even where nothing gives it away.
        """
        long = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS}
        long |= {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in long}
        self._secrets = tuple(sorted(long, key=len, reverse=True))

    def is_clean(self, text: str) -> bool:
        """Quick, and never wrong about what is not clean."""
        lowered = text.lower()
        for needle in _NEEDLES:  # a generator takes three times as long
            if needle in lowered:
                return False
        for secret in self._secrets:
            if secret in text:
                return False
        return not (_has_mail(text) or _has_run(text))

    def redact(self, text: str) -> str:
        text = _shorten(text)
        if self.is_clean(text):
            return text
        for secret in self._secrets:
            text = text.replace(secret, CUT)
        lowered = text.lower()
        for needles, pattern, replacement in RULES:
            if any(needle in lowered for needle in needles):
                text = pattern.sub(replacement, text)
        return LONG_RUN.sub(CUT, text)

    def clean(self, value: object) -> object:
        """Of what JSON can hold: every text in it."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {self.redact(str(key)): self.clean(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(each) for each in value]
        return value


def _has_mail(text: str) -> bool:
    # By its "@": a pattern that begins with any word tries every character of the text.
    at = text.find("@")
    while at >= 0:
        if _DOMAIN.match(text, at + 1):
            return True
        at = text.find("@", at + 1)
    return False


def _has_run(text: str) -> bool:
    # None goes over a quotation mark, of which a line of JSON is full.
    longest = max(map(len, text.split('"')))
    return longest >= MIN_RUN_CHARS and LONG_RUN.search(text) is not None


def _shorten(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    # Half of a secret is told from a word no more: what the cut goes through is left out.
    whole = text[: 1 + max(text.rfind(space, 0, MAX_CHARS) for space in " \t\n")]
    return f"{whole}[{len(text) - len(whole)} characters {CUT}]"
