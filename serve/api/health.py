"""`/healthz` and `/readyz`: is this process alive, and can the family serve."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve.api.responses import problems
from serve.schemas.models import Readiness

ReadWaiting = Callable[[], Awaitable[tuple[str, ...]]]


def build_health_router(read_waiting: ReadWaiting) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get(
        "/healthz",
        summary="Alive",
        response_class=PlainTextResponse,
        responses=problems(common=False),
    )
    async def healthz() -> str:
        return "ok"

    @router.get(
        "/readyz",
        summary="Ready to serve",
        response_model=Readiness,
        responses={
            503: {"model": Readiness, "description": "Not every expert answers yet"},
            **problems(common=False),
        },
    )
    async def readyz() -> Response:
        """Ready when the segmenter and every expert with min_replicas >= 1 answer."""
        waiting = await read_waiting()
        readiness = Readiness(ready=not waiting, waiting_for=waiting)
        return JSONResponse(readiness.model_dump(mode="json"), 503 if waiting else 200)

    return router
