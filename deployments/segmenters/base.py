"""What every segmenter can do: find the regions of a batch of pictures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from serve.config import WeightsConfig
from serve.errors import Sm4llError
from serve.messages import SegmentReply, SegmentRequest
from serve.observing.meter import NO_METER, Meter


@dataclass(frozen=True, slots=True)
class SegmenterPlan:
    """What a replica's segmenter is told besides its masker."""

    cache_bytes: int
    """Analyses kept by content."""
    home: Path = Path()
    """Paths in the masker are relative to this."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    meter: Meter = NO_METER


class Segmenter(Protocol):
    """Finds the region an expert may change. Called from one thread at a time."""

    name: str
    """Identity for caches and receipts, with a version that changes when regions change."""

    def load(self) -> None:
        """Bring cascades or weights into memory. Called once before the first `segment`."""

    def segment(self, batch: Sequence[SegmentRequest]) -> list[SegmentReply | Sm4llError]:
        """Find the region of every request.

        Returns:
            In order, a reply, or the error of that request (`SubjectNotFound` with what was looked
            for) so that one picture without a subject does not fail its batch.
        """

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is remembered of these contents; says how many analyses."""
