"""Prefixed ids that sort by the time they were made."""

import hashlib
import re
import secrets
import time
from datetime import datetime
from typing import Literal

# Crockford's base32: no letter that is read as a digit. Source: crockford.com/base32.html
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
NUM_SYMBOLS = 26
ID_LENGTH = 4 + NUM_SYMBOLS

ID = re.compile(f"[a-z]{{3}}_[{ALPHABET}]{{{NUM_SYMBOLS}}}")

Prefix = Literal["tnt", "key", "ast", "job", "bat", "whs", "whd", "out", "rol"]


def new_id(prefix: Prefix) -> str:
    """An id nobody can guess: 48 bits of milliseconds, then 80 random bits, as a ULID has."""
    return _write_id(prefix, time.time_ns() // 1_000_000, secrets.randbits(80))


def derive_id(prefix: Prefix, at: datetime, secret: str) -> str:
    """The same id for the same two, so that who starts again finds what was made before.

    Args:
        secret: what nobody else can guess.
    """
    digest = hashlib.sha256(secret.encode()).digest()
    return _write_id(prefix, int(at.timestamp() * 1000), int.from_bytes(digest[:10], "big"))


def _write_id(prefix: Prefix, unix_ms: int, tail: int) -> str:
    number = unix_ms << 80 | tail
    symbols = (ALPHABET[number >> shift & 31] for shift in range(5 * (NUM_SYMBOLS - 1), -1, -5))
    return f"{prefix}_{''.join(symbols)}"
