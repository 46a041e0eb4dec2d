"""Prefixed ids that sort by the time they were made."""

import re
import secrets
import time
from typing import Literal

# Crockford's base32: no letter that is read as a digit. Source: crockford.com/base32.html
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
NUM_SYMBOLS = 26
ID_LENGTH = 4 + NUM_SYMBOLS

ID = re.compile(f"[a-z]{{3}}_[{ALPHABET}]{{{NUM_SYMBOLS}}}")

Prefix = Literal["tnt", "key", "ast", "job", "bat", "whs", "whd"]


def new_id(prefix: Prefix) -> str:
    """An id nobody can guess: 48 bits of milliseconds, then 80 random bits, as a ULID has."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    symbols = (ALPHABET[number >> shift & 31] for shift in range(5 * (NUM_SYMBOLS - 1), -1, -5))
    return f"{prefix}_{''.join(symbols)}"
