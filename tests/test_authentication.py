"""Nothing is open but health and docs; a key does what its scopes and its tenant's policy say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from serve.api.authentication import PUBLIC_PATHS
from serve.policy import Scope, TenantPolicy
from serve.schemas.problems import Problem
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY, is_key_added=False)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@pytest.fixture(scope="module")
def operations(http: TestClient) -> list[tuple[str, str]]:
    """Every operation of /openapi.json, with made-up values in its path."""
    paths = http.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"{\w+}", "x", path))
        for path, methods in paths.items()
        for method in methods
    ]


def assert_unauthenticated(response: object) -> None:
    assert response.status_code == 401  # type: ignore[attr-defined]
    assert response.headers["www-authenticate"] == "Bearer"  # type: ignore[attr-defined]
    assert response.headers["x-request-id"]  # type: ignore[attr-defined]


def test_nothing_is_open_but_health_and_docs(
    http: TestClient, operations: list[tuple[str, str]]
) -> None:
    assert len(operations) > 15
    for method, path in operations:
        if path not in PUBLIC_PATHS:
            assert_unauthenticated(http.request(method, path))
    public = {path for _, path in operations} & PUBLIC_PATHS
    assert public == {"/healthz", "/readyz"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/v1", "/v1/tryon/", "/redoc", "/docs/", "/healthz/", "//healthz"]
)
def test_unknown_paths_are_closed_too(http: TestClient, method: str, path: str) -> None:
    assert_unauthenticated(http.request(method, path, follow_redirects=False))


def test_every_route_is_in_the_document(api: FastAPI, operations: list[tuple[str, str]]) -> None:
    """So that what the first test enumerates is all there is."""
    hidden = [
        route.path  # type: ignore[attr-defined]
        for route in api.routes
        if not isinstance(route, APIRoute) and hasattr(route, "path")
    ]
    documented = {path for _, path in operations}  # which may have a shortcut as well
    assert set(hidden) <= PUBLIC_PATHS | documented


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_health_and_docs_need_no_key(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", LOCAL_TOKEN, f"Bearer {LOCAL_TOKEN[:-1]}1"],
)
def test_same_words_for_every_header_that_is_no_key(http: TestClient, value: str) -> None:
    answer = http.get("/v1/models", headers={"Authorization": value, "X-Request-Id": "same"})
    assert_unauthenticated(answer)
    without = http.get("/v1/models", headers={"X-Request-Id": "same"})
    assert answer.content == without.content
    assert Problem.model_validate_json(answer.content).code == "unauthenticated"


def test_scheme_is_read_in_any_case_and_two_headers_are_none(http: TestClient) -> None:
    lower = {"Authorization": f"bearer {LOCAL_TOKEN}"}
    assert http.get("/v1/models", headers=lower).status_code == 200
    twice = [("Authorization", f"Bearer {LOCAL_TOKEN}")] * 2
    assert_unauthenticated(http.get("/v1/models", headers=twice))


def test_body_is_not_read_before_the_key_is_known(http: TestClient) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/tryon",
        "headers": [(b"content-length", b"10"), (b"content-type", b"application/json")],
        "query_string": b"",
    }
    assert http.portal is not None
    http.portal.call(http.app, scope, receive, send)
    assert sent[0]["status"] == 401


def test_scope_that_is_missing_is_named(api: FastAPI, http: TestClient) -> None:
    scopes: tuple[Scope, ...] = ("jobs", "review")
    key = bearer(add_key_to(api, "scoped", scopes))
    answer = http.post("/v1/tryon", data=NOOP, files=FILES, headers=key)
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.code) == (403, "forbidden")
    assert "'tryon'" in problem.detail
    assert "jobs, review" in problem.detail
    assert http.get("/v1/models", headers=key).status_code == 200


def test_websocket_is_closed(http: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), http.websocket_connect("/v1/anything"):
        pass


def test_tenant_gets_and_sees_only_the_versions_of_its_policy(
    api: FastAPI, http: TestClient
) -> None:
    policy = TenantPolicy(versions=("top@passthrough",))
    key = bearer(add_key_to(api, "narrow", ("tryon", "versions"), policy))
    models = http.get("/v1/models", headers=key).json()["models"]
    assert [model["version"] for model in models] == ["top@passthrough"]
    assert models[0]["default"]
    answer = http.post("/v1/tryon", data=NOOP, files=FILES, headers=key)
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.code) == (403, "forbidden")
    assert problem.remedy == "allowed: top@passthrough"
    unnamed = http.post("/v1/tryon", data={"expert": "top"}, files=FILES, headers=key)
    assert unnamed.headers["sm4ll-version"] == "top@passthrough"


def test_forbidden_version_looks_like_one_that_is_not_there(api: FastAPI, http: TestClient) -> None:
    key = bearer(add_key_to(api, "curious", policy=TenantPolicy(versions=("top@passthrough",))))
    answers = [
        http.post("/v1/tryon", data={"expert": "top", "version": v}, files=FILES, headers=key)
        for v in ("noop", "secret")
    ]
    details = [Problem.model_validate_json(answer.content).detail for answer in answers]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert details[0].replace("noop", "") == details[1].replace("secret", "")


def test_document_declares_the_key_and_no_refusal_of_fastapis_own(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {scheme["scheme"] for scheme in schemes.values()} == {"bearer"}
    assert "HTTPValidationError" not in str(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in PUBLIC_PATHS:
                assert "security" not in operation
                continue
            assert operation["security"], f"{method} {path}"
            assert {"401", "403"} <= set(operation["responses"]), f"{method} {path}"


def test_what_does_not_fit_is_a_problem_with_400(http: TestClient) -> None:
    answer = http.get("/v1/tenants", params={"limit": "0"}, headers=bearer(LOCAL_TOKEN))
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.code) == (400, "invalid_request")
