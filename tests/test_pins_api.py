"""A pinned collection, made again later, has the same bytes; and whoever pins sees only its own."""

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from serve.client import ApiError, Client
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentState, Pin
from serve.store.opening import database_url
from serve.store.routing import bump_routing
from serve.store.tables import Job, JobState
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import LOCAL_TOKEN, add_key_to, bearer, run
from tests.two_tops import design, run_experiment, write_two_tops

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return build_local_api(write_two_tops(tmp_path_factory.mktemp("tops") / "family"))


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def sm4ll(http: TestClient) -> Client:
    transport = httpx2.MockTransport(lambda request: _pass_on(http, request))
    return Client("http://testserver", LOCAL_TOKEN, transport)


def _pass_on(http: TestClient, request: httpx2.Request) -> httpx2.Response:
    """The Python client's requests, to the API in this process."""
    answer = http.request(
        request.method,
        request.url.raw_path.decode(),
        content=request.read(),
        headers=dict(request.headers),
    )
    return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def try_on(http: TestClient, token: str = LOCAL_TOKEN, **options: str) -> httpx2.Response:
    data = {"expert": "top", "format": "png", "seed": "3", **options}
    return http.post("/v1/tryon", data=data, files=FILES, headers=bearer(token))


def set_default(http: TestClient, version: str) -> None:
    answer = http.put("/v1/experts/top/default", json={"version": version})
    assert answer.status_code == 200, answer.text


def test_collection_made_again_has_the_same_bytes(http: TestClient, sm4ll: Client) -> None:
    set_default(http, "top@1")
    card = sm4ll.pins.set("summer/27")
    assert {expert: one.version for expert, one in card.versions.items()} == {
        "top": "top@1",
        "eye": "eye@1",
    }
    first = try_on(http, collection="summer/27")
    assert first.headers["sm4ll-arm"] == "pinned"
    assert "sm4ll-experiment" not in first.headers
    set_default(http, "top@2")
    others = try_on(http, collection="winter/27")
    assert (others.headers["sm4ll-version"], others.headers["sm4ll-arm"]) == ("top@2", "default")
    again = try_on(http, collection="summer/27")
    assert again.headers["sm4ll-version"] == "top@1"
    assert again.content == first.content != others.content
    sm4ll.pins.remove("summer/27")
    assert try_on(http, collection="summer/27").content == others.content


def test_job_of_a_pinned_collection_says_so_and_paints_the_same(
    http: TestClient, sm4ll: Client
) -> None:
    set_default(http, "top@2")
    sm4ll.pins.set("looks", {"top": "1"})
    data = {"expert": "top", "format": "png", "seed": "3", "collection": "looks"}
    made = http.post("/v1/jobs", data=data, files=FILES)
    assert made.status_code == 202, made.text
    assert "event: finished" in http.get(f"/v1/jobs/{made.json()['id']}/events").text
    result = http.get(f"/v1/jobs/{made.json()['id']}").json()
    assert (result["receipt"]["arm"], result["receipt"]["version"]) == ("pinned", "top@1")
    painted = try_on(http, collection="looks").content
    assert result["outputs"][0]["sha256"] == hashlib.sha256(painted).hexdigest()


def test_pin_to_what_has_changed_or_gone_refuses(
    api: FastAPI, http: TestClient, sm4ll: Client
) -> None:
    sm4ll.pins.set("old", {"top": "top@1"})
    for pinned in ({"version": "top@1", "bundle_sha256": "0" * 64}, {"version": "top@9"}):
        rewrite(api, "old", {"top": {"bundle_sha256": "", **pinned}})
        assert sm4ll.pins.get("old").versions["top"].version == pinned["version"]
        api.state.services.pins.forget("local", "old")
        answer = try_on(http, collection="old")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), answer.text
        assert "PUT /v1/pins" in answer.json()["remedy"]
    sm4ll.pins.set("old", {"top": "top@1"})
    assert try_on(http, collection="old").status_code == 200


def rewrite(api: FastAPI, collection: str, manifest: dict[str, Any]) -> None:
    async def write(database: Database) -> None:
        async with database.transaction() as session:
            pin = await session.get_one(Pin, ("local", collection))
            pin.manifest = manifest

    outside(api, write)


def outside(api: FastAPI, work: Any) -> None:
    async def with_database() -> None:
        database = Database(database_url(api.state.settings))
        try:
            await work(database)
        finally:
            await database.close()

    run(with_database())


def test_pins_are_listed_newest_first_page_by_page(http: TestClient, sm4ll: Client) -> None:
    for name in ("a", "b", "c"):
        sm4ll.pins.set(name, {"top": "1"})
    created_at = sm4ll.pins.get("a").created_at
    assert sm4ll.pins.set("a", {"top": "2"}).created_at == created_at
    page = http.get("/v1/pins?limit=2").json()
    assert [item["collection"] for item in page["items"]] == ["c", "b"]
    rest = http.get("/v1/pins", params={"limit": 2, "after": page["next"]}).json()
    assert rest["items"][0]["collection"] == "a"
    assert rest["items"][0]["versions"]["top"]["version"] == "top@2"
    assert [card.collection for card in sm4ll.pins.list()][:3] == ["c", "b", "a"]
    for name in ("a", "b", "c"):
        sm4ll.pins.remove(name)
    with pytest.raises(ApiError) as gone:
        sm4ll.pins.remove("a")
    assert gone.value.problem.status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"versions": {"top": "9"}}, 404),
        ({"versions": {"dress": "1"}}, 404),
        ({"versions": {"hat": "1"}}, 400),
        ({"versions": {}}, 400),
        ({"version": "top@1"}, 400),
    ],
)
def test_what_cannot_be_pinned_is_refused(http: TestClient, body: Any, status: int) -> None:
    answer = http.put("/v1/pins/never", json=body)
    assert answer.status_code == status, answer.text
    assert http.get("/v1/pins/never").status_code == 404


