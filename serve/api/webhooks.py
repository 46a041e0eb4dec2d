"""`/v1/webhooks`: what was sent to a tenant's servers, once more, and the secrets that sign it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from serve.api.identity import require
from serve.api.keys import NO_STORE
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.responses import problems
from serve.config import FetchConfig
from serve.fetching.post import check_webhook_url
from serve.jobs.deliveries import DeliveryPolicy
from serve.schemas.webhooks import (
    Delivery,
    DeliveryDetail,
    DeliveryPage,
    DeliveryStatus,
    NewSecret,
    RotationRequest,
    SecretCard,
    SecretList,
    TestMessage,
)
from serve.store.batch_tables import DeliveryState, WebhookDelivery, WebhookSecret
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.ids import new_id
from serve.store.webhook_secrets import list_secrets, rotate_secret
from serve.store.webhooks import enqueue, get_delivery, list_deliveries, redeliver
from serve.tenancy.caller import Caller

TEST_EVENT = "webhook.test"
LEASE = DeliveryPolicy().lease
MayUseJobs = Annotated[Caller, Depends(require("jobs"))]


def build_webhooks_router(
    database: Database, config: FetchConfig, now: Callable[[], datetime] = utc_now
) -> APIRouter:
    """The routes, bound to the store."""
    router = APIRouter(tags=["webhooks"])
    _add_deliveries(router, database, config, now)
    _add_secrets(router, database, now)
    return router


def _add_deliveries(
    router: APIRouter, database: Database, config: FetchConfig, now: Callable[[], datetime]
) -> None:
    @router.get(
        "/v1/webhooks/deliveries",
        summary="List messages",
        response_model=DeliveryPage,
        responses=problems(),
    )
    async def list_all(
        caller: MayUseJobs,
        state: Annotated[DeliveryStatus | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> DeliveryPage:
        wanted = None if state is None else DeliveryState(state)
        async with database.reading() as session:
            page = await list_deliveries(
                session, caller.tenant_id, state=wanted, after=after, limit=limit + 1
            )
        items = tuple(describe_delivery(row) for row in page[:limit])
        return DeliveryPage(items=items, next=items[-1].id if len(page) > limit else None)

    @router.get(
        "/v1/webhooks/deliveries/{delivery_id}",
        summary="Show a message",
        response_model=DeliveryDetail,
        responses=problems(404),
    )
    async def get(caller: MayUseJobs, delivery_id: str) -> DeliveryDetail:
        async with database.reading() as session:
            row = await get_delivery(session, caller.tenant_id, delivery_id)
        return DeliveryDetail(**dict(describe_delivery(row)), payload=row.payload)

    @router.post(
        "/v1/webhooks/deliveries/{delivery_id}/redeliver",
        summary="Send a message once more",
        status_code=202,
        response_model=Delivery,
        responses=problems(404),
    )
    async def send_again(caller: MayUseJobs, delivery_id: str) -> Delivery:
        """Under its own id. One that waits for its next attempt is brought forward."""
        async with database.transaction() as session:
            row = await redeliver(session, caller.tenant_id, delivery_id, now(), LEASE)
        return describe_delivery(row)

    @router.post(
        "/v1/webhooks/test",
        summary="Send a test message",
        status_code=202,
        response_model=Delivery,
        responses=problems(),
    )
    async def send_test(caller: MayUseJobs, message: TestMessage) -> Delivery:
        """Signed and retried like any other; how it fared is in its delivery."""
        url = check_webhook_url(message.url, config, field="url")
        async with database.transaction() as session:
            row = await enqueue(
                session,
                tenant_id=caller.tenant_id,
                event=TEST_EVENT,
                subject_id=new_id("whd"),
                url=url,
                payload={},
                now=now(),
            )
        return describe_delivery(row)


def _add_secrets(router: APIRouter, database: Database, now: Callable[[], datetime]) -> None:
    @router.get(
        "/v1/webhooks/secrets",
        summary="List the secrets that sign",
        response_model=SecretList,
        responses=problems(),
    )
    async def list_signing(caller: MayUseJobs) -> SecretList:
        """Never the secrets themselves: rotate to get one."""
        async with database.reading() as session:
            rows = await list_secrets(session, caller.tenant_id, now())
        return SecretList(items=tuple(describe_secret(row) for row in rows))

    @router.post(
        "/v1/webhooks/secrets/rotate",
        summary="Make a new secret",
        status_code=201,
        response_model=NewSecret,
        responses=problems(),
    )
    async def rotate(caller: MayUseJobs, wanted: RotationRequest, response: Response) -> NewSecret:
        """Shown this once. Messages carry a signature of each secret until the overlap ends."""
        overlap = timedelta(seconds=wanted.overlap_s)
        async with database.transaction() as session:
            row = await rotate_secret(session, caller.tenant_id, overlap, now())
        response.headers.update(NO_STORE)
        return NewSecret(**dict(describe_secret(row)), secret=row.secret)


def describe_delivery(row: WebhookDelivery) -> Delivery:
    is_pending = row.state is DeliveryState.PENDING
    return Delivery(
        id=row.id,
        event=row.event,
        subject_id=row.subject_id,
        url=row.url,
        status=row.state.value,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at if is_pending else None,
        last_status=row.last_status,
        last_error=row.last_error,
        created_at=row.created_at,
        delivered_at=row.delivered_at,
    )


def describe_secret(row: WebhookSecret) -> SecretCard:
    return SecretCard(id=row.id, created_at=row.created_at, expires_at=row.expires_at)
