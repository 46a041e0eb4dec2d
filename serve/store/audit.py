"""The log of administrative acts: a chain in which every record carries the hash of the last one.

A record that is changed, removed or moved breaks the chain from there on. Records cut off the end
leave a chain that is whole: whoever keeps a hash elsewhere finds that too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text

from serve.store.engine import Session
from serve.store.tables import AuditRecord

GENESIS_SHA256 = "0" * 64
# Any fixed number, the same in every process: "sm4A" as bytes.
LOCK_KEY = int.from_bytes(b"sm4A", "big")
PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Act:
    """Who did what to what."""

    actor: str
    """The id of a key, or the name of what acted without one."""
    action: str
    """`tenant.create`, `key.revoke` and so on."""
    tenant_id: str | None
    target: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a walk along the chain found."""

    num_records: int
    """That are in order, counted from the first."""
    head_sha256: str
    """Of the last one that is in order: keep it elsewhere, and a cut end is found too."""
    broken_sequence: int | None = None
    reason: str = ""


async def lock_audit(session: Session) -> None:
    """Until this transaction ends, no other administrative act begins.

    SQLite's write transactions are one after the other by themselves.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})


async def append_record(session: Session, act: Act, now: datetime) -> AuditRecord:
    """Write the next record, in the transaction of what it tells."""
    await lock_audit(session)
    newest = select(AuditRecord).order_by(AuditRecord.sequence.desc()).limit(1)
    last = (await session.execute(newest)).scalar_one_or_none()
    record = AuditRecord(
        sequence=1 if last is None else last.sequence + 1,
        at=now,
        actor=act.actor,
        action=act.action,
        tenant_id=act.tenant_id,
        target=act.target,
        detail=dict(act.detail),
        previous_sha256=GENESIS_SHA256 if last is None else last.sha256,
    )
    record.sha256 = hash_record(record)
    session.add(record)
    await session.flush()
    return record


async def list_records(
    session: Session, *, limit: int, before: int | None = None, tenant_id: str | None = None
) -> Sequence[AuditRecord]:
    """Newest first; those whose sequence is smaller than `before`."""
    query = select(AuditRecord).order_by(AuditRecord.sequence.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditRecord.sequence < before)
    if tenant_id is not None:
        query = query.where(AuditRecord.tenant_id == tenant_id)
    return (await session.execute(query)).scalars().all()


async def verify_records(session: Session, anchor_sha256: str | None = None) -> Verdict:
    """Walk the whole chain and name the first record that does not fit.

    Args:
        anchor_sha256: a hash that was the head once; a chain without it was cut or rewritten.
    """
    num_records, head = 0, GENESIS_SHA256
    is_anchored = anchor_sha256 in (None, GENESIS_SHA256)
    while True:
        page = await _read_page(session, num_records)
        for record in page:
            reason = _find_fault(record, num_records + 1, head)
            if reason:
                return Verdict(
                    num_records=num_records,
                    head_sha256=head,
                    broken_sequence=record.sequence,
                    reason=reason,
                )
            num_records, head = record.sequence, record.sha256
            is_anchored = is_anchored or head == anchor_sha256
        session.expunge_all()  # a long log is not kept in memory
        if len(page) < PAGE:
            break
    if is_anchored:
        return Verdict(num_records=num_records, head_sha256=head)
    return Verdict(
        num_records=num_records,
        head_sha256=head,
        broken_sequence=num_records + 1,
        reason="no record has the hash that was kept: the end was cut off or all was rewritten",
    )


async def _read_page(session: Session, after: int) -> Sequence[AuditRecord]:
    # The first page from wherever the rows begin: a record numbered 0 or less is found too.
    query = select(AuditRecord).order_by(AuditRecord.sequence).limit(PAGE)
    if after:
        query = query.where(AuditRecord.sequence > after)
    return (await session.execute(query)).scalars().all()


def _find_fault(record: AuditRecord, sequence: int, previous_sha256: str) -> str:
    if record.sequence != sequence:
        return f"record {sequence} is missing"
    if record.previous_sha256 != previous_sha256:
        return "does not follow the record before it"
    if record.sha256 != hash_record(record):
        return "was changed after it was written"
    return ""


def hash_record(record: AuditRecord) -> str:
    """SHA-256 of the record as canonical JSON: sorted keys, no spaces, ASCII."""
    content = {
        "sequence": record.sequence,
        "at": record.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": record.actor,
        "action": record.action,
        "tenant": record.tenant_id,
        "target": record.target,
        "detail": _canonical(record.detail),
        "previous_sha256": record.previous_sha256,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    """PostgreSQL answers 1e22 as an integer: whole numbers are one kind here."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value
