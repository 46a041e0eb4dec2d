"""What a route declares about its refusals: the same problem body for every status."""

from http import HTTPStatus
from typing import Any

PROBLEM_MEDIA_TYPE = "application/problem+json"
# A route behind a key can answer these whatever it does: a request that does not fit or is too
# long, no key, a key that may not, too many requests, a failure of ours, a database that is away.
COMMON = (400, 401, 403, 413, 429, 500, 503)


def problems(*statuses: int, common: bool = True) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: its own statuses and those every route can answer.

    Args:
        common: False for the few routes that need no key.
    """
    return {
        status: _problem(status) for status in sorted({*statuses, *(COMMON if common else (400,))})
    }


def _problem(status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string", "const": "Bearer"}}
    if status in (429, 503, 504):
        headers["Retry-After"] = {"schema": {"type": "integer", "minimum": 1}}
    # Not `model`: FastAPI would promise application/json beside it.
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}},
        **({"headers": headers} if headers else {}),
    }
