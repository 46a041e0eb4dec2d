"""Masker kinds, by the name bundles use."""

from collections.abc import Callable

from deployments.segmenters.base import Segmenter


def _create_classical(cache_bytes: int) -> Segmenter:
    from deployments.segmenters.classical.segmenter import ClassicalSegmenter

    return ClassicalSegmenter(cache_bytes)


SEGMENTERS: dict[str, Callable[[int], Segmenter]] = {"classical": _create_classical}


def create_segmenter(kind: str, cache_bytes: int) -> Segmenter:
    """Build a segmenter that caches up to cache_bytes of analyses; `load` is the caller's."""
    return SEGMENTERS[kind](cache_bytes)
