"""Who still needs the bytes behind a row: no blob goes while a row of its tenant refers to it.

A writer puts the blob, then adds the row under a shared lock of that content, then looks whether
the blob is still there. Whoever deletes a blob holds the exclusive lock while it looks for rows
and deletes. So a row is either seen by the deleter, or its writer sees that the blob is gone and
puts it again.
"""

import hashlib
from collections.abc import Iterable

from sqlalchemy import select, text

from serve.store.blobs import BlobKey
from serve.store.engine import Session
from serve.store.tables import Asset, AssetKind
from serve.store.upserts import is_postgres

ASSET_KINDS = tuple(kind.value for kind in AssetKind)


async def share_content(session: Session, key: BlobKey) -> None:
    """Until the commit nobody deletes this blob; others may share it too."""
    await _lock(session, key, "pg_advisory_xact_lock_shared")


async def own_content(session: Session, key: BlobKey) -> None:
    """Until the commit nobody adds a row of this content. One per transaction, or two of them
    could wait for each other."""
    await _lock(session, key, "pg_advisory_xact_lock")


async def is_needed(session: Session, key: BlobKey) -> bool:
    """Whether a row of the tenant refers to the blob."""
    return key.sha256 in await find_needed(session, key.tenant_id, key.kind, [key.sha256])


async def find_needed(
    session: Session, tenant_id: str, kind: str, hashes: Iterable[str]
) -> set[str]:
    """Those of the hashes that a row of the tenant refers to."""
    found = select(Asset.sha256).where(
        Asset.tenant_id == tenant_id,
        Asset.kind == AssetKind(kind),
        Asset.sha256.in_(list(hashes)),
    )
    return set(await session.scalars(found))


async def _lock(session: Session, key: BlobKey, function: str) -> None:
    if not is_postgres(session):
        return  # SQLite's write transaction excludes every other
    digest = hashlib.sha256(key.path.encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    await session.execute(text(f"SELECT {function}(:key)"), {"key": number})
