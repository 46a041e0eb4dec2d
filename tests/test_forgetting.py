"""What was erased is in no replica's memory, and everything else still is."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from deployments.cache import ByteCache, ContentCache
from deployments.segmenters.analyses import Analyses
from deployments.segmenters.classical.segmenter import ClassicalSegmenter
from serve.errors import StoreUnavailable
from serve.messages import SegmentRequest
from serve.tenancy.forgetting import TwiceTold
from tests.pictures import photo
from tests.virtual_time import run_virtually


@dataclass(frozen=True)
class Entry:
    nbytes: int


def ask(content_hash: str, side_px: int = 64) -> SegmentRequest:
    picture = photo(side_px, side_px, seed=side_px)
    return SegmentRequest(
        image_hwc=picture, expert="bg", content_hash=content_hash, masker="classical"
    )


def test_cache_gives_back_the_bytes_of_what_it_forgets() -> None:
    cache: ByteCache[Entry] = ByteCache(100)
    for key in ("a 1", "a 2", "b 1"):
        cache.put(key, Entry(30))
    assert cache.remove(lambda key: key.startswith("a")) == 2
    assert (cache.held_bytes, len(cache)) == (30, 1)
    assert cache.get("a 1") is None
    assert cache.get("b 1") == Entry(30)


def test_analyses_of_one_content_go_in_every_size() -> None:
    analyses = Analyses(2**20, lambda images: [np.zeros(8, np.uint8) for _ in images])
    requests = [ask("a"), ask("a", 32), ask("ab")]
    analyses.of(requests)
    assert analyses.forget({"a", "unknown"}) == 2
    found = [outcome.cached for outcome in analyses.of(requests)]  # type: ignore[union-attr]
    assert found == [False, False, True]


def test_classical_segmenter_reads_a_forgotten_picture_anew() -> None:
    segmenter = ClassicalSegmenter(2**26)
    segmenter.load()
    segmenter.segment([ask("a"), ask("b")])
    assert segmenter.forget({"a"}) == 1
    assert segmenter.forget({"a"}) == 0
    assert segmenter.forget({"b"}) == 1


def test_what_was_in_hand_when_it_was_erased_is_forgotten_when_its_request_is_over() -> None:
    """A request that began before keeps what it found after the replicas were told."""
    cache: ContentCache[Entry] = ContentCache("regions", 100)
    told: list[set[str]] = []

    async def tell(content_hashes: Collection[str]) -> None:
        told.append(set(content_hashes))
        cache.forget(content_hashes)
        if len(told) == 1:
            raise StoreUnavailable("one that fails is no reason not to say it again")

    async def play() -> None:
        forget = TwiceTold(tell, 60.0)
        with suppress(StoreUnavailable):
            await forget({"a"})
        await asyncio.sleep(1)
        await forget({"b"})
        cache.make("a", "1", lambda: Entry(1))
        await asyncio.sleep(58)
        assert cache.find("a", "1")
        await asyncio.sleep(10)
        assert cache.find("a", "1") is None
        await forget({"c"})
        await forget.close()
        await asyncio.sleep(100)

    run_virtually(play())
    assert told == [{"a"}, {"b"}, {"a", "b"}, {"c"}]
