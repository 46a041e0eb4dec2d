"""The HTTP surface in one process: what it reads, how it answers, what it refuses."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.schemas.problems import Problem
from serve.schemas.receipt import Receipt
from serve.schemas.tryon import TryOnAnswer
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo

PERSON = encoded(photo())
PRODUCT = encoded(photo(64, 64, seed=1))
MASK = encoded(box_mask())
FILES = {"person": PERSON, "product": PRODUCT, "mask": MASK}
NOOP = {"expert": "top", "version": "noop"}


@pytest.fixture(scope="module")
def http(family: Path) -> Iterator[TestClient]:
    with TestClient(build_local_api(family), raise_server_exceptions=False) as client:
        yield client


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_multipart_answers_the_picture_in_the_persons_format(http: TestClient) -> None:
    response = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["sm4ll-version"] == "top@noop"
    assert response.headers["sm4ll-outside-max-diff"] == "0"
    assert "decode;dur=" in response.headers["server-timing"]
    outside = box_mask() == 0
    assert (pixels(response.content)[outside] == photo()[outside]).all()


def test_json_with_data_uris_equals_multipart(http: TestClient) -> None:
    body = {**NOOP, **{name: data_uri(data) for name, data in FILES.items()}}
    by_json = http.post("/v1/tryon", json=body)
    by_form = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert by_json.status_code == 200, by_json.text
    assert by_json.content == by_form.content


def test_accept_json_answers_picture_and_receipt(http: TestClient) -> None:
    headers = {"Accept": "application/json"}
    response = http.post("/v1/tryon", data=NOOP, files=FILES, headers=headers)
    answer = TryOnAnswer.model_validate_json(response.content)
    picture = base64.b64decode(answer.outputs[0].data.partition(",")[2])
    assert pixels(picture).shape == (480, 320, 3)
    receipt = answer.receipt
    assert receipt.masker == "caller"
    assert receipt.region_box == (80, 160, 240, 240)
    assert receipt.crop_box is not None
    assert receipt.request_id == response.headers["x-request-id"]
    assert {"decode", "plan", "expert", "paste", "encode", "prove"} <= set(receipt.timings_ms)


def test_receipts_affine_maps_the_crop_onto_its_box(http: TestClient) -> None:
    headers = {"Accept": "application/json"}
    response = http.post("/v1/tryon", data=NOOP, files=FILES, headers=headers)
    receipt = TryOnAnswer.model_validate_json(response.content).receipt
    assert receipt.affine is not None
    assert receipt.crop_size is not None
    assert receipt.crop_box is not None
    right = receipt.crop_size[0] * receipt.affine.scale_x + receipt.affine.left
    assert right == pytest.approx(receipt.crop_box[2])


@pytest.mark.parametrize(
    ("image_format", "media_type"),
    [("png", "image/png"), ("webp", "image/webp"), ("jpeg", "image/jpeg"), ("tiff", "image/tiff")],
)
def test_format_decides_the_media_type(
    http: TestClient, image_format: str, media_type: str
) -> None:
    data = {**NOOP, "format": image_format}
    response = http.post("/v1/tryon", data=data, files=FILES)
    assert response.headers["content-type"] == media_type
    if image_format != "jpeg":
        assert response.headers["sm4ll-outside-max-diff"] == "0"


def test_layers_zip_holds_final_product_region_and_receipt(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={**NOOP, "output": "layers"}, files=FILES)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ["final.png", "product.png", "region.png", "receipt.json"]
        region = pixels(archive.read("region.png"))
        assert (region == box_mask()).all()
        assert pixels(archive.read("product.png")).shape == (480, 320, 4)
        receipt = Receipt.model_validate_json(archive.read("receipt.json"))
    assert receipt.outside.max_abs_diff == 0
    assert receipt.outside.lossless


def test_several_images_come_as_json(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={**NOOP, "num_images": "3"}, files=FILES)
    assert len(TryOnAnswer.model_validate_json(response.content).outputs) == 3


def test_several_images_in_one_image_answer_are_refused(http: TestClient) -> None:
    headers = {"Accept": "image/png"}
    data = {**NOOP, "num_images": "3"}
    response = http.post("/v1/tryon", data=data, files=FILES, headers=headers)
    assert response.status_code == 400
    assert "Accept: application/json" in response.json()["remedy"]


def test_same_request_gives_the_same_seed_and_bytes(http: TestClient) -> None:
    first = http.post("/v1/tryon", data=NOOP, files=FILES)
    second = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert first.content == second.content
    assert first.headers["sm4ll-seed"] == second.headers["sm4ll-seed"]


def test_seed_is_echoed(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={**NOOP, "seed": "7"}, files=FILES)
    assert response.headers["sm4ll-seed"] == "7"


@pytest.mark.parametrize("convention", ["black_edits", "alpha_edits"])
def test_mask_polarity_is_what_the_caller_says(http: TestClient, convention: str) -> None:
    mask = box_mask()
    if convention == "black_edits":
        sent = 255 - mask
    else:
        sent = np.dstack([np.zeros((*mask.shape, 3), np.uint8), 255 - mask])
    data = {**NOOP, "mask_convention": convention, "output": "layers"}
    response = http.post("/v1/tryon", data=data, files={**FILES, "mask": encoded(sent)})
    assert response.status_code == 200, response.text
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert (pixels(archive.read("region.png")) == mask).all()


def assert_problem(response: object, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.code == code
    assert problem.status == status
    assert problem.type == f"urn:sm4ll:problem:{code}"
    assert problem.request_id == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"expert": "hat"}, "expert"),
        ({"seed": "-1"}, "seed"),
        ({"num_images": "5"}, "num_images"),
        ({"quality": "best"}, "quality"),
        ({"format": "bmp"}, "format"),
        ({"blend": "soft"}, "blend"),
        ({"mask_convention": "red_edits"}, "mask_convention"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_field_is_named(http: TestClient, options: dict[str, str], field: str) -> None:
    response = http.post("/v1/tryon", data={**NOOP, **options}, files=FILES)
    problem = assert_problem(response, 400, "invalid_request")
    assert [error.field for error in problem.errors or []] == [field]


def test_missing_picture_is_named(http: TestClient) -> None:
    response = http.post("/v1/tryon", data=NOOP, files={"person": PERSON})
    assert "product: missing" in assert_problem(response, 400, "invalid_request").detail


def test_unknown_version_lists_the_known_ones(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={"expert": "top", "version": "9"}, files=FILES)
    assert "top@1, top@noop" in (assert_problem(response, 404, "not_found").remedy or "")


def test_version_of_another_expert_is_not_found(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={"expert": "eye", "version": "top@1"}, files=FILES)
    assert_problem(response, 404, "not_found")


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        ("https://unknown.example.com/a.jpg", 422, "fetch_refused"),
        ("http://169.254.169.254/", 422, "fetch_refused"),
        ("https://169.254.169.254/", 422, "fetch_refused"),
        ("https:", 422, "fetch_refused"),
        ("ast_123", 404, "not_found"),
        ("file:///etc/passwd", 400, "invalid_request"),
        ("data:image/png,rawtext", 400, "invalid_request"),
        ("data:image/png;base64,@@@@", 400, "invalid_request"),
        ("data:image/png;base64,", 422, "invalid_image"),
    ],
)
def test_picture_reference_that_is_not_served_is_refused(
    http: TestClient, reference: str, status: int, code: str
) -> None:
    body = {**NOOP, "person": reference, "product": data_uri(PRODUCT)}
    assert_problem(http.post("/v1/tryon", json=body), status, code)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"hello", "text/plain"),
        (b"hello", "multipart/form-data"),
        (b"hello", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="expert"\r\n\r\ntop',
            "multipart/form-data; boundary=x",
        ),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\ntop\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
        (b"", "multipart/form-data; boundary=x"),
    ],
)
def test_damaged_body_is_refused(http: TestClient, body: bytes, content_type: str) -> None:
    response = http.post("/v1/tryon", content=body, headers={"Content-Type": content_type})
    assert_problem(response, 400, "invalid_request")


def test_doubled_field_is_refused(http: TestClient) -> None:
    files = [("person", PERSON), ("person", PERSON), ("product", PRODUCT)]
    response = http.post("/v1/tryon", data=NOOP, files=files)
    assert "given twice" in assert_problem(response, 400, "invalid_request").detail


def test_body_above_the_limit_is_refused_by_its_length(http: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(2**40)}
    response = http.post("/v1/tryon", content=b"{}", headers=headers)
    assert_problem(response, 413, "image_too_large")


def test_body_above_the_limit_is_refused_as_it_arrives(http: TestClient) -> None:
    chunks = (b" " * 2**20 for _ in range(90))
    response = http.post("/v1/tryon", content=chunks, headers={"Content-Type": "application/json"})
    assert_problem(response, 413, "image_too_large")


def test_client_request_id_is_kept_and_a_hostile_one_refused(http: TestClient) -> None:
    kept = http.get("/healthz", headers={"X-Request-Id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    hostile = http.get("/healthz", headers={"X-Request-Id": "a b<script>"})
    assert hostile.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/v1/tryon", 405, "method_not_allowed")],
)
def test_wrong_address_is_a_problem_too(
    http: TestClient, method: str, path: str, status: int, code: str
) -> None:
    assert_problem(http.request(method, path), status, code)


def test_deadline_is_a_504_with_retry_after(family: Path) -> None:
    with TestClient(build_local_api(family, timeout_s=0.001)) as client:
        response = client.post("/v1/tryon", data=NOOP, files=FILES)
    assert_problem(response, 504, "deadline_exceeded")
    assert int(response.headers["retry-after"]) >= 1


def test_openapi_describes_both_bodies_and_every_field(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    body = document["paths"]["/v1/tryon"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    assert {"person", "product", "mask", "expert", "seed", "output"} <= set(form)
    assert set(form) == set(body["application/json"]["schema"]["properties"])
    assert "$defs" not in json.dumps(body)
    assert http.get("/docs").status_code == 200


def test_models_lists_every_version_with_its_terms(http: TestClient) -> None:
    models = {model["version"]: model for model in http.get("/v1/models").json()["models"]}
    assert models["eye@1"]["preview"] is True
    assert models["eye@1"]["default"] is True
    assert models["top@noop"]["default"] is False
    assert models["eye@1"]["licence"]


def test_readyz_is_503_and_names_what_is_missing(family: Path) -> None:
    with TestClient(build_local_api(family, waiting_for=("eye@1",))) as client:
        response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "waiting_for": ["eye@1"]}
