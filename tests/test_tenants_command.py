"""`sm4ll tenants` against the real API: what it sends, what it says, what it exits with."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import typer
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import ApiError, Client
from serve.commands import keys, tenants
from serve.commands.tenants import parse_policy
from tests.fakes import build_local_api
from tests.tenants import LOCAL_TOKEN, bearer, key_id_of

FAMILY = Path(__file__).parent / "bench" / "family.yaml"


class Through(httpx2.BaseTransport):
    """Passes requests on to the API of a test client."""

    def __init__(self, http: TestClient):
        self._http = http

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._http.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx2.Response(answer.status_code, content=answer.content)


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with TestClient(build_local_api(FAMILY, is_key_added=False)) as http:

        def connect(url: str | None) -> Client:
            return Client("http://testserver", LOCAL_TOKEN, Through(http))

        monkeypatch.setattr(tenants, "connect", connect)
        monkeypatch.setattr(keys, "connect", connect)
        yield http


def sm4ll(line: str) -> Result:
    return CliRunner().invoke(app, ["tenants", *line.split()], catch_exceptions=True)


def said(line: str) -> str:
    result = sm4ll(line)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_tenant_from_its_making_to_its_end(http: TestClient) -> None:
    assert said("create Acme --id acme") == "acme"
    line = "policy acme experts=eye,shoes requests_per_minute=600 weight=2"
    assert said(line) == "acme: enabled; experts=eye,shoes requests_per_minute=600 weight=2.0"
    assert "requests_per_minute" not in said("policy acme requests_per_minute=none")
    token = said("keys create acme --name shop --days 30")
    assert http.get("/v1/models", headers=bearer(token)).status_code == 200
    listed = said("keys list acme")
    assert key_id_of(token) in listed
    assert "tryon" in listed
    assert token not in listed
    assert said("disable acme").startswith("acme: disabled")
    assert "disabled" in said("list")
    assert said("enable acme").startswith("acme: enabled")
    other = said(f"keys rotate acme {key_id_of(token)} --overlap-h 2")
    assert other != token
    assert "revoked" in said(f"keys revoke acme {key_id_of(other)}")
    assert said("audit verify").startswith("8 records, all in order")


def test_token_is_all_that_standard_output_gets(http: TestClient) -> None:
    said("create Acme --id acme")
    result = sm4ll("keys create acme --name shop --scopes tryon")
    assert result.stdout.startswith("sk_")
    assert len(result.stdout.split()) == 1
    assert "shown once" in result.stderr


def test_log_that_does_not_hold_exits_1(http: TestClient) -> None:
    result = sm4ll(f"audit verify --head {'f' * 64}")
    assert result.exit_code == 1
    assert "cut off" in result.stderr


def test_refusals_of_the_api_reach_the_person(http: TestClient) -> None:
    result = sm4ll("policy nobody weight=2")
    assert isinstance(result.exception, ApiError)
    assert result.exception.problem.code == "not_found"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("weight", "FIELD=VALUE"),
        ("colour=red", "FIELD=VALUE"),
        ("weight=heavy", "weight"),
        ("experts=hat", "experts"),
        ("requests_per_minute=0", "requests_per_minute"),
    ],
)
def test_wrong_limit_is_named_before_anything_is_sent(change: str, word: str) -> None:
    with pytest.raises(typer.BadParameter, match=word):
        parse_policy([change])


@pytest.mark.parametrize("scopes", ["", ",", "everything", "tryon,everything"])
def test_wrong_scope_is_refused(http: TestClient, scopes: str) -> None:
    result = CliRunner().invoke(
        app, ["tenants", "keys", "create", "acme", "--name", "x", "--scopes", scopes]
    )
    assert result.exit_code == 2
