"""What replicas may remember a picture by."""

import hashlib


def remembered_as(tenant_id: str, content_sha256: str) -> str:
    """The same bytes of two tenants are two pictures to a replica.

    Whoever holds a picture would otherwise learn from an answer, or from how fast it came, that
    somebody else has sent it too.
    """
    return hashlib.sha256(f"{tenant_id}\n{content_sha256}".encode()).hexdigest()
