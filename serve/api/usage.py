"""`GET /v1/usage`: what was used and what is left of the month."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from serve.api.identity import require
from serve.api.responses import problems
from serve.errors import Forbidden, InvalidRequest
from serve.policy import TenantPolicy
from serve.schemas.tenants import TENANT_ID
from serve.schemas.usage import BudgetState, MonthBudget, UsageBy, UsageItem, UsageReport
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.ledger import Counter, read_counter
from serve.store.ledger_records import utc_day
from serve.store.tenants import get_tenant
from serve.store.usage import UsageSum, sum_usage
from serve.tenancy.account import budget_of
from serve.tenancy.caller import Caller

MAX_DAYS = 366


def build_usage_router(
    database: Database,
    usd_per_gpu_second: float | None,
    now: Callable[[], datetime] = utc_now,
) -> APIRouter:
    router = APIRouter(tags=["usage"])

    @router.get(
        "/v1/usage",
        summary="What was used, and what is left of the month",
        response_model=UsageReport,
        responses=problems(404, 429),
    )
    async def usage(
        caller: Annotated[Caller, Depends(require())],
        first: Annotated[
            date | None, Query(alias="from", description="UTC; the month's first when absent")
        ] = None,
        last: Annotated[
            date | None, Query(alias="to", description="UTC, included; today when absent")
        ] = None,
        by: Annotated[list[UsageBy] | None, Query(description="may be repeated")] = None,
        tenant: Annotated[
            str | None, Query(pattern=TENANT_ID, description="another's, for administrators")
        ] = None,
    ) -> UsageReport:
        """Any key sees its own tenant's; one with the scope `admin` everybody's."""
        tenant_id = tenant or caller.tenant_id
        if tenant_id != caller.tenant_id and "admin" not in caller.scopes:
            raise Forbidden("only an administrator sees the usage of another tenant")
        moment = now()
        first, last = _days(first, last, utc_day(moment))
        wanted: list[UsageBy] = by or ["day"]
        groups = tuple(dict.fromkeys(wanted))
        async with database.reading() as session:
            row = await get_tenant(session, tenant_id)
            sums = await sum_usage(session, tenant_id, first, last, groups)
            counter = await read_counter(session, tenant_id, moment)
        return UsageReport(
            tenant_id=tenant_id,
            first=first,
            last=last,
            by=groups,
            items=tuple(_item(each, usd_per_gpu_second) for each in sums),
            total=_item(_total(sums), usd_per_gpu_second),
            budget=_budget(counter, TenantPolicy.model_validate(row.policy)),
        )

    return router


def _days(first: date | None, last: date | None, today: date) -> tuple[date, date]:
    last = last or max(today, first or today)
    first = first or last.replace(day=1)
    if first > last:
        raise InvalidRequest("from lies after to", fields=(("from", "after to"),))
    if last - first >= timedelta(days=MAX_DAYS):
        raise InvalidRequest(f"more than {MAX_DAYS} days", remedy="ask year by year")
    return first, last


def _total(sums: list[UsageSum]) -> UsageSum:
    return UsageSum(
        group={},
        requests=sum(each.requests for each in sums),
        images=sum(each.images for each in sums),
        gpu_ms=sum(each.gpu_ms for each in sums),
        upstream_microusd=sum(each.upstream_microusd for each in sums),
    )


def _item(used: UsageSum, usd_per_gpu_second: float | None) -> UsageItem:
    gpu_s, upstream_usd = used.gpu_ms / 1e3, used.upstream_microusd / 1e6
    usd = None if usd_per_gpu_second is None else gpu_s * usd_per_gpu_second + upstream_usd
    has_images = used.images > 0
    return UsageItem(
        day=used.group.get("day"),
        expert=used.group.get("expert"),
        version=used.group.get("version"),
        key_id=used.group.get("key"),
        requests=used.requests,
        images=used.images,
        gpu_seconds=gpu_s,
        gpu_seconds_per_image=gpu_s / used.images if has_images else None,
        upstream_usd=upstream_usd,
        usd=usd,
        usd_per_image=usd / used.images if usd is not None and has_images else None,
    )


def _budget(counter: Counter, policy: TenantPolicy) -> MonthBudget:
    budget = budget_of(policy)
    return MonthBudget(
        month=counter.period,
        gpu_seconds=_state(budget.gpu_ms, counter.settled_gpu_ms, counter.reserved_gpu_ms, 1e3),
        images=_state(budget.images, counter.settled_images, counter.reserved_images, 1),
    )


def _state(limit: int | None, used: int, reserved: int, unit: float) -> BudgetState:
    return BudgetState(
        limit=None if limit is None else limit / unit,
        used=used / unit,
        reserved=reserved / unit,
        left=None if limit is None else max(0, limit - used - reserved) / unit,
    )
