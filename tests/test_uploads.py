"""Twenty uploads of 20 MB at once take a router less than 1 GB: they wait on disk."""

import base64
from typing import BinaryIO

import pytest

from serve.api.forms import read_reference
from serve.errors import Overloaded
from serve.imaging.spool import SPOOL_ABOVE_BYTES, SpooledBody, SpooledFile, read_encoded
from tests.bench.uploads import make_upload, running, send_all


def test_twenty_uploads_of_20_mb_take_less_than_one_gigabyte() -> None:
    picture = make_upload(20_000_000, 1.0)
    with running() as (url, pid):
        # Read to the end, hashed, read again and refused: nobody serves this version.
        answers = send_all(url, pid, picture, "unheard-of", 20, Idempotency_Key="upload-")
    assert answers.statuses == {404: 20}
    assert answers.peak_bytes < 1e9
    assert answers.peak_bytes - answers.base_bytes < 10 * len(picture)


@pytest.mark.parametrize("num_bytes", [0, 10, SPOOL_ABOVE_BYTES, SPOOL_ABOVE_BYTES + 1])
def test_a_body_is_read_as_it_was_written(num_bytes: int) -> None:
    written, body, file = bytes(range(256)) * (num_bytes // 256 + 1), SpooledBody(), SpooledFile()
    written = written[:num_bytes]
    for start in range(0, num_bytes, 100_000):
        body.write(written[start : start + 100_000])
        file.write(memoryview(written)[start : start + 100_000])
    assert b"".join(body.pieces()) == b"".join(body.pieces()) == written
    assert read_encoded(file) == written
    assert body.num_bytes == file.num_bytes == num_bytes


def test_a_long_data_uri_is_read_in_pieces() -> None:
    data = bytes(range(256)) * 8000
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert read_reference("person", uri) == data


def test_a_full_disk_is_a_want_of_room_and_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(buffering: int) -> BinaryIO:
        return open("/dev/full", "wb", buffering=buffering)

    monkeypatch.setattr("serve.imaging.spool.TemporaryFile", open_full)
    with pytest.raises(Overloaded, match="No space left"):
        SpooledBody().write(bytes(SPOOL_ABOVE_BYTES + 1))
