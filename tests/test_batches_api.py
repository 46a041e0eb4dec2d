"""Products times persons over HTTP: estimated, run, paused, cancelled, tried again, and told."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from serve.policy import TenantPolicy
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import add_key_to, bearer, run
from tests.test_jobs_api import forget_answer
from tests.test_webhooks import Receivers
from tests.test_webhooks_api import deliver

HOOK = "https://shop.example.org/hook"
DEADLINE_S = 60


@pytest.fixture(scope="module")
def api(family: Path) -> FastAPI:
    return build_local_api(family)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@dataclass
class Shop:
    """A tenant's own program."""

    http: TestClient
    token: str

    def get(self, path: str, **parameters: str | int) -> Response:
        return self.http.get(path, params=parameters, headers=bearer(self.token))

    def post(self, path: str, body: Any = None, key: str | None = None) -> Response:
        once = {} if key is None else {"Idempotency-Key": key}
        return self.http.post(path, json=body, headers={**bearer(self.token), **once})

    def upload(self, data: bytes) -> str:
        headers = {**bearer(self.token), "Content-Type": "application/octet-stream"}
        answer = self.http.post("/v1/assets", content=data, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["id"])

    def make(self, key: str | None = None, **changes: Any) -> Response:
        person = self.upload(encoded(photo()))
        product = self.upload(encoded(photo(64, 64, seed=1)))
        mask = self.upload(encoded(box_mask()))
        body = {
            "expert": "top",
            "version": "noop",
            "products": [{"sku": f"sku-{n}", "image": product} for n in range(2)],
            "persons": [{"name": f"person-{n}", "image": person, "mask": mask} for n in range(2)],
            **changes,
        }
        return self.post("/v1/batches", body, key)

    def wait_for(self, batch_id: str) -> dict[str, Any]:
        """The runner of this process works while we ask."""
        ends_at_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends_at_s:
            card: dict[str, Any] = self.get(f"/v1/batches/{batch_id}").json()
            if card["finished_at"] is not None:
                return card
        raise AssertionError(f"not finished: {card}")


@pytest.fixture
def shop(api: FastAPI, http: TestClient) -> Shop:
    return Shop(http, add_key_to(api, "acme"))


def test_draft_has_an_estimate_and_no_job(shop: Shop) -> None:
    made = shop.make(options={"num_images": 2})
    assert made.status_code == 201, made.text
    card = made.json()
    assert made.headers["location"] == card["links"]["self"] == f"/v1/batches/{card['id']}"
    assert (card["status"], card["num_cells"], card["num_ended"]) == ("draft", 4, 0)
    estimate = card["estimate"]
    assert (estimate["cells"], estimate["images"], estimate["fits_budget"]) == (4, 8, True)
    assert estimate["gpu_s"] > 0
    assert estimate["estimated_duration_s"] > 0
    assert shop.get(f"/v1/batches/{card['id']}/cells").json() == {"items": [], "next": None}
    assert set(card["counts"].values()) == {0}


