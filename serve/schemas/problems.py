"""RFC 9457 problem details."""

from typing import Annotated

from pydantic import Field

from serve.described import Described
from serve.schemas.base import Wire


class FieldProblem(Wire):
    """One field of the request that does not fit."""

    field: str
    message: str


class Problem(Described):
    """RFC 9457 problem details, for every refusal and failure."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable; for programs."""
    request_id: str
    remedy: str | None = None
    """What to change, for people."""
    retry_after_s: Annotated[float | None, Field(ge=0)] = None
    errors: list[FieldProblem] | None = None
