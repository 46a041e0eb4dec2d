"""What every segmenter can do: find the regions of a batch of pictures."""

from collections.abc import Sequence
from typing import Protocol

from serve.errors import Sm4llError
from serve.messages import SegmentReply, SegmentRequest


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
