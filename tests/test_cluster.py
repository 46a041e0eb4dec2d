"""The whole family on one local Ray cluster, over real HTTP."""

import asyncio
import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from serve.client import ApiError, Client
from serve.demo.cases import DemoCase, demo_cases
from serve.errors import GenerationFailed, Overloaded, Sm4llError, SubjectNotFound
from serve.messages import EXPERTS
from serve.schemas.problems import Problem
from serve.schemas.tryon import TryOnOptions
from tests.pictures import animated_gif, box_mask, encoded, photo, png_header

pytestmark = pytest.mark.ray

PERSON = encoded(photo())
PRODUCT = encoded(photo(64, 64, seed=1))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
JPEG = encoded(photo(), "JPEG")
BAD_PICTURES = {
    "corrupt": (JPEG[:200] + bytes(400) + JPEG[600:], 422, "invalid_image"),
    "truncated": (JPEG[: len(JPEG) // 2], 422, "invalid_image"),
    "one pixel": (encoded(photo()[:1, :1]), 422, "invalid_image"),
    "30 000 x 30 000 header": (png_header(30_000, 30_000), 413, "image_too_large"),
    "animated GIF": (animated_gif(), 422, "invalid_image"),
    "SVG": (SVG, 422, "invalid_image"),
    "text renamed .jpg": (b"this is not a picture\n" * 20, 422, "invalid_image"),
    "empty part": (b"", 422, "invalid_image"),
}


def post(api: Client, files: dict[str, bytes], **options: str) -> httpx2.Response:
    named = {name: (f"{name}.jpg", data) for name, data in files.items()}
    return httpx2.post(
        f"{api.url}/v1/tryon", data=options, files=named, headers=api.headers, timeout=60
    )


def assert_healthy(api: Client) -> None:
    assert api.readiness().ready
    files = {"person": PERSON, "product": PRODUCT, "mask": encoded(box_mask())}
    assert post(api, files, expert="top", version="noop").status_code == 200


@pytest.mark.parametrize("part", ["person", "product", "mask"])
@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_is_a_typed_4xx_and_the_server_stays_healthy(
    api: Client, part: str, name: str
) -> None:
    data, status, code = BAD_PICTURES[name]
    files = {"person": PERSON, "product": PRODUCT, "mask": encoded(box_mask()), part: data}
    response = post(api, files, expert="top", version="noop")
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (status, code), problem
    assert problem.request_id == response.headers["x-request-id"]
    assert_healthy(api)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (box_mask(100, 100), "100"),
        (box_mask() * 0, "empty"),
        (box_mask() * 0 + 255, "full"),
        (photo(), "photograph"),
    ],
    ids=["wrong size", "empty", "full", "photograph"],
)
def test_unusable_mask_is_refused_by_name(api: Client, mask: object, words: str) -> None:
    files = {"person": PERSON, "product": PRODUCT, "mask": encoded(mask)}
    response = post(api, files, expert="top", version="noop")
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (422, "mask_rejected")
    assert words in problem.detail
    assert_healthy(api)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "169.254.169.254"])
def test_url_that_leads_inside_is_refused_by_the_router_itself(api: Client, host: str) -> None:
    body = {"expert": "top", "version": "noop", "person": f"https://{host}/a.png"}
    response = httpx2.post(
        f"{api.url}/v1/tryon",
        json={**body, "product": f"https://{host}/b.png"},
        headers=api.headers,
        timeout=60,
    )
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (422, "fetch_refused"), problem
    assert problem.detail.endswith("the URL does not lead to a public address")
    assert_healthy(api)


def test_unknown_expert_is_a_400_that_names_the_experts(api: Client) -> None:
    response = post(api, {"person": PERSON, "product": PRODUCT}, expert="hat")
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (400, "invalid_request")
    assert all(expert in problem.detail for expert in EXPERTS)


@pytest.mark.parametrize("expert", EXPERTS)
def test_picture_without_a_person_is_subject_not_found(api: Client, expert: str) -> None:
    response = post(api, {"person": PERSON, "product": PRODUCT}, expert=expert)
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code) == (422, "subject_not_found"), problem
    assert problem.remedy


def try_case(api: Client, case: DemoCase) -> tuple[bytes, int]:
    options = TryOnOptions(expert=case.expert, format="png")
    answer = api.tryon(options, case.person_path.read_bytes(), case.product_path.read_bytes())
    return answer.pictures[0].data, answer.receipt.outside.max_abs_diff


