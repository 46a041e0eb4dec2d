"""`/v1/outcomes`: what people and shops say about answers, for the reports of experiments."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from serve.api.identity import require_any
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.responses import problems
from serve.schemas.outcomes import (
    OutcomeCard,
    OutcomePage,
    OutcomeRequest,
    OutcomesRecorded,
    RequestId,
)
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import Outcome, Verdict
from serve.store.outcomes import NewOutcome, list_outcomes, record_outcomes
from serve.tenancy.caller import Caller

MaySay = Annotated[Caller, Depends(require_any("tryon", "review"))]


def build_outcomes_router(
    database: Database, kept_s: float, now: Callable[[], datetime] = utc_now
) -> APIRouter:
    """The routes, bound to the store.

    Args:
        kept_s: how long an outcome is kept.
    """
    router = APIRouter(tags=["outcomes"])

    @router.post(
        "/v1/outcomes",
        summary="Say what became of an answer",
        status_code=201,
        response_model=OutcomesRecorded,
        responses={
            200: {"model": OutcomesRecorded, "description": "All of it had been said before"},
            **problems(),
        },
    )
    async def say(caller: MaySay, body: OutcomeRequest, response: Response) -> OutcomesRecorded:
        """Whether there is such an answer is not asked: a verdict may come before all of it is
        written. Said again, it is the first one."""
        said = [
            NewOutcome(request_id=one.request_id, verdict=Verdict(one.verdict), reason=one.reason)
            for one in body.all_said()
        ]
        at = now()
        async with database.transaction() as session:
            recorded = await record_outcomes(
                session, caller.tenant_id, said, at, at + timedelta(seconds=kept_s)
            )
        num_new = sum(is_new for _, is_new in recorded)
        if not num_new:
            response.status_code = 200
        items = tuple(describe_outcome(row) for row, _ in recorded)
        return OutcomesRecorded(items=items, num_new=num_new)

    @router.get(
        "/v1/outcomes",
        summary="List what was said",
        response_model=OutcomePage,
        responses=problems(),
    )
    async def list_all(
        caller: MaySay,
        request_id: Annotated[RequestId | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> OutcomePage:
        async with database.reading() as session:
            page = await list_outcomes(
                session, caller.tenant_id, request_id=request_id, after=after, limit=limit + 1
            )
        items = tuple(map(describe_outcome, page[:limit]))
        return OutcomePage(items=items, next=items[-1].id if len(page) > limit else None)

    return router


def describe_outcome(row: Outcome) -> OutcomeCard:
    return OutcomeCard(
        id=row.id,
        request_id=row.request_id,
        verdict=row.verdict.value,
        reason=row.reason,
        at=row.at,
    )
