"""SegmenterReplica without Ray: requests meet in a batch and fail alone."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from deployments.maskers import ClassicalMasker
from deployments.options import segmenter_options
from deployments.segmentation import SegmenterReplica
from serve.client import Client
from serve.config import SegmenterConfig, WeightsConfig
from serve.demo.cases import demo_cases
from serve.errors import GenerationFailed, Sm4llError, SubjectNotFound
from serve.messages import Landmarks, SegmentReply, SegmentRequest

CLASSICAL = (ClassicalMasker(), Path(), WeightsConfig())


class PlainSegmenter:
    """Everything is person; some pictures have none, one breaks it."""

    name = "plain/1"

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def load(self) -> None: ...

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        self.batch_sizes.append(len(batch))
        return [self._segment_one(request) for request in batch]

    def _segment_one(self, request: SegmentRequest) -> SegmentReply | Sm4llError:
        if request.content_hash == "broken":
            raise ZeroDivisionError("in the masker")
        if request.content_hash == "nobody":
            return SubjectNotFound("no person")
        white = np.full(request.image_hwc.shape[:2], 255, np.uint8)
        return SegmentReply(white, white, Landmarks(), self.name)


def request(content_hash: str) -> SegmentRequest:
    return SegmentRequest(np.zeros((4, 4, 3), np.uint8), "eye", content_hash)


def test_one_picture_that_fails_does_not_fail_its_batch() -> None:
    replica, plain = (
        SegmenterReplica(SegmenterConfig(), *CLASSICAL),
        PlainSegmenter(),
    )
    replica._segmenter = plain
    outcomes = replica._segment([request(name) for name in ("a", "nobody", "broken", "d")])
    first, nobody, broken, last = outcomes
    assert isinstance(first, SegmentReply)
    assert isinstance(nobody, SubjectNotFound)
    assert isinstance(broken, GenerationFailed)
    assert "ZeroDivisionError" in str(broken)
    assert isinstance(last, SegmentReply)
    assert plain.batch_sizes == [4, 1, 1, 1, 1]


class Burst:
    """An ingress that asks the segmenter four times at once."""

    def __init__(self, segmenter: Any):
        self._segmenter = segmenter

    async def __call__(self) -> list[int]:
        portrait = np.asarray(Image.open(demo_cases()[0].person_path).convert("RGB"))
        requests = [SegmentRequest(portrait, "eye", f"hash {index}") for index in range(4)]
        replies = await asyncio.gather(*map(self._ask, requests))
        return [reply.batch_size for reply in replies]

    async def _ask(self, request: SegmentRequest) -> SegmentReply:
        reply: SegmentReply = await self._segmenter.segment.remote(request)
        return reply


@pytest.mark.ray
def test_requests_that_come_together_are_one_batch(api: Client) -> None:
    from ray import serve as rayserve

    config = SegmenterConfig(max_batch_size=4, batch_wait_s=0.5)
    segmenter = rayserve.deployment(
        SegmenterReplica, **segmenter_options(config, "classical")
    ).bind(config, *CLASSICAL)
    burst = rayserve.deployment(Burst, ray_actor_options={"num_cpus": 0.1}).bind(segmenter)
    rayserve.run(burst, name="batching", route_prefix="/batching")
    try:
        assert httpx2.get(f"{api.url}/batching", timeout=60).json() == [4, 4, 4, 4]
    finally:
        rayserve.delete("batching")
