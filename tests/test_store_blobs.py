"""The same promises on a local directory and on a real server that speaks S3."""

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from serve.errors import ConfigError, InvalidRequest, NotFound, Sm4llError, StoreUnavailable
from serve.settings import Settings, free_port
from serve.store.blobs import CHUNK_BYTES, BlobKey, Blobs, hash_bytes
from serve.store.opening import open_blobs

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    create = urllib.request.Request(f"{endpoint}/looks", method="PUT")
    urllib.request.urlopen(create).close()
    yield endpoint
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    if request.param == "directory":
        return open_blobs(Settings(data_dir=tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    endpoint = request.getfixturevalue("s3_endpoint")
    query = f"region=us-east-1&endpoint={endpoint}"
    # A prefix per test: the server's bucket is one for all of them.
    return open_blobs(Settings(blobs_url=f"s3://looks/{tmp_path.name}?{query}"))


async def listed(blobs: Blobs, tenant_id: str, kind: str | None = None) -> list[BlobKey]:
    return sorted([info.key async for info in blobs.list(tenant_id, kind)])


async def test_what_was_put_comes_back_whole_and_in_pieces(blobs: Blobs) -> None:
    data = PICTURE * (3 * CHUNK_BYTES // len(PICTURE))
    key = await blobs.put("acme", "input", data)
    assert key == BlobKey("acme", "input", hash_bytes(data))
    assert await blobs.get(key) == data
    pieces = [piece async for piece in blobs.stream(key)]
    assert b"".join(pieces) == data
    assert len(pieces) > 1


async def test_nothing_at_all_can_be_kept(blobs: Blobs) -> None:
    key = await blobs.put("acme", "input", b"")
    assert await blobs.get(key) == b""


async def test_data_that_are_not_what_they_are_said_to_be_are_not_kept(blobs: Blobs) -> None:
    with pytest.raises(InvalidRequest):
        await blobs.put("acme", "input", PICTURE, sha256=hash_bytes(b"other"))
    assert await listed(blobs, "acme") == []
    key = await blobs.put("acme", "input", PICTURE, sha256=hash_bytes(PICTURE))
    assert await listed(blobs, "acme") == [key]


async def test_the_same_put_many_times_at_once_is_one_whole_blob(blobs: Blobs) -> None:
    keys = await asyncio.gather(*(blobs.put("acme", "input", PICTURE) for _ in range(16)))
    assert await listed(blobs, "acme") == [keys[0]]
    assert await blobs.get(keys[0]) == PICTURE


async def test_tenants_with_the_same_picture_have_each_their_own(blobs: Blobs) -> None:
    mine = await blobs.put("acme", "input", PICTURE)
    await blobs.put("acme2", "input", PICTURE)
    assert await listed(blobs, "acme") == [mine]
    await blobs.delete(mine)
    assert await listed(blobs, "acme") == []
    assert len(await listed(blobs, "acme2")) == 1


async def test_listing_tells_kinds_apart_and_knows_sizes(blobs: Blobs) -> None:
    await blobs.put("acme", "input", PICTURE)
    result = await blobs.put("acme", "result", b"12345")
    assert await listed(blobs, "acme", "result") == [result]
    assert len(await listed(blobs, "acme")) == 2
    assert [info.num_bytes async for info in blobs.list("acme", "result")] == [5]


async def test_deleted_is_gone_and_deleting_again_is_no_error(blobs: Blobs) -> None:
    key = await blobs.put("acme", "input", PICTURE)
    await blobs.delete(key)
    await blobs.delete(key)
    with pytest.raises(NotFound):
        await blobs.get(key)
    with pytest.raises(NotFound):
        async for _ in blobs.stream(key):
            pass


@pytest.mark.parametrize(
    "parts",
    [
        ("..", "input", "0" * 64),
        ("acme/../other", "input", "0" * 64),
        ("", "input", "0" * 64),
        ("acme", "", "0" * 64),
        ("acme", "input", "../../etc/passwd"),
        ("acme", "input", "0" * 64 + "\n"),
        ("acme", "input", "A" * 64),
    ],
)
def test_name_that_leads_elsewhere_is_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidRequest):
        BlobKey(*parts)


def test_path_is_read_back_as_its_key() -> None:
    key = BlobKey("acme", "input", "0" * 64)
    assert BlobKey.parse(key.path) == key
    with pytest.raises(InvalidRequest):
        BlobKey.parse("acme/input")


@pytest.mark.parametrize("tenant_id", ["", "..", "acme/", "*"])
async def test_listing_of_everybody_is_refused(blobs: Blobs, tenant_id: str) -> None:
    with pytest.raises(InvalidRequest):
        await listed(blobs, tenant_id)


async def test_blob_that_was_altered_on_disk_is_not_handed_out(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    key = await blobs.put("acme", "input", PICTURE)
    (tmp_path / "blobs" / key.path).write_bytes(PICTURE[:-1])
    with pytest.raises(Sm4llError, match="damaged"):
        await blobs.get(key)
    with pytest.raises(Sm4llError, match="damaged"):
        async for _ in blobs.stream(key):
            pass
    await blobs.put("acme", "input", PICTURE)
    assert await blobs.get(key) == PICTURE


async def test_half_written_blob_of_a_crash_is_not_listed(tmp_path: Path) -> None:
    """The library writes beside the name, ends that name with #1, and renames."""
    blobs = open_blobs(Settings(data_dir=tmp_path))
    key = await blobs.put("acme", "input", PICTURE)
    (tmp_path / "blobs" / f"{key.path}#1").write_bytes(PICTURE[:10])
    assert await listed(blobs, "acme") == [key]


async def test_bucket_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    endpoint = f"http://127.0.0.1:{free_port()}"
    blobs = open_blobs(Settings(blobs_url=f"s3://looks?region=us-east-1&endpoint={endpoint}"))
    with pytest.raises(StoreUnavailable) as caught:
        await blobs.put("acme", "input", PICTURE)
    assert caught.value.retry_after_s


@pytest.mark.parametrize(
    "url", ["gs://looks", "s3://", "s3://looks?colour=red", "s3://key:secret@looks"]
)
def test_store_that_is_not_spoken_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix") as caught:
        open_blobs(Settings(blobs_url=url))
    assert "secret" not in str(caught.value)


def test_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        open_blobs(Settings(blobs_url=str(tmp_path / "file" / "blobs")))


async def test_directory_by_path_and_by_url_is_the_same(tmp_path: Path) -> None:
    key = await open_blobs(Settings(blobs_url=str(tmp_path))).put("acme", "input", PICTURE)
    assert await open_blobs(Settings(blobs_url=f"file://{tmp_path}")).get(key) == PICTURE
