"""Files in an S3 bucket: what the storage promises of a disk is so there, too."""

import io
import os
from typing import Any

import pytest
from botocore.exceptions import ResponseStreamingError
from django.core.files.storage import storages
from django.utils import timezone

from files import storage
from files.bucket import Bucket
from files.tests.s3 import S3
from files.watch import storage_verdict

DATA = os.urandom(3 << 20)


@pytest.fixture
def stored(bucket: dict[str, str], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The storage in a bucket, as this process uses it."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    name, _, prefix = bucket["VBATCH_S3_BUCKET"].partition("/")
    options = {"bucket_name": name, "location": prefix}
    settings.STORAGES = {**settings.STORAGES, "default": {"BACKEND": "files.bucket.Bucket", "OPTIONS": options}}
    monkeypatch.setattr(storage, "_copies", {})
    storage.prepare()
    found = storages["default"]
    assert isinstance(found, Bucket)
    return found


def test_a_file_in_a_bucket_reads_like_one_on_a_disk(stored: Bucket) -> None:
    with storage.writing("ab/file-ab") as out:
        out.write(DATA)
    assert storage.size("ab/file-ab") == len(DATA)
    assert not storage.is_empty()
    with storage.opened("ab/file-ab") as there, io.BytesIO(DATA) as here:
        for seek, whence, read in (
            (0, 0, 10),
            (2_000_000, 0, 500_000),
            (-5, 1, 9),
            (-100, 2, -1),
            (0, 0, -1),
            (9, 2, 1),
        ):
            assert there.seek(seek, whence) == here.seek(seek, whence)
            assert there.read(read) == here.read(read)
    with storage.joining(["ab/file-ab", "ab/file-ab"], "joined") as joined:
        assert joined.read() == DATA + DATA
    assert storage.size("joined") == 2 * len(DATA)
    with storage.writing("joined") as out:
        out.write(b"")
    with storage.opened("joined") as stream:
        assert stream.read() == b"", "the name has its new bytes"
    for name in ("joined", "ab/file-ab", "never"):
        storage.delete(name)
        with pytest.raises(FileNotFoundError):
            storage.opened(name)
        with pytest.raises(FileNotFoundError):
            storage.size(name)
        with pytest.raises(FileNotFoundError):
            storage.local_descriptor(name)


def test_a_worker_fetches_a_file_once_for_all_its_shards(stored: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        with storage.writing(name) as out:
            out.write(name.encode())
    first, again = storage.local_descriptor("one", again=True), storage.local_descriptor("one", again=True)
    storage.delete("one")
    last = [storage.local_descriptor(name, again=True) for name in ("one", "two", "three")]
    assert [os.pread(descriptor, 10, 0) for descriptor in (first, again, *last)] == [
        b"one", b"one", b"one", b"two", b"three",
    ]  # fmt: skip
    for descriptor in (first, again, *last):
        os.close(descriptor)
    with pytest.raises(FileNotFoundError):  # not kept beside two that were used since
        storage.local_descriptor("one", again=True)
    storage.delete("three")
    storage.drop_copies()
    os.close(storage.local_descriptor("three", again=True))
    monkeypatch.setattr(storage, "_COPY_SECONDS", 0.0)
    storage.drop_copies()
    with pytest.raises(FileNotFoundError):
        storage.local_descriptor("three", again=True)


class Cut:
    """A body whose connection is gone."""

    def read(self, size: int) -> bytes:
        raise ResponseStreamingError(error="cut")

    def close(self) -> None:
        return


def test_a_download_goes_on_after_its_connection_was_cut(stored: Bucket) -> None:
    with storage.writing("cut") as out:
        out.write(DATA)
    with storage.opened("cut") as stream:
        begun = stream.read(1 << 20)
        stream.raw._body = Cut()  # type: ignore[attr-defined]
        assert begun + stream.read() == DATA
    storage.delete("cut")


def test_a_bucket_that_is_away_is_not_ready_and_takes_no_file(stored: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_verdict(timezone.now()) == "ok"
    stored.bucket_name = "nobodys"
    assert storage_verdict(timezone.now()) == "failed"
    with pytest.raises(storage.StorageFull, match="the bucket refused it: NoSuchBucket"), storage.writing("x") as out:
        out.write(b"x")
    with pytest.raises(OSError, match="NoSuchBucket") as raised:
        storage.opened("x")
    assert not isinstance(raised.value, FileNotFoundError), "a file that may be there is not called gone"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{S3().port}")
    gone = Bucket("nobodys")
    gone.client_config = gone.client_config.merge(type(gone.client_config)(retries={"total_max_attempts": 1}))
    with pytest.raises(OSError, match="the bucket can't be reached: EndpointConnectionError"):
        gone.check()
