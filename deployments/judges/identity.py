"""Whether a face is still the same person's, to a network that tells people apart."""

from collections.abc import Callable, Sequence

import numpy as np

from deployments.judges.vision import Embedder
from serve.messages import JudgedBy, JudgeRequest


class IdentityJudge:
    """Cosine distance of the face before and after, 0..2: lower is better."""

    metric: JudgedBy = "face"

    def __init__(self, create: Callable[[], Embedder]):
        self._create = create

    def load(self) -> None:
        self._embedder = self._create()

    def judge(self, batch: Sequence[JudgeRequest]) -> list[float | None]:
        pairs = [request.faces for request in batch if request.faces is not None]
        if not pairs:
            return [None] * len(batch)
        embedded = self._embedder.embed([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
        wanted, painted = np.split(embedded, 2)
        distances = iter((1 - (wanted * painted).sum(axis=1)).clip(0, 2))
        return [None if request.faces is None else float(next(distances)) for request in batch]