def test_three_by_four_with_one_bad_cell_succeeds_in_part_and_tells_all(
    api: FastAPI, shop: Shop
) -> None:
    person = shop.upload(encoded(photo()))
    product = shop.upload(encoded(photo(64, 64, seed=1)))
    mask = shop.upload(encoded(box_mask()))
    images = [product] * 2 + ["https://unknown.example.org/a.png"]
    made = shop.make(
        products=[{"sku": f"sku-{n}", "image": image} for n, image in enumerate(images)],
        persons=[{"name": f"p{n}", "image": person, "mask": mask} for n in range(4)],
        webhook_url=HOOK,
    ).json()
    path = f"/v1/batches/{made['id']}"
    assert shop.get(f"{path}/manifest").status_code == 409
    for _ in range(2):  # a double click
        assert shop.post(f"{path}/start").status_code == 200
    card = shop.wait_for(made["id"])
    assert (card["status"], card["progress"]) == ("finished", 1)
    assert card["counts"] == {
        "queued": 0,
        "running": 0,
        "succeeded": 8,
        "failed": 4,
        "cancelled": 0,
    }
    manifest = shop.get(f"{path}/manifest").json()
    assert [(cell["sku"], cell["person"]) for cell in manifest["cells"]] == [
        (f"sku-{n}", f"p{m}") for n in range(3) for m in range(4)
    ]
    for cell in manifest["cells"]:
        if cell["sku"] == "sku-2":
            assert (cell["status"], cell["outputs"]) == ("failed", [])
            assert cell["error"]["code"] == "fetch_refused"
            continue
        (output,) = cell["outputs"]
        assert shop.get(output["url"]).status_code == 200
        assert cell["receipt"]["outside"]["max_abs_diff"] == 0
    post = Receivers()
    deliver(api, post)
    told = [json.loads(body) for body in post.bodies if made["id"] in body.decode()]
    assert [message["type"] for message in told] == ["batch.finished"]
    assert told[0]["data"]["counts"] == card["counts"]

    failed = shop.get(f"{path}/cells", status="failed").json()["items"]
    assert [cell["cell"] for cell in failed] == [8, 9, 10, 11]
    assert shop.post(f"{path}/cells/0/retry").status_code == 409
    assert shop.post(f"{path}/cells/12/retry").status_code == 404
    again = shop.post(f"{path}/cells/8/retry")
    assert (again.status_code, again.json()["status"]) == (200, "running")
    assert shop.wait_for(made["id"])["counts"] == card["counts"]
    newer = shop.get(f"{path}/cells", status="failed").json()["items"]
    assert newer[0]["job"] != failed[0]["job"]
    assert newer[1:] == failed[1:]
    assert shop.post(f"{path}/retry").json()["num_ended"] < 12
    assert shop.wait_for(made["id"])["counts"] == card["counts"]


def many(shop: Shop) -> dict[str, Any]:
    """More cells than can be done between two calls."""
    image = shop.upload(encoded(photo(64, 64, seed=1)))
    products = [{"sku": f"sku-{n}", "image": image} for n in range(20)]
    card: dict[str, Any] = shop.make(products=products, start=True).json()
    return card


def test_paused_batch_stands_still_and_is_finished_after_it_goes_on(shop: Shop) -> None:
    path = many(shop)["links"]["self"]
    assert shop.post(f"{path}/pause").json()["status"] == "paused"
    while shop.get(path).json()["counts"]["running"] > 0:
        pass
    held = shop.get(path).json()
    assert held["counts"]["queued"] > 0
    assert shop.get(path).json()["counts"] == held["counts"]
    assert shop.post(f"{path}/resume").json()["status"] == "running"
    assert shop.wait_for(held["id"])["counts"]["succeeded"] == 40


def test_cancelled_batch_ends_and_keeps_what_was_done(shop: Shop) -> None:
    made = many(shop)
    path = made["links"]["self"]
    assert shop.post(f"{path}/cancel").json()["status"] == "cancelled"
    counts = shop.wait_for(made["id"])["counts"]
    assert counts["cancelled"] > 0
    assert sum(counts.values()) == 40
    assert counts["queued"] == counts["running"] == 0
    statuses = {cell["status"] for cell in shop.get(f"{path}/manifest").json()["cells"]}
    assert "cancelled" in statuses
    assert shop.post(f"{path}/retry").status_code == 409
    assert shop.get(path).json()["status"] == "cancelled"


