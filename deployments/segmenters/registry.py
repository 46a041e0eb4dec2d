"""Masker kinds, by the name bundles use."""

from collections.abc import Callable

from deployments.maskers import MaskerConfig
from deployments.segmenters.base import Segmenter, SegmenterPlan


def _create_classical(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    from deployments.segmenters.classical.segmenter import ClassicalSegmenter

    return ClassicalSegmenter(plan.cache_bytes)


SEGMENTERS: dict[str, Callable[[MaskerConfig, SegmenterPlan], Segmenter]] = {
    "classical": _create_classical,
}


def create_segmenter(masker: MaskerConfig, plan: SegmenterPlan) -> Segmenter:
    """Build the segmenter of one masker; `load` is the caller's."""
    return SEGMENTERS[masker.kind](masker, plan)
