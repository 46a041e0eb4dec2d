"""What was done for one request is not done again for the next: the same picture, the same tenant,
the same bytes; and what was erased is done anew."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from deployments.backends.drill import DrillBackend
from deployments.backends.warp.backend import WarpBackend
from deployments.cache import ContentCache, hold_alone
from deployments.recipes import Drill, WarpConfig
from serve.demo.cases import demo_cases
from serve.messages import (
    LANDMARK_NAMES,
    ExpertReply,
    ExpertRequest,
    Landmarks,
    SegmentReply,
)
from serve.observing.meter import MemoryMeter
from serve.remembering import ProductCopy
from serve.schemas.receipt import InputDigest, Receipt
from serve.settings import CONFIGS_DIR
from serve.telemetry import CACHES, CacheName
from serve.tenancy.memory import remembered_as
from tests.demo_requests import build_request
from tests.fakes import build_local_api
from tests.tenants import add_key_to, bearer


@dataclass(frozen=True)
class Entry:
    nbytes: int


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(CONFIGS_DIR / "family.yaml")


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


def look_ups(meter: MemoryMeter, cache: CacheName) -> tuple[float, float]:
    """Hits and misses."""
    hits = meter.total("sm4ll_cache_requests_total", cache=cache, outcome="hit")
    return hits, meter.total("sm4ll_cache_requests_total", cache=cache, outcome="miss")


def held_bytes(meter: MemoryMeter, cache: CacheName) -> float:
    return meter.gauges["sm4ll_cache_bytes", (("cache", cache),)]


def test_every_cache_is_in_the_table() -> None:
    assert set(CACHES) == set(get_args(CacheName))


def test_what_is_found_and_held_is_counted() -> None:
    meter = MemoryMeter()
    cache: ContentCache[Entry] = ContentCache("products", 100, meter)
    made = [cache.make(*key, lambda: Entry(40)).cached for key in (("a", "1"), ("a", "2"))]
    again = [cache.make(*key, lambda: Entry(40)).cached for key in (("a", "1"), ("b", "1"))]
    assert (made, again) == ([False, False], [True, False])
    assert look_ups(meter, "products") == (1, 3)
    # "a 2" had to make room: it was used longest ago.
    assert held_bytes(meter, "products") == 80
    assert cache.forget({"a"}) == 1
    assert held_bytes(meter, "products") == 40


def test_what_is_nobodys_is_not_kept() -> None:
    cache: ContentCache[Entry] = ContentCache("products", 100)
    assert [cache.make("", "1", lambda: Entry(1)).cached for _ in range(2)] == [False, False]


def test_what_is_erased_while_it_is_made_is_not_kept() -> None:
    cache: ContentCache[Entry] = ContentCache("regions", 100)

    def make() -> Entry:
        cache.forget({"a"})
        return Entry(1)

    assert not cache.make("a", "1", make).cached
    assert cache.find("a", "1") is None


def test_what_is_kept_holds_no_more_than_itself_and_stays_as_it_is() -> None:
    """A stripe of a large picture would keep the whole of it, and be counted as a stripe."""
    picture = np.zeros((1000, 1000), np.uint8)
    reply = SegmentReply(picture[:5], picture[5:10], Landmarks(), "classical/2")
    kept = hold_alone(reply)
    assert (kept.nbytes, kept.masker) == (reply.nbytes, reply.masker)
    for array in (kept.region_hw, kept.silhouette_hw, hold_alone(picture[:5])):
        assert array.base is None
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1


def keep_small(cache: ContentCache[SegmentReply | ProductCopy], number: int) -> None:
    sha256, x = f"{number:064d}", float(number)
    points = {name: (x + 0.5, x + 0.25) for name in LANDMARK_NAMES}
    landmarks = Landmarks(points, (x + 0.1, x + 0.2, x + 0.3, x + 0.4))
    region = SegmentReply(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), landmarks, "a/1")
    cache.keep(sha256, "region", region, cache.era)
    digest = InputDigest(sha256=sha256, width=8, height=8, format="png")
    cache.keep(sha256, "product", ProductCopy(digest, np.zeros((8, 8, 4), np.uint8)), cache.era)


def test_a_budget_is_kept_with_the_smallest_pictures_as_well() -> None:
    cache: ContentCache[SegmentReply | ProductCopy] = ContentCache("regions", 2**20)
    keep_small(cache, 0)
    tracemalloc.start()
    try:
        for number in range(1, 1000):
            keep_small(cache, number)
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * 2**20 < cache.held_bytes <= 2**20
    assert taken_bytes < 1.2 * 2**20


def paint(backend: WarpBackend | DrillBackend, request: ExpertRequest) -> ExpertReply:
    (reply,) = backend.generate([request], lambda *step: None)
    return reply


@pytest.mark.parametrize("expert", ["eye", "shoes", "top"])
def test_a_remembered_product_gives_the_same_picture(expert: str) -> None:
    meter, backend = MemoryMeter(), WarpBackend(f"{expert}@1")
    backend.load()
    backend.use_meter(meter)
    request = build_request(expert)
    assert request.product_hash
    first, second = paint(backend, request), paint(backend, request)
    assert (first.product_cached, second.product_cached) == (False, True)
    assert first.images_nhwc.tobytes() == second.images_nhwc.tobytes()
    assert first.alpha_nhw is not None
    assert second.alpha_nhw is not None
    assert first.alpha_nhw.tobytes() == second.alpha_nhw.tobytes()
    assert look_ups(meter, "cutouts") == (1, 1)
    assert held_bytes(meter, "cutouts") > 0
    assert backend.forget({"another", request.product_hash}) == 1
    assert held_bytes(meter, "cutouts") == 0


def test_two_pictures_of_one_request_are_of_one_reading() -> None:
    meter, backend = MemoryMeter(), WarpBackend("eye@1", WarpConfig(product_cache_mib=0))
    backend.load()
    backend.use_meter(meter)
    request = build_request("eye")
    both = paint(backend, replace(request, num_images=2))
    assert both.product_cached is False
    assert look_ups(meter, "cutouts") == (0, 1)
    # Without room it is read again, and the same.
    assert both.images_nhwc[:1].tobytes() == paint(backend, request).images_nhwc.tobytes()


def test_a_drilled_version_forgets_as_well() -> None:
    backend = DrillBackend(WarpBackend("eye@1"), Drill(blur_px=1))
    backend.load()
    request = build_request("eye")
    assert [paint(backend, request).product_cached for _ in range(2)] == [False, True]
    assert backend.forget({request.product_hash}) == 1


def try_on(http: TestClient, key: dict[str, str], expert: str) -> httpx2.Response:
    case = next(case for case in demo_cases() if case.expert == expert)
    files = {"person": case.person_path.read_bytes(), "product": case.product_path.read_bytes()}
    answer = http.post(
        "/v1/tryon", headers=key, files=files, data={"expert": expert, "format": "png"}
    )
    assert answer.status_code == 200, answer.text
    return answer


def receipt_of(http: TestClient, key: dict[str, str], expert: str) -> Receipt:
    return Receipt.model_validate(
        try_on(http, {**key, "Accept": "application/json"}, expert).json()["receipt"]
    )


def test_the_next_try_on_of_the_tenant_says_what_was_remembered(
    api: FastAPI, http: TestClient
) -> None:
    mine, theirs = (bearer(add_key_to(api, name, ["tryon"])) for name in ("mine", "theirs"))
    first = try_on(http, mine, "eye")
    assert "sm4ll-cache" not in first.headers
    second = try_on(http, mine, "eye")
    assert second.headers["sm4ll-cache"] == "person, product"
    assert second.content == first.content
    receipt = receipt_of(http, mine, "eye")
    assert (receipt.segmentation_cached, receipt.product_cached) == (True, True)
    # The same pictures of another tenant are other pictures.
    assert "sm4ll-cache" not in try_on(http, theirs, "eye").headers
    # What this router would have to decode again says nothing of an expert that cuts out itself.
    sha256s = (receipt.person.sha256, receipt.product.sha256)
    assert api.state.memory.forget({remembered_as("mine", one) for one in sha256s}) == 2
    assert receipt_of(http, mine, "eye").product_cached


def test_an_expert_that_remembers_no_product_leaves_it_to_the_router(http: TestClient) -> None:
    first, second = receipt_of(http, {}, "face"), receipt_of(http, {}, "face")
    assert (first.segmentation_cached, first.product_cached) == (False, False)
    assert (second.segmentation_cached, second.product_cached) == (True, True)
    assert first.outside.max_abs_diff == second.outside.max_abs_diff == 0
