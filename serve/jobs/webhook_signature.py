"""Signs webhooks as Standard Webhooks says, so that any of its libraries verifies ours.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md (1.0.0).
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime

PREFIX = "whsec_"


def signed_headers(
    secrets: Sequence[str], message_id: str, at: datetime, body: bytes
) -> dict[str, str]:
    """The headers that prove a message: one signature for each secret, any of which is enough.

    Args:
        at: of this attempt; receivers refuse what is more than a few minutes old.
    """
    timestamp = str(int(at.timestamp()))
    signatures = (_sign(secret, message_id, timestamp, body) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(signatures),
    }


def _sign(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