def test_pinning_needs_the_scope_and_reaches_only_ones_own(
    api: FastAPI, http: TestClient, sm4ll: Client
) -> None:
    sm4ll.pins.set("shared", {"top": "1"})
    no_scope = bearer(add_key_to(api, "hooli", ("tryon", "jobs")))
    assert http.put("/v1/pins/shared", headers=no_scope).status_code == 403
    token = add_key_to(api, "hooli", ("tryon", "versions"))
    assert http.get("/v1/pins/shared", headers=bearer(token)).status_code == 404
    assert try_on(http, token, collection="shared").headers["sm4ll-arm"] == "default"
    wanted = {"versions": {"top": "top@2"}}
    assert http.put("/v1/pins/shared", headers=bearer(token), json=wanted).status_code == 200
    assert try_on(http, token, collection="shared").headers["sm4ll-version"] == "top@2"
    assert sm4ll.pins.get("shared").versions["top"].version == "top@1"
    assert try_on(http, collection="shared").headers["sm4ll-version"] == "top@1"


def test_naming_a_version_without_the_scope_is_forbidden(api: FastAPI, http: TestClient) -> None:
    token = add_key_to(api, "initech", ("tryon", "jobs"))
    answer = try_on(http, token, version="top@2")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    data = {"expert": "top", "version": "2"}
    assert http.post("/v1/jobs", data=data, files=FILES, headers=bearer(token)).status_code == 403
    assert try_on(http, token).status_code == 200


def test_experiment_shows_in_headers_receipts_jobs_and_their_repeats(
    api: FastAPI, http: TestClient
) -> None:
    set_default(http, "top@2")
    outside(api, lambda database: run_experiment(database, design("tops")))
    assert http.portal is not None
    http.portal.call(api.state.services.routing.renew)
    answer = try_on(http, unit="anna", tags="season=ss27,channel=web")
    assert answer.headers["sm4ll-arm"] == "challenger"
    assert answer.headers["sm4ll-experiment"] == "tops"
    assert try_on(http).headers["sm4ll-arm"] == "default"
    made = http.post("/v1/jobs", data={"expert": "top", "unit": "anna"}, files=FILES)
    job_id = made.json()["id"]
    assert "event: finished" in http.get(f"/v1/jobs/{job_id}/events").text
    receipt = http.get(f"/v1/jobs/{job_id}").json()["receipt"]
    assert (receipt["arm"], receipt["experiment"]) == ("challenger", "tops")
    # The experiment ends and the job failed: what is tried again is what was chosen.
    outside(api, lambda database: end_and_fail(database, job_id))
    http.portal.call(api.state.services.routing.renew)
    assert try_on(http, unit="anna").headers["sm4ll-arm"] == "default"
    again = http.post(f"/v1/jobs/{job_id}/retry").json()["id"]
    assert "event: finished" in http.get(f"/v1/jobs/{again}/events").text
    receipt = http.get(f"/v1/jobs/{again}").json()["receipt"]
    assert (receipt["arm"], receipt["experiment"]) == ("challenger", "tops")
    assert receipt["version"] == "top@3"


async def end_and_fail(database: Database, job_id: str) -> None:
    async with database.transaction() as session:
        (await session.get_one(Experiment, "tops")).state = ExperimentState.ENDED
        job = await session.get_one(Job, ("local", job_id))
        job.state = JobState.FAILED
        job.result = None
        await bump_routing(session)


def test_all_cells_of_a_batch_have_one_version_and_their_own_sku(
    api: FastAPI, http: TestClient, sm4ll: Client
) -> None:
    set_default(http, "top@2")
    sm4ll.pins.set("book", {"top": "3"})
    asset = http.post("/v1/assets", files={"file": FILES["person"]}).json()["id"]
    body = {
        "expert": "top",
        "options": {"collection": "book", "tags": {"season": "ss27"}, "category": "shirts"},
        "products": [{"sku": name, "image": asset} for name in ("A1", "A2")],
        "persons": [{"name": "one", "image": asset}],
        "start": True,
    }
    made = http.post("/v1/batches", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["version"] == "top@3"
    requests: list[dict[str, Any]] = []

    async def read(database: Database) -> None:
        async with database.reading() as session:
            of_batch = select(Job).where(Job.batch_id == made.json()["id"]).order_by(Job.cell)
            requests.extend(job.request for job in await session.scalars(of_batch))

    outside(api, read)
    assert [one["options"]["sku"] for one in requests] == ["A1", "A2"]
    assert [one["choice"]["arm"] for one in requests] == ["pinned"] * 2
    assert requests[0]["options"]["tags"] == {"season": "ss27"}


def test_pins_and_arms_are_documented(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/pins/{collection}"]) == {"get", "put", "delete"}
    headers = paths["/v1/tryon"]["post"]["responses"]["200"]["headers"]
    assert {"Sm4ll-Arm", "Sm4ll-Experiment"} <= set(headers)
