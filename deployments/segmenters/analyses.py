"""What a network found out about pictures: cached by content, the unknown ones read together."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.cache import ByteCache, Sized
from serve.errors import GenerationFailed, Sm4llError
from serve.messages import SegmentRequest, UInt8Array

T = TypeVar("T", bound=Sized)


@dataclass(frozen=True, slots=True)
class Analysed(Generic[T]):
    """The analysis of one picture."""

    found: T
    cached: bool


class Analyses(Generic[T]):
    """Reads every picture once, in one pass with the others of its batch."""

    def __init__(self, cache_bytes: int, read: Callable[[list[UInt8Array]], list[T]]) -> None:
        self._cache: ByteCache[T] = ByteCache(cache_bytes)
        self._read = read

    def of(self, batch: Sequence[SegmentRequest]) -> list[Analysed[T] | Sm4llError]:
        """The analysis of every request's picture, or why it has none."""
        known: dict[str, Analysed[T] | Sm4llError] = {}
        fresh: dict[str, UInt8Array] = {}
        for request in batch:
            key = content_key(request)
            entry = self._cache.get(key)
            if entry is not None:
                known[key] = Analysed(entry, cached=True)
            else:
                fresh[key] = request.image_hwc
        for key, outcome in zip(fresh, self._read_all(list(fresh.values())), strict=True):
            if isinstance(outcome, Sm4llError):
                known[key] = outcome
                continue
            self._cache.put(key, outcome)
            known[key] = Analysed(outcome, cached=False)
        return [known[content_key(request)] for request in batch]

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is remembered of these contents; says how many analyses."""
        return self._cache.remove(lambda key: is_content(key, content_hashes))

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


def content_key(request: SegmentRequest) -> str:
    # The same file may come as a larger copy: as a person here, as a product there.
    return f"{request.content_hash} {request.image_hwc.shape}"


def is_content(key: str, content_hashes: Collection[str]) -> bool:
    """Whether `content_key` made the key from one of these contents."""
    return key.partition(" ")[0] in content_hashes
