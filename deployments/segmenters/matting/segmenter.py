"""The matting masker: serves the background expert, and says so to every other."""

import hashlib
import json
from collections.abc import Collection, Sequence

from deployments.maskers import MattingMasker
from deployments.segmenters.analyses import Analysed, Analyses
from deployments.segmenters.background import draw_background
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.matting.matter import Matter, load_matter
from deployments.segmenters.names import public_name
from serve.errors import NotSupported, Sm4llError
from serve.messages import Landmarks, SegmentReply, SegmentRequest, UInt8Array

VERSION = 1
"""Changes whenever the same opacity gives another region."""


class MattingSegmenter:
    """The region is what is not the person. Mattes are cached by content, regions drawn anew."""

    def __init__(self, masker: MattingMasker, plan: SegmenterPlan) -> None:
        self._masker = masker
        self._plan = plan
        self.name = public_name("matting", masker.model)
        self._matter: Matter | None = None
        self._analyses: Analyses[UInt8Array] = Analyses(plan.cache_bytes, self._matte, plan.meter)

    def load(self) -> None:
        """Load the network.

        Raises:
            BundleInvalid: it cannot be loaded, or needs a parser that the masker does not name.
        """
        self._matter = load_matter(self._masker, self._plan)
        said = json.dumps([VERSION, self._matter.digests])
        digest = hashlib.sha256(said.encode()).hexdigest()
        self.name = public_name("matting", self._masker.model, digest)

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        """Find the region of every request; other experts' pictures are not even looked at."""
        served = [request for request in batch if request.expert == "bg"]
        mattes = iter(self._analyses.of(served))
        return [
            self._segment_one(request, next(mattes), len(batch))
            if request.expert == "bg"
            else self._refuse(request)
            for request in batch
        ]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the analyses of these contents; says how many."""
        return self._analyses.forget(content_hashes)

    def _segment_one(
        self, request: SegmentRequest, matte: Analysed[UInt8Array] | Sm4llError, batch_size: int
    ) -> SegmentReply | Sm4llError:
        if isinstance(matte, Sm4llError):
            return matte
        try:
            region_hw = draw_background(matte.found)
        except Sm4llError as error:
            return error
        return SegmentReply(
            region_hw=region_hw,
            silhouette_hw=matte.found,
            landmarks=Landmarks(),
            masker=self.name,
            cached=matte.cached,
            batch_size=batch_size,
        )

    def _refuse(self, request: SegmentRequest) -> NotSupported:
        return NotSupported(
            f"{self.name} finds a person's outline: the region of bg, not of {request.expert}",
            remedy=f"give the bundle of {request.expert} masker.kind classical or parsing, "
            "or bring your own mask",
        )

    def _matte(self, images: list[UInt8Array]) -> list[UInt8Array]:
        assert self._matter is not None, "load() comes before segment()"
        return self._matter.matte(images)
