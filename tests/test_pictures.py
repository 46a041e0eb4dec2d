"""Pictures by URL through the HTTP surface: the same answer as by file, or a typed refusal."""

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve.api.forms import PictureUrl, TryOnForm
from serve.api.pictures import fetch_pictures
from serve.config import FamilyConfig, FetchConfig, load_yaml
from serve.errors import ConfigError
from serve.observing.watch import Stopwatch
from serve.schemas.problems import Problem
from serve.schemas.tryon import TryOnAnswer, TryOnOptions
from tests.fakes import build_local_api
from tests.loopback_web import SHOP, Web, answer, open_web, redirect
from tests.pictures import box_mask, encoded, photo

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
URLS = {name: f"https://{SHOP}/{name}.png" for name in FILES}
NOOP = {"expert": "top", "version": "noop"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with open_web(tmp_path_factory.mktemp("web")) as web:
        for name, file in FILES.items():
            web.shop.answers[f"/{name}.png"] = answer(file)
        web.shop.answers["/inside"] = redirect("https://169.254.169.254/latest/meta-data/")
        web.shop.answers["/huge"] = answer(b"", f"Content-Length: {2**21}")
        web.shop.answers["/text"] = answer(b"hello")
        yield web


@pytest.fixture(scope="module")
def http(family: Path, web: Web) -> Iterator[TestClient]:
    api = build_local_api(family, fetch=web.fetcher())
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def as_form(**fields: str) -> dict[str, tuple[None, str]]:
    """Text parts of a multipart body."""
    return {name: (None, value) for name, value in fields.items()}


def test_by_url_in_form_or_json_is_the_same_as_by_file(http: TestClient) -> None:
    by_file = http.post("/v1/tryon", data=NOOP, files=FILES)
    by_form = http.post("/v1/tryon", files=as_form(**NOOP, **URLS))
    by_json = http.post("/v1/tryon", json={**NOOP, **URLS})
    assert by_file.status_code == 200, by_file.text
    assert by_form.content == by_file.content
    assert by_json.content == by_file.content
    assert by_json.headers["sm4ll-seed"] == by_file.headers["sm4ll-seed"]


def test_form_part_with_a_file_name_may_hold_a_url_too(http: TestClient) -> None:
    parts = {name: (f"{name}.txt", url.replace("https", "HTTPS")) for name, url in URLS.items()}
    assert http.post("/v1/tryon", data=NOOP, files=parts).status_code == 200


def test_urls_files_and_data_uris_mix(http: TestClient) -> None:
    data_uri = f"data:image/png;base64,{base64.b64encode(FILES['mask']).decode()}"
    mixed = http.post(
        "/v1/tryon",
        data={**NOOP, "product": URLS["product"], "mask": data_uri},
        files={"person": FILES["person"]},
    )
    assert mixed.content == http.post("/v1/tryon", data=NOOP, files=FILES).content


def test_fetch_is_timed_in_header_and_receipt_only_where_something_was_fetched(
    http: TestClient,
) -> None:
    headers = {"Accept": "application/json"}
    by_url = http.post("/v1/tryon", json={**NOOP, **URLS}, headers=headers)
    by_file = http.post("/v1/tryon", data=NOOP, files=FILES, headers=headers)
    assert "fetch;dur=" in by_url.headers["server-timing"]
    assert "fetch" in TryOnAnswer.model_validate_json(by_url.content).receipt.timings_ms
    assert "fetch" not in by_file.headers["server-timing"]


def test_the_three_pictures_are_fetched_at_once(family: Path, web: Web) -> None:
    together = threading.Barrier(3)

    def play_of(name: str) -> None:
        def play(connection: socket.socket) -> None:
            together.wait(10)
            connection.sendall(answer(FILES[name]))

        web.shop.answers[f"/together/{name}"] = play

    for name in FILES:
        play_of(name)
    urls = {name: f"https://{SHOP}/together/{name}" for name in FILES}
    with TestClient(build_local_api(family, fetch=web.fetcher())) as client:
        assert client.post("/v1/tryon", json={**NOOP, **urls}).status_code == 200


def test_first_refusal_hangs_up_on_the_others(http: TestClient, web: Web) -> None:
    asked, left = threading.Event(), threading.Event()

    def linger(connection: socket.socket) -> None:
        asked.set()
        while connection.recv(4096):
            pass
        left.set()

    def refuse(connection: socket.socket) -> None:
        asked.wait(10)
        connection.sendall(answer(b"", status="404 Not Found"))

    web.shop.answers.update({"/linger": linger, "/refuse": refuse})
    body = {**NOOP, "person": f"https://{SHOP}/linger", "product": f"https://{SHOP}/refuse"}
    problem = Problem.model_validate_json(http.post("/v1/tryon", json=body).content)
    assert problem.detail == "product: the server answers 404"
    assert left.wait(10)


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize(
    ("url", "status", "code", "reason"),
    [
        (f"https://{SHOP}/inside", 422, "fetch_refused", "does not lead to a public address"),
        ("https://127.0.0.1/a.png", 422, "fetch_refused", "does not lead to a public address"),
        (f"https://{SHOP}@127.0.0.1/", 422, "fetch_refused", "user name or password"),
        (f"http://{SHOP}/person.png", 422, "fetch_refused", "only https"),
        (f"https://{SHOP}:6379/", 422, "fetch_refused", "ports"),
        (f"https://{SHOP}/huge", 413, "image_too_large", "larger than 1 MiB"),
    ],
)
def test_refusal_names_field_reason_and_remedy(
    http: TestClient, name: str, url: str, status: int, code: str, reason: str
) -> None:
    for response in (
        http.post("/v1/tryon", json={**NOOP, **URLS, name: url}),
        http.post("/v1/tryon", files=as_form(**{**NOOP, **URLS, name: url})),
    ):
        assert response.status_code == status, response.text
        problem = Problem.model_validate_json(response.content)
        assert problem.code == code
        assert problem.detail.startswith(f"{name}: ")
        assert reason in problem.detail
        assert problem.remedy


def test_fetched_bytes_that_are_no_picture_are_judged_by_the_decoder(http: TestClient) -> None:
    response = http.post("/v1/tryon", json={**NOOP, **URLS, "person": f"https://{SHOP}/text"})
    assert response.status_code == 422
    assert Problem.model_validate_json(response.content).code == "invalid_image"


def test_fetching_counts_against_the_requests_own_deadline(family: Path, web: Web) -> None:
    def linger(connection: socket.socket) -> None:
        while connection.recv(4096):
            pass

    web.shop.answers["/linger"] = linger
    api = build_local_api(family, timeout_s=0.2, fetch=web.fetcher())
    with TestClient(api) as client:
        body = {**NOOP, **URLS, "person": f"https://{SHOP}/linger"}
        response = client.post("/v1/tryon", json=body)
    assert response.status_code == 504
    assert Problem.model_validate_json(response.content).code == "deadline_exceeded"
    assert int(response.headers["retry-after"]) >= 1


def test_what_fetching_took_is_gone_from_the_time_of_the_rest() -> None:
    clock_s = 100.0

    async def fetch(url: str) -> bytes:
        nonlocal clock_s
        clock_s += 7.0
        return url.encode()

    form = TryOnForm(TryOnOptions(expert="top"), b"person", PictureUrl("https://a"), None)
    body = asyncio.run(fetch_pictures(form, fetch, 60.0, Stopwatch(), now_s=lambda: clock_s))
    assert body.left_s == 53.0
    assert (body.person, body.product, body.mask) == (b"person", b"https://a", None)


def test_switched_off_is_a_refusal_that_says_what_to_send(family: Path, web: Web) -> None:
    api = build_local_api(family, fetch=web.fetcher(FetchConfig(enabled=False)))
    with TestClient(api) as client:
        response = client.post("/v1/tryon", json={**NOOP, **URLS})
    problem = Problem.model_validate_json(response.content)
    assert response.status_code == 422
    assert problem.code == "fetch_refused"
    assert "not fetched here" in problem.detail
    assert "data URI" in (problem.remedy or "")


def test_family_file_sets_the_rules_of_fetching(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    rules = "{allowed_hosts: [example.org], ports: [443], max_redirects: 0}"
    path.write_text(f"router: {{fetch: {rules}}}\nexperts: [{{version: eye@1}}]\n")
    fetch = load_yaml(path, FamilyConfig).router.fetch
    assert fetch.allowed_hosts == ("example.org",)
    assert not fetch.allow_private
    assert fetch.schemes == ("https",)


@pytest.mark.parametrize(
    "rule", ["schemes: [ftp]", "schemes: []", "ports: [0]", "allowed_hosts: ['https://a.b']"]
)
def test_rule_of_fetching_that_cannot_be_is_refused_at_start(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(f"router: {{fetch: {{{rule}}}}}\nexperts: [{{version: eye@1}}]\n")
    with pytest.raises(ConfigError, match=r"router\.fetch"):
        load_yaml(path, FamilyConfig)
