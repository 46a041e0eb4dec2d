"""What a network found out about pictures: cached by content, the unknown ones read together."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.cache import ContentCache, Sized
from serve.errors import GenerationFailed, Sm4llError
from serve.messages import SegmentRequest, UInt8Array
from serve.observing.meter import NO_METER, Meter

T = TypeVar("T", bound=Sized)
_Content = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Analysed(Generic[T]):
    """The analysis of one picture."""

    found: T
    cached: bool


class Analyses(Generic[T]):
    """Reads every picture once, in one pass with the others of its batch."""

    def __init__(
        self,
        cache_bytes: int,
        read: Callable[[list[UInt8Array]], list[T]],
        meter: Meter = NO_METER,
    ) -> None:
        self._cache: ContentCache[T] = ContentCache("analyses", cache_bytes, meter)
        self._read = read

    def of(self, batch: Sequence[SegmentRequest]) -> list[Analysed[T] | Sm4llError]:
        """The analysis of every request's picture, or why it has none."""
        known: dict[_Content, Analysed[T] | Sm4llError] = {}
        fresh: dict[_Content, UInt8Array] = {}
        era = self._cache.era
        for request in batch:
            key = content_of(request)
            entry = self._cache.find(*key)
            if entry is not None:
                known[key] = Analysed(entry, cached=True)
            else:
                fresh[key] = request.image_hwc
        for key, outcome in zip(fresh, self._read_all(list(fresh.values())), strict=True):
            if isinstance(outcome, Sm4llError):
                known[key] = outcome
                continue
            self._cache.keep(*key, outcome, era)
            known[key] = Analysed(outcome, cached=False)
        return [known[content_of(request)] for request in batch]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is remembered of these contents; says how many analyses."""
        return self._cache.forget(content_hashes)

    def _read_all(self, images: list[UInt8Array]) -> list[T | Sm4llError]:
        """All in one pass; where that fails, each alone, so that one picture fails for itself."""
        if not images:
            return []
        try:
            return list(self._read(images))
        except Sm4llError as error:
            if len(images) == 1:
                return [error]
        except Exception as exc:
            if len(images) == 1:
                failure = GenerationFailed(f"{type(exc).__name__}: {exc}")
                failure.__cause__ = exc
                return [failure]
        return [self._read_all([image])[0] for image in images]


def content_of(request: SegmentRequest) -> _Content:
    # The same file may come as a larger copy: as a person here, as a product there.
    return request.content_hash, "x".join(map(str, request.image_hwc.shape))
