"""Two tenants cannot see each other by any id: every route of /openapi.json is tried.

A route with an id in its path that this file does not know fails here, so that a new one cannot
be forgotten.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from serve.policy import Scope
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import add_key_to, bearer, key_id_of
from tests.up import Up

PICTURES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop", "format": "png"}
NAMES = ("weyland", "umbrella")
USERS: tuple[Scope, ...] = ("tryon", "jobs", "versions", "review")
ADMIN_PREFIXES = (
    *("/v1/tenants", "/v1/audit", "/v1/versions", "/v1/experiments"),
    *("/v1/experts", "/v1/rollouts"),
)
SUBJECT = "customer 4711"
COLLECTION = "spring-abc123"
# Of the key's own tenant, though what is beside it is an administrator's.
FOR_REVIEWERS = ("GET /v1/experiments/{experiment_id}/report",)
# What a caller names as it likes: each has its own of that name.
MAKES_ITS_OWN = ("PUT /v1/pins/{collection}",)
# Of the cluster's own, or of none.
PUBLIC_IDS = ("cell", "expert", "version", "experiment_id", "rollout_id")
WEBHOOK = "https://shop.invalid/hook"


@dataclass
class Tenant:
    """A key of one tenant and what it made."""

    http: httpx2.Client
    token: str
    ids: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        headers = {**bearer(self.token), **arguments.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **arguments)

    def fill(self) -> None:
        """One of everything that has an id."""
        asset = self.call(
            "POST",
            "/v1/assets",
            files={"file": PICTURES["person"]},
            data={"subject": SUBJECT},
        )
        assert asset.status_code == 201, asset.text
        self.ids["asset_id"] = asset.json()["id"]
        job = self.call("POST", "/v1/jobs", data={**NOOP, "webhook_url": WEBHOOK}, files=PICTURES)
        assert job.status_code == 202, job.text
        self.ids["job_id"] = job.json()["id"]
        self._follow(self.ids["job_id"])
        batch = self.call(
            "POST",
            "/v1/batches",
            json={
                "expert": "top",
                "version": "noop",
                "products": [{"sku": "A1", "image": self.ids["asset_id"]}],
                "persons": [{"name": "one", "image": self.ids["asset_id"]}],
            },
        )
        assert batch.status_code == 201, batch.text
        self.ids["batch_id"] = batch.json()["id"]
        deliveries = self.call("GET", "/v1/webhooks/deliveries").json()["items"]
        self.ids["delivery_id"] = deliveries[0]["id"]
        pin = self.call("PUT", f"/v1/pins/{COLLECTION}", json={"versions": {"top": "noop"}})
        assert pin.status_code == 200, pin.text
        self.ids["collection"] = COLLECTION

    def _follow(self, job_id: str) -> None:
        events = self.call("GET", f"/v1/jobs/{job_id}/events")
        assert "event: finished" in events.text
        assert self.call("GET", f"/v1/jobs/{job_id}").json()["status"] == "succeeded"


Fixture = tuple[Tenant, Tenant, dict[str, Any]]


@pytest.fixture(
    scope="module", params=["one process", pytest.param("cluster", marks=pytest.mark.ray)]
)
def tenants(request: pytest.FixtureRequest) -> Iterator[Fixture]:
    """Two tenants with keys of their own, and what /openapi.json says; in one process, and on a
    cluster with PostgreSQL and Redis."""
    if request.param == "cluster":
        up: Up = request.getfixturevalue("up")
        tokens = [up.open_tenant(name, USERS) for name in NAMES]
        with httpx2.Client(base_url=up.url, timeout=120) as http:
            yield meet(http, tokens)
    else:
        api = build_local_api(request.getfixturevalue("family"), is_key_added=False)
        tokens = [add_key_to(api, name, USERS) for name in NAMES]
        with TestClient(api) as http:
            yield meet(http, tokens)


def meet(http: httpx2.Client, tokens: list[str]) -> Fixture:
    acme, umbrella = (Tenant(http, token) for token in tokens)
    acme.fill()
    acme.ids |= {"tenant_id": NAMES[0], "key_id": key_id_of(acme.token), "cell": "0"}
    acme.ids |= {"expert": "eye", "version": "eye@1", "experiment_id": "eye-2"}
    acme.ids |= {"rollout_id": "rol_" + "0" * 26}
    return acme, umbrella, http.get("/openapi.json").json()


def operations(document: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    return [
        (
            method.upper(),
            path,
            [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"],
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_no_route_shows_another_tenants_object(
    tenants: Fixture,
) -> None:
    acme, umbrella, document = tenants
    tried = 0
    for method, path, names in operations(document):
        is_open = f"{method} {path}" in MAKES_ITS_OWN
        if not names or is_open or path.startswith(ADMIN_PREFIXES):
            continue
        for name in names:
            assert name in acme.ids, f"{method} {path}: this test knows no {name}"
        foreign = umbrella.call(method, path.format(**acme.ids))
        unknown_ids = {name: scramble(value) for name, value in acme.ids.items()}
        unknown = umbrella.call(method, path.format(**unknown_ids))
        assert foreign.status_code == unknown.status_code == 404, (method, path, foreign.text)
        assert without_ids(foreign, acme.ids) == without_ids(unknown, unknown_ids)
        tried += 1
    assert tried >= 10


def test_no_list_shows_another_tenants_object(
    tenants: Fixture,
) -> None:
    acme, umbrella, document = tenants
    secrets = [value for name, value in acme.ids.items() if name not in PUBLIC_IDS]
    for method, path, names in operations(document):
        if method == "GET" and not names and not path.startswith(("/docs", "/healthz")):
            answer = umbrella.call("GET", path)
            assert not [value for value in secrets if value in answer.text], path
    for question in (f"/v1/usage?tenant={NAMES[0]}", f"/v1/assets?subject={SUBJECT}"):
        answer = umbrella.call("GET", question)
        assert answer.status_code == 403 or not json.loads(answer.text).get("items")


def test_what_only_administrators_may_is_forbidden_to_a_tenants_key(
    tenants: Fixture,
) -> None:
    acme, umbrella, document = tenants
    tried = 0
    for method, path, _ in operations(document):
        if path.startswith(ADMIN_PREFIXES) and f"{method} {path}" not in FOR_REVIEWERS:
            assert umbrella.call(method, path.format(**acme.ids)).status_code == 403, path
            tried += 1
    assert tried >= 6


@pytest.mark.parametrize("where", ["person", "product", "mask"])
@pytest.mark.parametrize("route", ["/v1/tryon", "/v1/jobs"])
def test_another_tenants_asset_cannot_be_tried_on(tenants: Fixture, route: str, where: str) -> None:
    acme, umbrella, _ = tenants
    files = {name: data for name, data in PICTURES.items() if name != where}
    data = {**NOOP, where: acme.ids["asset_id"]}
    answer = umbrella.call("POST", route, data=data, files=files)
    assert answer.status_code == 404, answer.text
    data[where] = scramble(acme.ids["asset_id"])
    assert umbrella.call("POST", route, data=data, files=files).status_code == 404


def test_the_same_bytes_of_two_tenants_are_two_assets(
    tenants: Fixture,
) -> None:
    acme, umbrella, _ = tenants
    mine = umbrella.call("POST", "/v1/assets", files={"file": PICTURES["person"]})
    assert mine.status_code == 201  # not 200, which says that it was there already
    assert mine.json()["id"] != acme.ids["asset_id"]


def test_erasing_a_subject_erases_ones_own_only(
    tenants: Fixture,
) -> None:
    acme, umbrella, _ = tenants
    assert umbrella.call("POST", "/v1/erasures", json={"subject": SUBJECT}).is_success
    assert acme.call("GET", f"/v1/assets/{acme.ids['asset_id']}/content").is_success


def test_the_same_idempotency_key_of_two_tenants_is_two_keys(
    tenants: Fixture,
) -> None:
    acme, umbrella, _ = tenants
    header = {"Idempotency-Key": "order-1"}
    mine = acme.call("POST", "/v1/jobs", data=NOOP, files=PICTURES, headers=header)
    theirs = umbrella.call("POST", "/v1/jobs", data=NOOP, files=PICTURES, headers=header)
    again = acme.call("POST", "/v1/jobs", data=NOOP, files=PICTURES, headers=header)
    assert mine.json()["id"] == again.json()["id"] != theirs.json()["id"]


OTHER = str.maketrans("0123456789abcdef", "1032547698badcfe")


def scramble(value: str) -> str:
    """An id of the same kind that nobody has."""
    return value[:-6] + value[-6:].translate(OTHER)


def without_ids(answer: httpx2.Response, ids: Mapping[str, str]) -> str:
    text = answer.text
    for value in [*ids.values(), answer.headers["x-request-id"]]:
        if len(value) > 3:
            text = text.replace(value, "*")
    return text
