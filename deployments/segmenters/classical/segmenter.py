"""The classical masker: one analysis per picture, one region per request."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deployments.cache import ContentCache
from deployments.segmenters.analyses import content_of
from deployments.segmenters.classical.person import Person, PersonReader
from deployments.segmenters.classical.regions import draw_region
from serve.errors import Sm4llError, SubjectNotFound
from serve.messages import SegmentReply, SegmentRequest
from serve.observing.meter import NO_METER, Meter

FAILURE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Analysis:
    """What one picture gave: a person, or the reason why none was found."""

    person: Person | None
    failure: SubjectNotFound | None = None

    @property
    def nbytes(self) -> int:
        return FAILURE_BYTES if self.person is None else self.person.nbytes


class ClassicalSegmenter:
    """Finds regions without weights. Analyses are cached by content, regions are drawn anew."""

    name = "classical/2"

    def __init__(self, cache_bytes: int, meter: Meter = NO_METER) -> None:
        self._cache: ContentCache[_Analysis] = ContentCache("analyses", cache_bytes, meter)
        self._reader: PersonReader | None = None

    def load(self) -> None:
        self._reader = PersonReader()

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        """Find the region of every request; pictures of the same content are analysed once."""
        fresh: dict[tuple[str, str], _Analysis] = {}
        return [self._segment_one(request, fresh, len(batch)) for request in batch]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the analyses of these contents; says how many."""
        return self._cache.forget(content_hashes)

    def _segment_one(
        self, request: SegmentRequest, fresh: dict[tuple[str, str], _Analysis], batch_size: int
    ) -> SegmentReply | Sm4llError:
        analysis, cached = self._analyse(request, fresh)
        if analysis.person is None:
            assert analysis.failure is not None
            return SubjectNotFound(analysis.failure.detail, remedy=analysis.failure.remedy)
        try:
            region = draw_region(analysis.person, request.expert, request.dilation)
        except Sm4llError as error:
            return error
        return SegmentReply(
            region_hw=region,
            silhouette_hw=analysis.person.silhouette_hw,
            landmarks=analysis.person.landmarks,
            masker=self.name,
            cached=cached,
            batch_size=batch_size,
        )

    def _analyse(
        self, request: SegmentRequest, fresh: dict[tuple[str, str], _Analysis]
    ) -> tuple[_Analysis, bool]:
        key, era = content_of(request), self._cache.era
        if key in fresh:
            return fresh[key], False
        known = self._cache.find(*key)
        if known is not None:
            return known, True
        fresh[key] = self._read(request)
        self._cache.keep(*key, fresh[key], era)
        return fresh[key], False

    def _read(self, request: SegmentRequest) -> _Analysis:
        assert self._reader is not None, "load() comes before segment()"
        try:
            return _Analysis(self._reader.read(request.image_hwc))
        except SubjectNotFound as failure:
            return _Analysis(None, failure)
