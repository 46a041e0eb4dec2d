"""Sums over the ledger, by whatever a bill is cut by; added up in the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from sqlalchemy import func, select

from serve.store.engine import Session
from serve.store.tables import LedgerEntry, LedgerState

By = Literal["day", "expert", "version", "key"]
COLUMNS: dict[By, Any] = {
    "day": LedgerEntry.day,
    "expert": LedgerEntry.expert,
    "version": LedgerEntry.version,
    "key": LedgerEntry.key_id,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageSum:
    """What was settled of one group."""

    group: dict[By, Any]
    requests: int
    images: int
    gpu_ms: int
    upstream_microusd: int


async def sum_usage(
    session: Session, tenant_id: str, first: date, last: date, by: Sequence[By]
) -> list[UsageSum]:
    """Settled work of the days from first to last, grouped and ordered by the columns named."""
    columns = [COLUMNS[name] for name in by]
    sums = (
        func.count(),
        func.coalesce(func.sum(LedgerEntry.settled_images), 0),
        func.coalesce(func.sum(LedgerEntry.settled_gpu_ms), 0),
        func.coalesce(func.sum(LedgerEntry.upstream_microusd), 0),
    )
    query = (
        select(*columns, *sums)
        .where(
            LedgerEntry.tenant_id == tenant_id,
            LedgerEntry.day >= first,
            LedgerEntry.day <= last,
            LedgerEntry.state == LedgerState.SETTLED,
        )
        .group_by(*columns)
        .order_by(*columns)
    )
    rows = (await session.execute(query)).all()
    return [
        UsageSum(
            group=dict(zip(by, row, strict=False)),
            # PostgreSQL's sums of big integers are decimals.
            requests=int(row[-4]),
            images=int(row[-3]),
            gpu_ms=int(row[-2]),
            upstream_microusd=int(row[-1]),
        )
        for row in rows
    ]