def test_cells_are_paged_in_the_order_of_the_matrix(shop: Shop) -> None:
    made = shop.make(start=True).json()
    seen: list[int] = []
    after = -1
    while True:
        page = shop.get(f"/v1/batches/{made['id']}/cells", limit=3, after=after).json()
        seen += [cell["cell"] for cell in page["items"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == [0, 1, 2, 3]
    shop.wait_for(made["id"])


def test_batches_are_listed_newest_first(shop: Shop) -> None:
    ids = [shop.make().json()["id"] for _ in range(3)]
    page = shop.get("/v1/batches", limit=2).json()
    assert [item["id"] for item in page["items"]] == ids[:0:-1]
    older = shop.get("/v1/batches", limit=1, after=page["next"]).json()
    assert older["items"][0]["id"] == ids[0]


def test_draft_that_is_cancelled_cannot_be_started(shop: Shop) -> None:
    path = f"/v1/batches/{shop.make().json()['id']}"
    assert shop.post(f"{path}/pause").status_code == 409
    for _ in range(2):
        assert shop.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert shop.post(f"{path}/start").status_code == 409
    assert shop.post(f"{path}/resume").status_code == 409
    assert shop.get(f"{path}/manifest").json()["cells"] == []


def test_finished_batch_can_be_neither_paused_nor_cancelled(shop: Shop) -> None:
    made = shop.make(start=True).json()
    shop.wait_for(made["id"])
    for name in ("pause", "resume", "cancel"):
        answer = shop.post(f"/v1/batches/{made['id']}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_budget_is_all_or_nothing_and_the_refusal_says_what_is_missing(
    api: FastAPI, http: TestClient
) -> None:
    policy = TenantPolicy(monthly_images=3)
    shop = Shop(http, add_key_to(api, "poor", policy=policy))
    made = shop.make().json()
    assert made["estimate"]["fits_budget"] is False
    answer = shop.post(f"/v1/batches/{made['id']}/start")
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exhausted")
    assert answer.headers["retry-after"]
    assert shop.get(f"/v1/batches/{made['id']}").json()["status"] == "draft"
    assert shop.get("/v1/jobs").json()["items"] == []
    assert shop.make(start=True).status_code == 429
    assert len(shop.get("/v1/batches").json()["items"]) == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"products": []}, 400),
        ({"persons": []}, 400),
        ({"products": [{"sku": "a", "image": "ast_" + "0" * 26}]}, 404),
        ({"products": [{"sku": "a", "image": "data:image/png;base64,AA=="}]}, 400),
        ({"products": [{"sku": "a", "image": "http://shop.example.org/a.png"}]}, 422),
        ({"products": [{"sku": "a" * 101, "image": "https://shop.example.org/"}]}, 400),
        ({"products": [{"sku": "", "image": "https://shop.example.org/"}]}, 400),
        ({"products": [{"sku": "a", "image": "https://shop.example.org/"}] * 2}, 400),
        (
            {
                "products": [
                    {"sku": str(n), "image": "https://shop.example.org/"} for n in range(5001)
                ]
            },
            400,
        ),
        ({"webhook_url": "https://127.0.0.1/"}, 400),
        ({"version": "none-such"}, 404),
        ({"options": {"output": "layers"}}, 400),
        ({"colour": "red"}, 400),
    ],
)
def test_batch_that_could_never_work_is_refused_when_it_is_made(
    shop: Shop, changes: dict[str, Any], status: int
) -> None:
    assert shop.make(**changes).status_code == status


def test_description_has_a_size_limit(shop: Shop) -> None:
    image = "https://shop.example.org/" + "a" * 2000
    products = [{"sku": str(n), "image": image} for n in range(3000)]
    answer = shop.make(products=products, persons=[{"name": "p", "image": image}])
    assert (answer.status_code, "4 MiB" in answer.json()["detail"]) == (400, True)


def test_other_tenants_and_unknown_batches_are_the_same_404(
    api: FastAPI, http: TestClient, shop: Shop
) -> None:
    other = Shop(http, add_key_to(api, "other"))
    mine = shop.make().json()["id"]
    details = set()
    for batch_id in (mine, "bat_" + "0" * 26, "x"):
        path = f"/v1/batches/{batch_id}"
        answers = [other.get(f"{path}{tail}") for tail in ("", "/cells", "/manifest")]
        names = ("start", "pause", "resume", "cancel", "retry", "cells/0/retry")
        answers += [other.post(f"{path}/{name}") for name in names]
        assert {answer.status_code for answer in answers} == {404}
        details |= {answer.json()["detail"] for answer in answers}
    assert len(details) == 1
    theirs = shop.upload(encoded(photo()))
    stolen = other.make(products=[{"sku": "a", "image": theirs}])
    assert stolen.status_code == 404
    assert other.get("/v1/batches").json()["items"] == []


def test_router_that_takes_a_request_over_finds_its_batch(api: FastAPI, shop: Shop) -> None:
    """What the first router wrote before it died: the batch and its jobs, and no answer."""
    first = shop.make("taken over", start=True)
    run(forget_answer(api, "taken over", "acme"))
    second = shop.make("taken over", start=True)
    assert (first.status_code, second.status_code) == (201, 201), second.text
    assert first.json()["id"] == second.json()["id"]
    shop.wait_for(first.json()["id"])
