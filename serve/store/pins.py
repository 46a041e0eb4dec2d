"""Rows of pins: collections that stay on the versions they were begun with."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, tuple_

from serve.errors import NotFound
from serve.store.engine import Session
from serve.store.experiment_tables import Pin
from serve.store.upserts import insert_into


async def find_pin(session: Session, tenant_id: str, collection: str) -> Pin | None:
    return await session.get(Pin, (tenant_id, collection))


async def get_pin(session: Session, tenant_id: str, collection: str) -> Pin:
    """
    Raises:
        NotFound: the tenant has not pinned this collection.
    """
    pin = await find_pin(session, tenant_id, collection)
    if pin is None:
        raise NotFound(
            f"the collection {collection!r} is not pinned",
            remedy="GET /v1/pins lists those that are",
        )
    return pin


async def put_pin(
    session: Session,
    tenant_id: str,
    collection: str,
    manifest: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> Pin:
    """In place of what it was pinned to before."""
    row = insert_into(session, Pin).values(
        tenant_id=tenant_id,
        collection=collection,
        manifest={expert: dict(pinned) for expert, pinned in manifest.items()},
        created_at=now,
        updated_at=now,
    )
    changed = {"manifest": row.excluded.manifest, "updated_at": row.excluded.updated_at}
    # Two who pin it for the first time at once: one after the other, and the later one holds.
    await session.execute(
        row.on_conflict_do_update(index_elements=["tenant_id", "collection"], set_=changed)
    )
    return await get_pin(session, tenant_id, collection)


async def drop_pin(session: Session, tenant_id: str, collection: str) -> None:
    """
    Raises:
        NotFound: the tenant has not pinned this collection.
    """
    await session.delete(await get_pin(session, tenant_id, collection))


async def list_pins(
    session: Session, tenant_id: str, *, limit: int, after: str | None = None
) -> Sequence[Pin]:
    """Newest first; those that come after the collection `after`.

    Raises:
        NotFound: the tenant has not pinned `after`.
    """
    place = tuple_(Pin.created_at, Pin.collection)
    query = select(Pin).where(Pin.tenant_id == tenant_id)
    if after is not None:
        last = await get_pin(session, tenant_id, after)
        query = query.where(place < tuple_(last.created_at, last.collection))
    newest = query.order_by(Pin.created_at.desc(), Pin.collection.desc()).limit(limit)
    return (await session.scalars(newest)).all()
