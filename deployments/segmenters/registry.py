"""Masker kinds, by the name bundles use."""

from collections.abc import Callable

from deployments.extras import needing_weights
from deployments.maskers import LandmarksMasker, MaskerConfig, MattingMasker, ParsingMasker
from deployments.segmenters.base import Segmenter, SegmenterPlan


def _create_classical(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    from deployments.segmenters.classical.segmenter import ClassicalSegmenter

    return ClassicalSegmenter(plan.cache_bytes, plan.meter)


# The weighted ones take seconds to import: only a replica that runs one pays for it.
def _create_parsing(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    from deployments.segmenters.parsing.segmenter import ParsingSegmenter

    assert isinstance(masker, ParsingMasker)
    return ParsingSegmenter(masker, plan)


def _create_matting(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    from deployments.segmenters.matting.segmenter import MattingSegmenter

    assert isinstance(masker, MattingMasker)
    return MattingSegmenter(masker, plan)


def _create_landmarks(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    from deployments.segmenters.landmarks.segmenter import LandmarksSegmenter

    assert isinstance(masker, LandmarksMasker)
    return LandmarksSegmenter(masker, plan)


SEGMENTERS: dict[str, Callable[[MaskerConfig, SegmenterPlan], Segmenter]] = {
    "classical": _create_classical,
    "parsing": _create_parsing,
    "matting": _create_matting,
    "landmarks": _create_landmarks,
}


def create_segmenter(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    """Build the segmenter of one masker; `load` is the caller's.

    Raises:
        BundleInvalid: a library it needs is not installed.
    """
    with needing_weights(f"masker {masker.kind}"):
        return SEGMENTERS[masker.kind](masker, plan)
