"""How like the product what was painted looks, to a vision network."""

from collections.abc import Callable, Sequence

import numpy as np

from deployments.judges.vision import Embedder
from serve.messages import JudgedBy, JudgeRequest


class LikenessJudge:
    """Cosine similarity of product and painted region, 0..1: higher is better."""

    metric: JudgedBy = "embedding"

    def __init__(self, create: Callable[[], Embedder]):
        self._create = create

    def load(self) -> None:
        self._embedder = self._create()

    def judge(self, batch: Sequence[JudgeRequest]) -> list[float | None]:
        pictures = [request.product_hwc for request in batch]
        pictures += [request.painted_hwc for request in batch]
        products, painted = np.split(self._embedder.embed(pictures), 2)
        cosines = (products * painted).sum(axis=1)
        return [float(cosine) for cosine in cosines.clip(0, 1)]
