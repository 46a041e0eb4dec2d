"""Renders every error as RFC 9457 problem+json: the one place that turns errors into HTTP."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.watching import watch_of
from serve.errors import Cancelled, InvalidRequest, Sm4llError
from serve.schemas.problems import FieldProblem, Problem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:sm4ll:problem:"
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
HTTP_REMEDIES = {
    404: "GET /openapi.json lists every path; none of them ends with a slash",
    405: "the header Allow says what this path takes",
}
MAX_TOLD = 20
MAX_NAME_CHARS = 200
# What pydantic and FastAPI call a body that is no JSON object.
NO_JSON = ("json_invalid", "model_attributes_type", "model_type", "dict_type")
JSON_REMEDY = "send a JSON object with the header `Content-Type: application/json`"
FIELDS_REMEDY = "GET /openapi.json says what every field may hold; /docs shows it"


def invalid_fields(exc: ValidationError | RequestValidationError) -> InvalidRequest:
    """Translate pydantic's report; the values themselves are left out, they may be pictures."""
    errors = exc.errors()
    fields = tuple(map(_tell_field, errors[:MAX_TOLD]))
    told = [f"{field}: {message}" for field, message in fields]
    if len(errors) > MAX_TOLD:
        told.append(f"and {len(errors) - MAX_TOLD} more")
    detail = "; ".join(told)
    is_no_json = any(error["type"] in NO_JSON and len(error["loc"]) <= 2 for error in errors)
    return InvalidRequest(
        detail or "the request does not fit the schema",
        remedy=JSON_REMEDY if is_no_json else FIELDS_REMEDY,
        fields=fields,
    )


def _tell_field(error: Any) -> tuple[str, str]:
    if error["type"] == "json_invalid" and len(error["loc"]) > 1:
        # FastAPI's own: its place is a number of characters, and its message says nothing.
        return "body", f"not JSON: {error['ctx']['error']} at character {error['loc'][1]}"
    # A field's name may be the caller's own, and as long as the body.
    name = ".".join(map(str, error["loc"]))[:MAX_NAME_CHARS]
    if error["type"] == "string_pattern_mismatch" and error["loc"][:1] == ("path",):
        return name, "this is not what such an id looks like; its list shows them"
    return name or "body", error["msg"].removeprefix("Value error, ")


class ProblemResponse(JSONResponse):
    """Leaves its code in the request's state, for whoever counts refusals."""

    def __init__(
        self, code: str, body: Any, status: int, headers: Mapping[str, str] | None
    ) -> None:
        super().__init__(body, status, headers, MEDIA_TYPE)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["problem"] = self._code
        await super().__call__(scope, receive, send)


def problem_response(error: Sm4llError, request_id: str) -> Response:
    problem = Problem(
        type=TYPE_PREFIX + error.code,
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        remedy=error.remedy or None,
        retry_after_s=error.retry_after_s,
        errors=_field_problems(error),
    )
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 6750, section 3
    body = problem.model_dump(mode="json", exclude_none=True)
    return ProblemResponse(error.code, body, error.status, headers)


def _field_problems(error: Sm4llError) -> list[FieldProblem] | None:
    if not isinstance(error, InvalidRequest) or not error.fields:
        return None
    return [FieldProblem(field=field, message=message) for field, message in error.fields]


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def install_problem_handlers(app: FastAPI, logger: logging.Logger) -> None:
    """Every way a request can fail, to one body."""

    async def on_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, Sm4llError)
        if exc.status >= 500:
            logger.error("%s: %s", exc.code, exc.detail, exc_info=exc)
        return problem_response(exc, request_id_of(request))

    async def on_validation(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        return problem_response(invalid_fields(exc), request_id_of(request))

    async def on_leaving(request: Request, exc: Exception) -> Response:
        # Nobody reads it: for what counts and logs, which would call it a failure of ours.
        error = Cancelled("the client left while it sent the request")
        return problem_response(error, request_id_of(request))

    async def on_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        request_id = request_id_of(request)
        if isinstance(exc.__cause__, ClientDisconnect):
            return await on_leaving(request, exc)
        if isinstance(exc.__cause__, Sm4llError):
            # Raised by what reads the body, and wrapped by FastAPI: a body that is too long.
            return problem_response(exc.__cause__, request_id)
        if exc.status_code == 400:
            detail = "the body cannot be read as JSON"
            return problem_response(InvalidRequest(detail, remedy=JSON_REMEDY), request_id)
        problem = Problem(
            type=TYPE_PREFIX + HTTP_CODES.get(exc.status_code, "http_error"),
            title=exc.detail,
            status=exc.status_code,
            detail=f"{request.method} {request.scope['path']}: {exc.detail}",
            code=HTTP_CODES.get(exc.status_code, "http_error"),
            request_id=request_id,
            remedy=HTTP_REMEDIES.get(exc.status_code),
        )
        body = problem.model_dump(mode="json", exclude_none=True)
        return ProblemResponse(problem.code, body, exc.status_code, exc.headers)

    async def on_unknown(request: Request, exc: Exception) -> Response:
        # %r: a path may hold line ends, and none may begin a line of the log.
        logger.error("unexpected failure on %r", request.scope["path"], exc_info=exc)
        detail = "an unexpected failure; the log has it under this request id"
        response = problem_response(Sm4llError(detail), request_id_of(request))
        # Outside of the middleware that does it for all others.
        response.headers["Server-Timing"] = watch_of(request.scope).server_timing()
        return response

    app.add_exception_handler(Sm4llError, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_leaving)
    app.add_exception_handler(Exception, on_unknown)