@pytest.mark.parametrize("case", demo_cases(), ids=lambda case: case.expert)
def test_every_expert_serves_its_demo_case_exactly_and_repeatably(
    api: Client, case: DemoCase
) -> None:
    first, outside = try_case(api, case)
    second, _ = try_case(api, case)
    assert outside == 0
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert first != case.person_path.read_bytes()


def test_segmentation_is_cached_by_content(api: Client) -> None:
    case = next(case for case in demo_cases() if case.expert == "eye")
    pictures = (case.person_path.read_bytes(), case.product_path.read_bytes())
    api.tryon(TryOnOptions(expert="eye"), *pictures)
    assert api.tryon(TryOnOptions(expert="eye"), *pictures).receipt.segmentation_cached


def test_twenty_callers_at_once_all_get_their_own_answer(api: Client) -> None:
    mask = encoded(box_mask())
    people = [photo(seed=seed) for seed in range(20)]

    def call(seed: int) -> bool:
        options = TryOnOptions(expert="top", version="noop", seed=seed, format="png")
        answer = api.tryon(options, encoded(people[seed]), PRODUCT, mask)
        return answer.receipt.seed == seed and answer.receipt.outside.max_abs_diff == 0

    with ThreadPoolExecutor(20) as threads:
        assert all(threads.map(call, range(20)))


def test_control_headers_change_nothing(api: Client) -> None:
    files = {"person": PERSON, "product": PRODUCT, "mask": encoded(box_mask())}
    response = httpx2.post(
        f"{api.url}/v1/tryon",
        data={"expert": "top", "version": "noop"},
        files=files,
        headers={**api.headers, "serve_multiplexed_model_id": "x", "x-session-id": "y"},
        timeout=60,
    )
    assert response.status_code == 200
    assert len(response.headers.get_list("x-request-id")) == 1


def test_readyz_models_docs_answer(api: Client) -> None:
    assert api.readiness().ready
    models = api.models().models
    assert {model.expert for model in models} == set(EXPERTS)
    assert {model.state for model in models} == {"ready"}
    assert httpx2.get(f"{api.url}/healthz").text == "ok"
    assert "swagger" in httpx2.get(f"{api.url}/docs").text.lower()


def test_client_raises_the_problem(api: Client) -> None:
    with pytest.raises(ApiError) as caught:
        api.tryon(TryOnOptions(expert="eye"), b"junk", PRODUCT)
    assert caught.value.problem.code == "invalid_image"


def test_handle_errors_arrive_as_ours(api: Client) -> None:
    from ray.exceptions import RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    from serve.transports import map_handle_errors

    def raised(error: BaseException) -> BaseException:
        with pytest.raises(Sm4llError) as caught, map_handle_errors("eye@1"):
            raise error
        return caught.value

    ours = RayTaskError(
        "f", "trace", SubjectNotFound("no face", remedy="turn")
    ).as_instanceof_cause()
    assert isinstance(raised(ours), SubjectNotFound)
    theirs = RayTaskError("f", "trace", ValueError("boom")).as_instanceof_cause()
    assert isinstance(raised(theirs), GenerationFailed)
    full = raised(BackPressureError(3, 3))
    assert isinstance(full, Overloaded)
    assert full.retry_after_s
    assert isinstance(raised(DeploymentUnavailableError("x")), Overloaded)


def expert_cpu_s(version: str) -> float:
    """Processor seconds that the replica of one version has used so far."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"Expert-{version}".encode() in cmdline.read_bytes():
                fields = (cmdline.parent / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise AssertionError(f"no replica of {version} runs")


def test_work_stops_when_the_caller_leaves(api: Client) -> None:
    case = next(case for case in demo_cases() if case.expert == "dress")
    files = {"person": case.person_path.read_bytes(), "product": case.product_path.read_bytes()}
    four = TryOnOptions(expert="dress", num_images=4)
    api.tryon(four, *files.values())
    before_s = expert_cpu_s("dress@1")
    api.tryon(four, *files.values())
    four_s = expert_cpu_s("dress@1") - before_s

    async def leave() -> None:
        async with httpx2.AsyncClient() as client:
            data = {"expert": "dress", "num_images": "4"}
            headers = {**api.headers, "Accept": "application/json"}
            call = client.post(f"{api.url}/v1/tryon", data=data, files=files, headers=headers)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, 0.3)

    before_s = expert_cpu_s("dress@1")
    asyncio.run(leave())
    # One thread per expert: this answer comes when nothing of the abandoned request is left.
    api.tryon(TryOnOptions(expert="dress"), *files.values())
    left_and_one_s = expert_cpu_s("dress@1") - before_s
    assert left_and_one_s < 0.8 * four_s
