"""API keys: made once, recognised at every request."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from serve.errors import Unauthenticated
from serve.store.ids import ALPHABET, NUM_SYMBOLS, new_id

TOKEN = re.compile(rf"sk_([{ALPHABET}]{{{NUM_SYMBOLS}}})_[0-9a-f]{{64}}", re.ASCII)
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key; its token is known here and to whoever it is shown to, and nowhere else."""

    key_id: str
    token: str = field(repr=False)

    @property
    def secret_sha256(self) -> str:
        return hash_token(self.token)


def mint_key() -> MintedKey:
    key_id = new_id("key")
    token = f"sk_{key_id.removeprefix('key_')}_{secrets.token_hex(SECRET_BYTES)}"
    return MintedKey(key_id, token)


def parse_token(token: str) -> str:
    """The key's id.

    Raises:
        Unauthenticated: not a token of this system; nobody need look it up.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise unauthenticated()
    return f"key_{match.group(1)}"


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def is_token_of(token: str, secret_sha256: str) -> bool:
    """Takes as long whatever differs."""
    return hmac.compare_digest(hash_token(token), secret_sha256)


def unauthenticated() -> Unauthenticated:
    """In the same words whatever is wrong: nobody learns which keys there are or were."""
    return Unauthenticated(
        "this needs an API key that is valid now",
        remedy="send the header `Authorization: Bearer sk_...`; whoever runs this service has keys",
    )
