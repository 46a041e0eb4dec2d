"""`GET /v1/jobs/{id}/events`: a job told as it happens, from any router replica.

Events are rows, so that a stream can be taken up anywhere: `Last-Event-ID` is the number of the
last one that was seen. Source: html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from starlette.responses import Response, StreamingResponse

from serve.api.identity import require
from serve.api.responses import problems
from serve.errors import InvalidRequest, StoreUnavailable
from serve.store.columns import utc_now
from serve.store.endings import FINISHED
from serve.store.engine import Database
from serve.store.events import read_events
from serve.store.job_cards import describe_output
from serve.store.job_states import ENDED
from serve.store.jobs import get_job
from serve.store.keys import is_usable
from serve.store.tables import JobEvent
from serve.tenancy.caller import Caller

MEDIA_TYPE = "text/event-stream"
POLL_S = 0.25
HEARTBEAT_S = 10.0
# Serve stops every request after 120 s (serve/local.py); a client takes the stream up again.
MAX_STREAM_S = 100.0
# Of the five seconds after which a key that was revoked is told nothing more.
CHECK_KEY_S = 3.0
RETRY_MS = 1000
MAX_EVENT_ID = 2**31 - 1
MAX_DIGITS = len(str(MAX_EVENT_ID))
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def build_job_events_router(
    database: Database, poll_s: float = POLL_S, max_stream_s: float = MAX_STREAM_S
) -> APIRouter:
    """The route, bound to the store."""
    router = APIRouter(tags=["jobs"])

    @router.get(
        "/v1/jobs/{job_id}/events",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Server-sent events: queued, started, step, preview, finished",
                "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            },
            204: {
                "description": "It has ended and there is nothing left to tell: do not reconnect"
            },
            **problems(404),
        },
    )
    async def follow(
        job_id: str,
        caller: Annotated[Caller, Depends(require("jobs"))],
        last_event_id: Annotated[
            str | None, Header(description="number of the last event that was seen")
        ] = None,
    ) -> Response:
        """Ends after `finished`. A stream that ends before is to be taken up with
        `Last-Event-ID`, as browsers do by themselves."""
        after = _read_number(last_event_id)
        async with database.reading() as session:
            job = await get_job(session, caller.tenant_id, job_id)
        if job.state in ENDED and after >= job.num_events:
            return Response(None, 204)
        follower = Follower(database, caller, job_id, after, poll_s, max_stream_s)
        return StreamingResponse(follower.stream(), 200, HEADERS, MEDIA_TYPE)

    return router


def _read_number(text: str | None) -> int:
    if text is None or text == "":
        return 0
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not is_number or int(text) > MAX_EVENT_ID:
        raise InvalidRequest(
            "Last-Event-ID: not the number of an event",
            remedy="send the `id` of the last event that was seen, or leave it out to see all",
        )
    return int(text)


class Follower:
    """One open stream; it ends with its job, its time, or its key."""

    def __init__(
        self,
        database: Database,
        caller: Caller,
        job_id: str,
        after: int,
        poll_s: float,
        max_stream_s: float,
        now_s: Callable[[], float] | None = None,
    ):
        self._database = database
        self._caller = caller
        self._job_id = job_id
        self._after = after
        self._poll_s = poll_s
        self._max_stream_s = max_stream_s
        self._now_s = now_s or asyncio.get_running_loop().time

    async def stream(self) -> AsyncIterator[str]:
        ends_at_s = self._now_s() + self._max_stream_s
        beat_at_s = self._now_s() + HEARTBEAT_S
        check_at_s = self._now_s() + CHECK_KEY_S
        yield f"retry: {RETRY_MS}\n\n"
        while self._now_s() < ends_at_s:
            if self._now_s() >= check_at_s:
                check_at_s = self._now_s() + CHECK_KEY_S
                if not await self._is_let_in():
                    return
            for event in await self._read():
                self._after = event.sequence
                beat_at_s = self._now_s() + HEARTBEAT_S
                yield write_event(event)
                if event.kind == FINISHED:
                    return
            if self._now_s() >= beat_at_s:
                beat_at_s = self._now_s() + HEARTBEAT_S
                yield ": still here\n\n"
            await asyncio.sleep(self._poll_s)

    async def _read(self) -> list[JobEvent]:
        try:
            async with self._database.reading() as session:
                tenant_id = self._caller.tenant_id
                return list(await read_events(session, tenant_id, self._job_id, self._after))
        except StoreUnavailable:
            return []  # the next look may find it; the client could do nothing better

    async def _is_let_in(self) -> bool:
        try:
            async with self._database.reading() as session:
                return await is_usable(session, self._caller.key_id, utc_now())
        except StoreUnavailable:
            return True  # there is nothing to tell either


def write_event(event: JobEvent) -> str:
    told = {**event.data, "at": event.at.isoformat()}
    if "outputs" in told:  # as a poll and a webhook have them: with where the bytes are
        told["outputs"] = [describe_output(one).model_dump() for one in told["outputs"]]
    data = json.dumps(told, separators=(",", ":"))
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {data}\n\n"
