"""Bytes under (tenant, kind, SHA-256): in a local directory, or in a bucket that speaks S3."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore

from serve.errors import InvalidRequest, NotFound, Sm4llError, StoreUnavailable

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
KIND = re.compile(r"[a-z]{1,20}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, order=True)
class BlobKey:
    """Where a blob lies. The tenant comes first, so no listing can reach another's by accident."""

    tenant_id: str
    kind: str
    sha256: str

    def __post_init__(self) -> None:
        parts = ((TENANT, self.tenant_id), (KIND, self.kind), (SHA256, self.sha256))
        for pattern, part in parts:
            if not pattern.fullmatch(part):
                raise InvalidRequest(f"{part[:80]!r} cannot be part of the name of a blob.")

    @property
    def path(self) -> str:
        return f"{self.tenant_id}/{self.kind}/{self.sha256}"

    @classmethod
    def parse(cls, path: str) -> "BlobKey":
        """
        Raises:
            InvalidRequest: not a path that `path` writes.
        """
        parts = path.split("/")
        if len(parts) != 3:
            raise InvalidRequest(f"{path[:120]!r} is not the name of a blob.")
        return cls(*parts)


@dataclass(frozen=True)
class BlobInfo:
    """What a listing says of one blob."""

    key: BlobKey
    num_bytes: int
    modified_at: datetime


class Blobs:
    """Blobs of all tenants. The name is the content's hash: what does not match is not a blob."""

    def __init__(self, store: ObjectStore):
        self._store = store

    async def put(
        self, tenant_id: str, kind: str, data: bytes, *, sha256: str | None = None
    ) -> BlobKey:
        """Keep `data`, whole or not at all; keeping the same twice changes nothing.

        In a local directory it outlives every process, but not a power cut in the next seconds:
        what is damaged then is found by `get` and healed by another `put`.

        Args:
            sha256: what the caller believes the hash to be, where it knows.

        Raises:
            InvalidRequest: the data hash to something else.
            StoreUnavailable: the store does not answer or does not let us in.
        """
        found = await asyncio.to_thread(hash_bytes, data)
        if sha256 is not None and sha256 != found:
            raise InvalidRequest("The data do not match the SHA-256 that was sent with them.")
        key = BlobKey(tenant_id, kind, found)
        with map_blob_errors(key.path):
            await obstore.put_async(self._store, key.path, data, mode="overwrite")
        return key

    async def get(self, key: BlobKey) -> bytes:
        """
        Raises:
            NotFound: there is no such blob.
            Sm4llError: what lies there is not what was put, and is not handed out.
            StoreUnavailable: the store does not answer or does not let us in.
        """
        with map_blob_errors(key.path):
            result = await obstore.get_async(self._store, key.path)
            data = bytes(await result.bytes_async())
        if await asyncio.to_thread(hash_bytes, data) != key.sha256:
            raise Sm4llError(f"The blob {key.path} is damaged.")
        return data

    async def stream(self, key: BlobKey) -> AsyncIterator[bytes]:
        """The same in pieces, for what should not be in memory at once.

        Raises:
            NotFound: there is no such blob.
            Sm4llError: after the last piece, when together they are not what was put.
            StoreUnavailable: the store does not answer or does not let us in.
        """
        digest = hashlib.sha256()
        with map_blob_errors(key.path):
            result = await obstore.get_async(self._store, key.path)
            async for piece in result.stream(min_chunk_size=CHUNK_BYTES):
                chunk = bytes(piece)
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != key.sha256:
            raise Sm4llError(f"The blob {key.path} is damaged.")

    async def has(self, key: BlobKey) -> bool:
        """Whether there is such a blob, without reading it.

        Raises:
            StoreUnavailable: the store does not answer or does not let us in.
        """
        try:
            with map_blob_errors(key.path):
                await obstore.head_async(self._store, key.path)
        except NotFound:
            return False
        return True

    async def delete(self, key: BlobKey) -> None:
        """Forget a blob; one that is not there is forgotten already.

        Raises:
            StoreUnavailable: the store does not answer or does not let us in.
        """
        try:
            with map_blob_errors(key.path):
                await obstore.delete_async(self._store, key.path)
        except NotFound:
            return

    async def list(self, tenant_id: str, kind: str | None = None) -> AsyncIterator[BlobInfo]:
        """Every blob of a tenant, or of one kind.

        Raises:
            StoreUnavailable: the store does not answer or does not let us in.
        """
        # Checks the parts: a prefix of "" or ".." would be everybody's.
        sample = BlobKey(tenant_id, kind or "any", "0" * 64)
        prefix = f"{sample.tenant_id}/{kind}/" if kind else f"{sample.tenant_id}/"
        with map_blob_errors(prefix):
            async for batch in obstore.list(self._store, prefix=prefix):
                for found in batch:
                    key = BlobKey.parse(found["path"])
                    yield BlobInfo(key, found["size"], found["last_modified"])


def hash_bytes(data: bytes) -> str:
    """The name under which `data` is kept."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def map_blob_errors(path: str) -> Iterator[None]:
    """Inside, nothing of the object store's library gets out.

    Raises:
        NotFound: the store has no such object.
        StoreUnavailable: anything else: a network, a refused login, a full disk.
    """
    try:
        yield
    except (NotFoundError, FileNotFoundError) as exc:
        raise NotFound(f"There is no blob {path}.") from exc
    except (BaseError, OSError) as exc:
        raise StoreUnavailable(
            "The object store does not answer as it should.",
            remedy="Try again shortly; `sm4ll store check` says what is wrong.",
            retry_after_s=RETRY_AFTER_S,
        ) from exc
