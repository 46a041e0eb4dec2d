"""Assets over HTTP: uploaded once, used by id, seen by nobody else, and provably gone."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from serve.policy import TenantPolicy
from serve.schemas.assets import AssetCard, AssetDeletion, AssetPage, ErasureRecord
from serve.schemas.problems import Problem
from serve.tenancy.memory import remembered_as
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import add_key_to, bearer

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop"}
UNKNOWN = "ast_" + "0" * 26


@pytest.fixture(scope="module")
def api(family: Path) -> FastAPI:
    return build_local_api(family)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def other(api: FastAPI, http: TestClient) -> dict[str, str]:
    return bearer(add_key_to(api, "other"))


def upload(http: TestClient, data: bytes, **headers: str) -> AssetCard:
    answer = http.post("/v1/assets", content=data, headers={"Content-Type": "image/png", **headers})
    assert answer.status_code in (200, 201), answer.text
    return AssetCard.model_validate(answer.json())


def problem_of(answer: object) -> Problem:
    return Problem.model_validate(answer.json())  # type: ignore[attr-defined]


def test_upload_answers_what_is_kept_and_the_same_again_the_same_id(http: TestClient) -> None:
    data = encoded(photo(80, 48, seed=2))
    first = http.post("/v1/assets", files={"file": data}, data={"subject": "anna"})
    assert first.status_code == 201, first.text
    card = AssetCard.model_validate(first.json())
    assert first.headers["location"] == f"/v1/assets/{card.id}"
    assert (card.width, card.height, card.media_type) == (80, 48, "image/png")
    assert (card.sha256, card.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (card.subject, card.kind) == ("anna", "input")
    raw = http.post("/v1/assets?subject=anna", content=data, headers={"Content-Type": "image/png"})
    assert (raw.status_code, raw.json()["id"]) == (200, card.id)
    assert http.get(f"/v1/assets/{card.id}").json()["id"] == card.id


def test_content_comes_back_byte_for_byte_with_its_hash_as_etag(http: TestClient) -> None:
    card = upload(http, FILES["person"])
    path = f"/v1/assets/{card.id}/content"
    whole = http.get(path)
    assert (whole.content, whole.headers["content-type"]) == (FILES["person"], "image/png")
    assert whole.headers["etag"] == f'"{card.sha256}"'
    assert whole.headers["cache-control"].startswith("private")
    for known in (f'"{card.sha256}"', f'"x", W/"{card.sha256}"', "*"):
        again = http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert http.get(path, headers={"If-None-Match": '"x"'}).status_code == 200


def test_rotated_picture_has_the_size_it_is_seen_with(http: TestClient) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(turned, "JPEG", exif=exif)
    card = upload(http, turned.getvalue(), **{"Content-Type": "image/jpeg"})
    assert (card.width, card.height, card.media_type) == (20, 40, "image/jpeg")


def test_heic_is_measured_without_decoding(http: TestClient) -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 32))).save(file)
    card = upload(http, file.getvalue())
    assert (card.width, card.height, card.media_type) == (64, 32, "image/heic")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "invalid_image"),
        (b"hello", 422, "invalid_image"),
        (b"GIF89a", 422, "invalid_image"),
        (b"\x89PNG\r\n\x1a\n", 422, "invalid_image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heic", 422, "invalid_image"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(
    http: TestClient, data: bytes, status: int, code: str
) -> None:
    answer = http.post("/v1/assets", content=data, headers={"Content-Type": "image/png"})
    assert (answer.status_code, problem_of(answer).code) == (status, code)


def test_picture_with_too_many_pixels_is_refused_by_its_header(http: TestClient) -> None:
    data = bytearray(encoded(photo(16, 16)))
    data[16:24] = (16_000).to_bytes(4, "big") * 2
    answer = http.post("/v1/assets", content=bytes(data), headers={"Content-Type": "image/png"})
    assert (answer.status_code, problem_of(answer).code) == (413, "image_too_large")


@pytest.mark.parametrize(
    "parts", [{}, {"subject": (None, "anna")}, {"file": FILES["mask"], "colour": (None, "red")}]
)
def test_form_that_does_not_fit_is_a_400(http: TestClient, parts: dict[str, object]) -> None:
    answer = http.post("/v1/assets", files=parts or {"x": b""})  # type: ignore[arg-type]
    assert answer.status_code == 400, answer.text


def test_subject_with_control_characters_or_too_long_is_a_400(http: TestClient) -> None:
    for subject in ("a\x00b", "a\n", "s" * 129):
        answer = http.post("/v1/assets", files={"file": FILES["mask"]}, data={"subject": subject})
        assert (answer.status_code, problem_of(answer).code) == (400, "invalid_request")
        listed = http.get("/v1/assets", params={"subject": subject})
        assert listed.status_code == 400


def test_body_that_says_it_is_no_picture_is_a_400(http: TestClient) -> None:
    answer = http.post("/v1/assets", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400


def test_another_tenant_gets_the_words_of_an_unknown_id(
    http: TestClient, other: dict[str, str]
) -> None:
    card = upload(http, FILES["product"])
    for method, path in (
        ("GET", "/v1/assets/{}"),
        ("GET", "/v1/assets/{}/content"),
        ("DELETE", "/v1/assets/{}"),
    ):
        foreign = http.request(method, path.format(card.id), headers=other)
        unknown = http.request(method, path.format(UNKNOWN), headers=other)
        assert (foreign.status_code, unknown.status_code) == (404, 404)
        said = problem_of(foreign).detail.replace(card.id, UNKNOWN)
        assert said == problem_of(unknown).detail
    assert http.get("/v1/assets", headers=other).json() == {"items": [], "next": None}
    theirs = upload(http, FILES["product"], **other)
    assert theirs.id != card.id
    assert http.get(f"/v1/assets/{card.id}/content").status_code == 200


def test_pages_reach_every_asset_once(http: TestClient, api: FastAPI) -> None:
    paging = bearer(add_key_to(api, "paging"))
    ids = [upload(http, encoded(photo(16, 16, seed=n)), **paging).id for n in range(5)]
    seen, after = [], None
    while True:
        query = {"limit": 2} | ({"after": after} if after else {})
        page = AssetPage.model_validate(http.get("/v1/assets", params=query, headers=paging).json())
        seen += [item.id for item in page.items]
        after = page.next
        if after is None:
            break
    assert seen == sorted(ids, reverse=True)
    for wrong in ({"limit": 0}, {"limit": 201}, {"after": "ast_x"}, {"kind": "x"}):
        assert http.get("/v1/assets", params=wrong, headers=paging).status_code == 400


def test_deletion_answers_the_proof_and_the_asset_is_gone(http: TestClient) -> None:
    card = upload(http, encoded(photo(32, 32, seed=9)))
    answer = http.delete(f"/v1/assets/{card.id}")
    proof = AssetDeletion.model_validate(answer.json())
    assert (proof.id, proof.sha256, proof.is_blob_deleted) == (card.id, card.sha256, True)
    for path in ("", "/content"):
        assert http.get(f"/v1/assets/{card.id}{path}").status_code == 404
    assert http.delete(f"/v1/assets/{card.id}").status_code == 404


def test_answer_made_from_a_deleted_asset_is_not_given_again(http: TestClient) -> None:
    card = upload(http, encoded(photo(96, 96, seed=12)))
    product = upload(http, FILES["product"])
    mask = upload(http, encoded(box_mask(96, 96)))
    body = {**NOOP, "person": card.id, "product": product.id, "mask": mask.id}
    headers = {"Idempotency-Key": "from a deleted asset"}
    first = http.post("/v1/tryon", json=body, headers=headers)
    assert first.status_code == 200, first.text
    assert http.post("/v1/tryon", json=body, headers=headers).content == first.content
    assert http.delete(f"/v1/assets/{card.id}").status_code == 200
    again = http.post("/v1/tryon", json=body, headers=headers)
    assert (again.status_code, "erased" in problem_of(again).detail) == (409, True)


def test_tryon_by_asset_ids_is_the_tryon_by_files(http: TestClient) -> None:
    ids = {name: upload(http, data).id for name, data in FILES.items()}
    by_file = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert by_file.status_code == 200, by_file.text
    parts = {name: (None, value) for name, value in {**NOOP, **ids}.items()}
    by_form = http.post("/v1/tryon", files=parts)
    by_json = http.post("/v1/tryon", json={**NOOP, **ids})
    assert by_form.content == by_json.content == by_file.content


def test_tryon_with_an_asset_of_nobody_or_of_another_tenant_names_the_field(
    http: TestClient, other: dict[str, str]
) -> None:
    foreign = upload(http, FILES["person"], **other).id
    product = upload(http, FILES["product"]).id
    details = set()
    for person in (foreign, UNKNOWN):
        answer = http.post("/v1/tryon", json={**NOOP, "person": person, "product": product})
        assert (answer.status_code, problem_of(answer).code) == (404, "not_found")
        details.add(problem_of(answer).detail.replace(person, "it"))
    assert details == {"person: There is no asset it."}


def test_tenant_that_keeps_nothing_is_refused_before_its_bytes_are_looked_at(
    http: TestClient, api: FastAPI
) -> None:
    policy = TenantPolicy(input_retention_s=0)
    key = bearer(add_key_to(api, "forgetful", policy=policy))
    answer = http.post("/v1/assets", content=b"?", headers={"Content-Type": "image/png", **key})
    problem = problem_of(answer)
    assert (answer.status_code, problem.code) == (422, "not_supported")
    assert problem.remedy


@pytest.mark.parametrize(("scope", "status"), [("tryon", 200), ("jobs", 200), ("review", 403)])
def test_assets_need_one_of_two_scopes(
    http: TestClient, api: FastAPI, scope: str, status: int
) -> None:
    key = bearer(add_key_to(api, "scoped", [scope]))  # type: ignore[list-item]
    assert http.get("/v1/assets", headers=key).status_code == status


def test_erased_subject_is_gone_from_the_segmenters_too(http: TestClient, api: FastAPI) -> None:
    def remembered(card: AssetCard) -> int:
        name = remembered_as("local", card.sha256)
        return sum(one.forget({name}) for one in api.state.segmenters.values())

    dora = upload_for(http, "dora", encoded(photo(seed=77)))
    ella = upload_for(http, "ella", encoded(photo(seed=78)))
    product = upload(http, FILES["product"])
    for card in (dora, ella):
        body = {"expert": "bg", "person": card.id, "product": product.id}
        http.post("/v1/tryon", json=body)
    erased = http.post("/v1/erasures", json={"subject": "dora"})
    record = ErasureRecord.model_validate(erased.json())
    assert [asset.id for asset in record.assets] == [dora.id]
    assert record.is_complete
    assert record.subject_sha256 == hashlib.sha256(b"dora").hexdigest()
    assert "dora" not in erased.text
    assert (remembered(dora), remembered(ella)) == (0, 1)
    again = http.post("/v1/tryon", json={**NOOP, "person": dora.id, "product": product.id})
    assert (again.status_code, problem_of(again).code) == (404, "not_found")
    empty = http.post("/v1/erasures", json={"subject": "dora"}).json()
    assert (empty["assets"], empty["is_complete"]) == ([], True)


def upload_for(http: TestClient, subject: str, data: bytes) -> AssetCard:
    answer = http.post("/v1/assets", files={"file": data}, data={"subject": subject})
    return AssetCard.model_validate(answer.json())


def test_erasing_needs_the_scope_jobs_and_reaches_no_other_tenant(
    http: TestClient, api: FastAPI, other: dict[str, str]
) -> None:
    card = upload_for(http, "carla", FILES["person"])
    key = bearer(add_key_to(api, "narrow", ["tryon"]))
    assert http.post("/v1/erasures", json={"subject": "x"}, headers=key).status_code == 403
    theirs = http.post("/v1/erasures", json={"subject": "carla"}, headers=other)
    assert theirs.json()["assets"] == []
    assert http.get(f"/v1/assets/{card.id}").status_code == 200
    for wrong in ({}, {"subject": ""}, {"subject": "a\x00"}, {"subject": "s" * 129}):
        assert http.post("/v1/erasures", json=wrong).status_code == 400


def test_tryon_with_a_key_is_answered_again_and_charged_once(http: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = http.post("/v1/tryon", data=NOOP, files=FILES, headers=headers)
    again = http.post("/v1/tryon", data=NOOP, files=FILES, headers=headers)
    assert (first.status_code, first.content) == (200, again.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["sm4ll-id"] == first.headers["sm4ll-id"]
    assert again.headers["content-type"] == first.headers["content-type"]
    other = http.post("/v1/tryon", data={**NOOP, "seed": "1"}, files=FILES, headers=headers)
    assert other.status_code == 409
