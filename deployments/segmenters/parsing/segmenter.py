"""The parsing masker: one pass of the parser per batch, one region per request."""

import hashlib
import json
from collections.abc import Collection, Sequence

from deployments.maskers import ParsingMasker
from deployments.segmenters.analyses import Analysed, Analyses
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.names import public_name
from deployments.segmenters.parsing.figure import Figure
from deployments.segmenters.parsing.heads import find_eyes
from deployments.segmenters.parsing.parser import Parsed, Parser, load_parser
from deployments.segmenters.parsing.policy import POLICY, Policy, draw_region, require_labels
from serve.errors import Sm4llError
from serve.messages import Landmarks, Point, SegmentReply, SegmentRequest, UInt8Array


class ParsingSegmenter:
    """Finds regions by the labels of a human parser. Analyses are cached, regions drawn anew."""

    def __init__(self, masker: ParsingMasker, plan: SegmenterPlan) -> None:
        self._masker = masker
        self._plan = plan
        self.name = public_name("parsing", masker.model)
        self._parser: Parser | None = None
        self._analyses: Analyses[Parsed] = Analyses(plan.cache_bytes, self._parse, plan.meter)

    def load(self) -> None:
        """Load the parser.

        Raises:
            BundleInvalid: it cannot be loaded, or its labels are not understood.
        """
        self._parser = load_parser(self._masker, self._plan)
        self.name = public_name("parsing", self._masker.model, self._digest(self._parser))

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        """Find the region of every request; pictures of the same content are parsed once."""
        outcomes = self._analyses.of(batch)
        return [
            outcome
            if isinstance(outcome, Sm4llError)
            else self._segment_one(request, outcome, len(batch))
            for request, outcome in zip(batch, outcomes, strict=True)
        ]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the analyses of these contents; says how many."""
        return self._analyses.forget(content_hashes)

    def _segment_one(
        self, request: SegmentRequest, analysed: Analysed[Parsed], batch_size: int
    ) -> SegmentReply | Sm4llError:
        assert self._parser is not None, "load() comes before segment()"
        policy = Policy(self._masker.hull, self._masker.protect, request.dilation)
        silhouette_hw = analysed.found.silhouette_hw
        try:
            require_labels(self._parser.labels.parts, request.expert, self._masker.model.label)
            figure = Figure(analysed.found.parts_hw)
            region_hw = draw_region(figure, silhouette_hw, request.expert, policy)
        except Sm4llError as error:
            return error
        return SegmentReply(
            region_hw=region_hw,
            silhouette_hw=silhouette_hw,
            landmarks=known_landmarks(figure),
            masker=self.name,
            cached=analysed.cached,
            batch_size=batch_size,
        )

    def _parse(self, images: list[UInt8Array]) -> list[Parsed]:
        assert self._parser is not None, "load() comes before segment()"
        return self._parser.parse(images)

    def _digest(self, parser: Parser) -> str:
        """Of everything that shapes regions besides the picture."""
        names = {name: part.name for name, part in parser.labels.names.items()}
        said = [POLICY, names, self._masker.hull, sorted(self._masker.protect), parser.digest]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def known_landmarks(figure: Figure) -> Landmarks:
    """What labels say about points: the face's box and ends, and eyes where they are labelled."""
    head = figure.head
    if head is None:
        return Landmarks()
    points: dict[str, Point] = {
        "chin": head.at(head.off_centre, head.below),
        "forehead": head.at(head.off_centre, -head.above),
    }
    eyes = find_eyes(figure.parts_hw)
    if eyes is not None:
        points["right_eye"], points["left_eye"] = eyes
    return Landmarks(points, head.box)
