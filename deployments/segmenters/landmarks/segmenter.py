"""The landmarks masker: serves eyewear, face and shoes, and says so to the others."""

import hashlib
import json
from collections.abc import Collection, Sequence

from deployments.maskers import LandmarksMasker
from deployments.segmenters.analyses import Analysed, Analyses
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.landmarks.estimator import Estimator, Seen, load_estimator
from deployments.segmenters.landmarks.regions import VERSION, draw_region, draw_silhouette
from deployments.segmenters.names import public_name
from serve.errors import Sm4llError, SubjectNotFound
from serve.messages import SegmentReply, SegmentRequest, UInt8Array


class LandmarksSegmenter:
    """Finds regions by a person's points. Points are cached by content, regions drawn anew."""

    def __init__(self, masker: LandmarksMasker, plan: SegmenterPlan) -> None:
        self._masker = masker
        self._plan = plan
        self.name = public_name("landmarks", masker.model)
        self._estimator: Estimator | None = None
        self._analyses: Analyses[Seen] = Analyses(plan.cache_bytes, self._estimate, plan.meter)

    def load(self) -> None:
        """Load the networks.

        Raises:
            BundleInvalid: one cannot be loaded, or its points are not what the masker says.
        """
        self._estimator = load_estimator(self._masker, self._plan)
        said = json.dumps([VERSION, self._estimator.digests])
        digest = hashlib.sha256(said.encode()).hexdigest()
        self.name = public_name("landmarks", self._masker.model, digest)

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        """Find the region of every request; pictures of the same content are read once."""
        return [
            outcome
            if isinstance(outcome, Sm4llError)
            else self._segment_one(request, outcome, len(batch))
            for request, outcome in zip(batch, self._analyses.of(batch), strict=True)
        ]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the analyses of these contents; says how many."""
        return self._analyses.forget(content_hashes)

    def _segment_one(
        self, request: SegmentRequest, analysed: Analysed[Seen], batch_size: int
    ) -> SegmentReply | Sm4llError:
        pose, shape = analysed.found.pose, request.image_hwc.shape
        if pose is None:
            return SubjectNotFound(
                "no person found: the detector sees none",
                remedy="Send a photo in which one person fills a good part of the picture, "
                "or bring your own mask.",
            )
        try:
            region_hw = draw_region(pose, shape, request.expert, request.dilation)
        except Sm4llError as error:
            return error
        return SegmentReply(
            region_hw=region_hw,
            silhouette_hw=draw_silhouette(pose, shape),
            landmarks=pose.landmarks(),
            masker=self.name,
            cached=analysed.cached,
            batch_size=batch_size,
        )

    def _estimate(self, images: list[UInt8Array]) -> list[Seen]:
        assert self._estimator is not None, "load() comes before segment()"
        return self._estimator.estimate(images)
