"""`/openapi.json` as this API answers: what does not fit is a 400 problem, not FastAPI's 422."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.api.responses import problems
from serve.schemas.problems import Problem

DEFAULT_REFUSAL = "#/components/schemas/HTTPValidationError"
REFERENCES = "#/components/schemas/{model}"
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "For repeats: the same key and body get the first answer again for 24 hours, also while "
        "it is still being made; another body is a 409."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def install_openapi(app: FastAPI) -> None:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if _is_default_refusal(operation["responses"].get("422", {})):
                del operation["responses"]["422"]
            if method == "post":
                _add_idempotency(operation)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template=REFERENCES)
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    return document


def _add_idempotency(operation: dict[str, Any]) -> None:
    """Middleware reads it, so no route declares it."""
    operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    # Written as text, as FastAPI does: 409 beside "409" would be one key twice in the document.
    declared = {str(status): told for status, told in problems(409, common=False).items()}
    operation["responses"] = {**declared, **operation["responses"]}


def _is_default_refusal(response: dict[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return bool(schema.get("$ref") == DEFAULT_REFUSAL)
