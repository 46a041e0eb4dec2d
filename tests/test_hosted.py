"""Hosted arms over real HTTP: their contract, their errors in our words, what they cost."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from deployments.backends.hosted.backend import HostedBackend
from deployments.backends.hosted.openai import choose_frame
from deployments.bundle import Bundle, Licence
from deployments.recipes import FashnProvider, HostedConfig, OpenAiProvider
from serve.errors import (
    BundleInvalid,
    Cancelled,
    ContentRefused,
    DeadlineExceeded,
    InvalidImage,
    Overloaded,
    Sm4llError,
    SubjectNotFound,
    UpstreamFailed,
)
from serve.messages import Expert, ExpertReply, ExpertRequest, Landmarks
from serve.schemas.tryon import TryOnAnswer
from serve.settings import Settings
from tests.fakes import build_local_api
from tests.hosted_apis import KEY, HostedApis, picture, serve_apis
from tests.pictures import box_mask, encoded, photo

REGION = np.zeros((96, 64), np.uint8)
REGION[20:60, 10:40] = 255
REQUEST = ExpertRequest(
    request_id="r",
    version="top@fashn",
    crop_hwc=picture(96, 64),
    region_hw=REGION,
    silhouette_hw=None,
    landmarks=Landmarks(),
    product_hwc=np.full((40, 30, 4), 255, np.uint8),
    product_landmarks=Landmarks(),
    seed=7,
)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, HostedApis]]:
    with serve_apis() as serving:
        yield serving


@pytest.fixture
def apis(server: tuple[str, HostedApis]) -> HostedApis:
    apis = server[1]
    apis.runs.clear()
    apis.edits.clear()
    apis.failures.queued.clear()
    apis.outcome, apis.polls_until_done = {"status": "completed"}, 2
    return apis


def ignore_step(step: int, num_steps: int) -> None: ...


def build(
    url: str, api: str = "fashn", expert: Expert = "top", key: str = KEY, **config: Any
) -> HostedBackend:
    provider = (
        FashnProvider(base_url=url, model=config.pop("model", "tryon-v1.6"))
        if api == "fashn"
        else OpenAiProvider(base_url=url)
    )
    fields = {"poll_s": 0.01, "timeout_s": 10.0, "prompt": "wear it", **config}
    bundle = Bundle(
        expert=expert,
        name="hosted",
        title="t",
        status="benchmark",
        licence=Licence(name="terms of service", commercial_use=True),
        backend=HostedConfig(provider=provider, **fields),
    )
    settings = Settings(fashn_api_key=SecretStr(key), openai_api_key=SecretStr(key))
    backend = HostedBackend(bundle, settings)
    backend.load()
    return backend


def paint(backend: HostedBackend, **changes: Any) -> ExpertReply:
    (reply,) = backend.generate([replace(REQUEST, **changes)], ignore_step)
    return reply


def test_fashn_runs_polls_and_brings_the_picture_home(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    reply = paint(build(server[0]), num_images=2)
    (run,) = apis.runs
    assert run["model_name"] == "tryon-v1.6"
    assert run["inputs"]["category"] == "tops"
    assert (run["inputs"]["seed"], run["inputs"]["num_samples"]) == (7, 2)
    assert run["inputs"]["return_base64"], "nothing stays at a public address"
    assert apis.num_polls == 2
    assert reply.images_nhwc.shape == (2, 96, 64, 3)
    assert np.array_equal(reply.images_nhwc[1], 255 - REQUEST.crop_hwc)


def test_cost_is_what_the_api_says_it_charged(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    cost = paint(build(server[0])).cost
    assert cost is not None
    assert (cost.provider, cost.credits, cost.usd) == ("fashn", 1.0, pytest.approx(0.075))


def test_tryon_max_makes_one_run_per_picture_with_its_own_seed(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    apis.polls_until_done = 1
    paint(build(server[0], expert="shoes", model="tryon-max"), num_images=2)
    assert sorted(run["inputs"]["seed"] for run in apis.runs) == [7, 8]
    assert all("product_image" in run["inputs"] for run in apis.runs)


def test_openai_gets_framed_pictures_and_a_mask_that_is_clear_inside_the_region(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    reply = paint(build(server[0], "openai"))
    (edit,) = apis.edits
    assert edit["person"].size == edit["mask"].size == (1024, 1536)
    assert (edit["form"]["size"], edit["form"]["input_fidelity"]) == ("1024x1536", "high")
    assert edit["count"] == 2
    alpha = np.asarray(edit["mask"].getchannel("A"))
    frame = choose_frame(64, 96)
    region_part = (alpha[: frame.height_px] == 0).mean()
    assert region_part == pytest.approx(40 * 30 / (96 * 64), rel=0.05)
    difference = reply.images_nhwc[0].astype(int) - (255 - REQUEST.crop_hwc.astype(int))
    assert np.abs(difference).max() <= 3, "a round trip through the frame moves nothing"


@pytest.mark.parametrize("size", [(768, 768), (768, 432), (256, 768), (767, 1000)])
def test_frame_holds_the_whole_crop_at_its_own_aspect(size: tuple[int, int]) -> None:
    frame = choose_frame(*size)
    crop = picture(size[1], size[0])
    back = frame.cut(frame.put(crop))
    assert back.shape == (frame.inner_h_px, frame.inner_w_px, 3)
    assert frame.inner_w_px / frame.inner_h_px == pytest.approx(size[0] / size[1], rel=0.005)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ImageLoadError", InvalidImage),
        ("InputValidationError", InvalidImage),
        ("ContentModerationError", ContentRefused),
        ("PoseError", SubjectNotFound),
        ("LoRALoadError", UpstreamFailed),
        ("PipelineError", UpstreamFailed),
        ("ThirdPartyError", UpstreamFailed),
        ("3rdPartyProviderError", UpstreamFailed),
        ("InternalServerError", UpstreamFailed),
        ("a name they add tomorrow", UpstreamFailed),
    ],
)
def test_failed_prediction_is_translated(
    server: tuple[str, HostedApis], apis: HostedApis, name: str, kind: type[Sm4llError]
) -> None:
    apis.outcome = {"status": "failed", "error": {"name": name, "message": "because"}}
    with pytest.raises(kind, match="because") as caught:
        paint(build(server[0]))
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", ["canceled", "time_out"])
def test_prediction_that_ended_otherwise_is_upstreams(
    server: tuple[str, HostedApis], apis: HostedApis, status: str
) -> None:
    apis.outcome = {"status": status}
    with pytest.raises(UpstreamFailed, match=status):
        paint(build(server[0]))


def fashn_error(status: int, error: str, **headers: str) -> Response:
    return JSONResponse({"error": error, "message": "m"}, status, headers=headers)


def test_busy_api_is_asked_again_until_it_answers(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    apis.failures.add("run", fashn_error(429, "RateLimitExceeded"), Response(status_code=503))
    apis.failures.add("status", Response(status_code=502))
    assert paint(build(server[0])).images_nhwc.any()
    assert len(apis.runs) == 1


def test_limit_that_stays_is_overloaded_with_its_own_retry_after(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    busy = [fashn_error(429, "ConcurrencyLimitExceeded", **{"retry-after": "0.05"})] * 2
    apis.failures.add("run", *busy)
    with pytest.raises(Overloaded) as caught:
        paint(build(server[0], max_attempts=2))
    assert caught.value.retry_after_s == pytest.approx(0.05)


def test_empty_account_is_not_asked_twice(server: tuple[str, HostedApis], apis: HostedApis) -> None:
    apis.failures.add("run", fashn_error(429, "OutOfCredits"))
    with pytest.raises(UpstreamFailed, match="no credits left"):
        paint(build(server[0]))
    assert apis.runs == []
    quota = {"error": {"code": "insufficient_quota", "message": "m"}}
    apis.failures.add("edits", JSONResponse(quota, 429))
    with pytest.raises(UpstreamFailed, match="no budget left"):
        paint(build(server[0], "openai"))
    assert apis.edits == []


def test_wrong_key_says_which_variable(server: tuple[str, HostedApis], apis: HostedApis) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        paint(build(server[0], key="wrong"))
    assert "SM4LL_FASHN_API_KEY" in caught.value.remedy
    assert "wrong" not in str(caught.value)


def test_openai_moderation_is_the_callers(server: tuple[str, HostedApis], apis: HostedApis) -> None:
    blocked = {"error": {"code": "moderation_blocked", "message": "not this"}}
    apis.failures.add("edits", JSONResponse(blocked, 400))
    with pytest.raises(ContentRefused, match="not this"):
        paint(build(server[0], "openai"))


def test_nobody_listening_is_upstreams_failure() -> None:
    with pytest.raises(UpstreamFailed, match="does not answer"):
        paint(build("http://127.0.0.1:1", max_attempts=2))


def test_slow_api_ends_at_the_versions_own_timeout(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    apis.polls_until_done = 10**6
    with pytest.raises(DeadlineExceeded):
        paint(build(server[0], timeout_s=0.3))


def test_caller_who_leaves_ends_the_polling(
    server: tuple[str, HostedApis], apis: HostedApis
) -> None:
    apis.polls_until_done = 10**6

    def leave(step: int, num_steps: int) -> None:
        raise Cancelled("left")

    with pytest.raises(Cancelled):
        build(server[0]).generate([REQUEST], leave)
    seen, until_s = apis.num_polls, time.monotonic() + 0.2
    while time.monotonic() < until_s:
        # One may still have been on its way.
        assert apis.num_polls <= seen + 1


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (["data:image/png;base64,AAAA"], "no picture"),
        (["data:image/png;base64,!!!"], "no base64"),
        (["https://cdn.example/x.png"], "an address"),
        ([], "without a picture"),
    ],
)
def test_answer_that_is_no_picture_is_upstreams_failure(
    server: tuple[str, HostedApis], apis: HostedApis, output: list[str], words: str
) -> None:
    apis.outcome = {"status": "completed", "output": output}
    with pytest.raises(UpstreamFailed, match=words):
        paint(build(server[0]))


def test_reframed_answer_is_refused(server: tuple[str, HostedApis], apis: HostedApis) -> None:
    from PIL import Image

    from tests.hosted_apis import png

    square = f"data:image/png;base64,{png(Image.new('RGB', (96, 96)))}"
    apis.outcome = {"status": "completed", "output": [square]}
    with pytest.raises(UpstreamFailed, match="reframed"):
        paint(build(server[0]))


def test_expert_the_api_does_not_do_and_a_missing_key_stop_the_start() -> None:
    with pytest.raises(BundleInvalid, match="does not do eye"):
        build("http://127.0.0.1:1", expert="eye")
    with pytest.raises(BundleInvalid, match="need a prompt"):
        build("http://127.0.0.1:1", "openai", prompt="")
    backend = build("http://127.0.0.1:1")
    backend._settings = Settings()
    with pytest.raises(BundleInvalid, match="SM4LL_FASHN_API_KEY"):
        backend.load()


FAMILY = "experts:\n  - version: top@hosted\n"
BUNDLE = """
expert: top
name: hosted
title: FASHN, to compare with
status: benchmark
licence: {{name: terms of service, commercial_use: true}}
backend:
  kind: hosted
  poll_s: 0.01
  provider: {{api: fashn, base_url: "{url}"}}
"""


def test_hosted_arm_answers_over_http_exact_outside_with_its_price_in_the_receipt(
    server: tuple[str, HostedApis],
    apis: HostedApis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SM4LL_FASHN_API_KEY", KEY)
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts/top.hosted.yaml").write_text(BUNDLE.format(url=server[0]))
    (tmp_path / "family.yaml").write_text(FAMILY)
    person = photo(320, 240)
    files = {
        "person": encoded(person),
        "product": encoded(photo(100, 80)),
        "mask": encoded(box_mask(320, 240)),
    }
    with TestClient(build_local_api(tmp_path / "family.yaml")) as client:
        response = client.post(
            "/v1/tryon",
            data={"expert": "top", "format": "png"},
            files=files,
            headers={"Accept": "application/json"},
        )
    assert response.status_code == 200, response.text
    receipt = TryOnAnswer.model_validate_json(response.content).receipt
    assert receipt.outside.max_abs_diff == 0
    assert receipt.upstream is not None
    assert (receipt.upstream.provider, receipt.upstream.credits) == ("fashn", 1.0)
