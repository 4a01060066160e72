"""What crashes and lost races leave of files and parts is found and removed."""

import os
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.utils import timezone

from batches.sweep import delete_unneeded_bytes
from files import parts, storage, uploads
from files.models import ARRIVAL_TIME, File, NeverArrived, Purpose, Upload, UploadPart, UploadState
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

pytestmark = pytest.mark.django_db


def _upload(size: int = 6) -> Upload:
    body = {"bytes": size, "filename": "f", "mime_type": "text/plain", "purpose": Purpose.FINE_TUNE.value}
    return parts.begin(Project.default(), body)


def _data(data: bytes) -> TemporaryUploadedFile:
    file = TemporaryUploadedFile("part", "", len(data), None)
    file.write(data)
    return file


def _is_stored(path: str) -> bool:
    try:
        storage.opened(path).close()
    except FileNotFoundError:
        return False
    return True


def test_a_part_whose_bytes_never_came_is_removed_after_a_day_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    upload = _upload()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(uploads, "keep", crash)
        with pytest.raises(KeyboardInterrupt):
            parts.add(upload, _data(b"abc"))
    part = UploadPart.objects.get(upload=upload)
    assert not part.stored
    # The crash may as well have come a moment later, when the bytes had their name.
    with storage.writing(part.path) as out:
        out.write(b"abc")
    parts.sweep(timezone.now())
    assert _is_stored(part.path)
    parts.sweep(timezone.now() + ARRIVAL_TIME)
    assert not _is_stored(part.path)
    assert not UploadPart.objects.filter(pk=part.pk).exists()


def test_a_part_that_was_not_stored_whole_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    upload = _upload(3)
    with monkeypatch.context() as patched:
        patched.setattr(uploads, "keep", lambda *_: None)
        part = parts.add(upload, _data(b"abc"))
    with pytest.raises(ApiError) as refused:
        parts.complete(upload, {"part_ids": [part.pk]})
    assert refused.value.status_code == 500
    assert not File.objects.exists()
    assert Upload.objects.get(pk=upload.pk).state == UploadState.PENDING


def test_parts_that_a_crash_left_after_the_end_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    upload = _upload(3)
    part = parts.add(upload, _data(b"abc"))
    with monkeypatch.context() as patched:
        patched.setattr(parts, "_drop_parts", lambda _: None)
        parts.complete(upload, {"part_ids": [part.pk]})
    assert _is_stored(part.path)
    parts.sweep(timezone.now())
    assert not _is_stored(part.path)
    assert upload.file is not None
    assert storage.opened(upload.file.path).read() == b"abc"


def test_the_sweep_ends_an_upload_after_its_hour_and_forgets_it_a_day_later() -> None:
    upload = _upload()
    part = parts.add(upload, _data(b"abc"))
    parts.sweep(upload.expires_at - timedelta(seconds=1))
    assert Upload.objects.get(pk=upload.pk).state == UploadState.PENDING
    parts.sweep(upload.expires_at)
    assert Upload.objects.get(pk=upload.pk).state == UploadState.EXPIRED
    assert not _is_stored(part.path)
    parts.sweep(upload.expires_at + ARRIVAL_TIME)
    assert not Upload.objects.filter(pk=upload.pk).exists()


@pytest.mark.parametrize("state", [UploadState.CANCELLED, UploadState.EXPIRED])
def test_an_upload_that_ends_while_its_parts_are_joined_gets_no_file(
    monkeypatch: pytest.MonkeyPatch, state: UploadState
) -> None:
    upload = _upload(3)
    part = parts.add(upload, _data(b"abc"))
    check = uploads.check_first_line

    def meanwhile(stream: BinaryIO, purpose: str) -> None:
        check(stream, purpose)
        parts._end(Upload.objects.get(pk=upload.pk), state)

    monkeypatch.setattr(uploads, "check_first_line", meanwhile)
    with pytest.raises(ApiError, match=state.value):
        parts.complete(upload, {"part_ids": [part.pk]})
    assert not File.objects.exists()
    assert Upload.objects.get(pk=upload.pk).file is None


def test_a_completion_whose_parts_were_removed_by_a_faster_one_answers_with_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = _upload(3)
    part = parts.add(upload, _data(b"abc"))
    body = {"part_ids": [part.pk]}
    join, faster = parts._join, Upload.objects.get(pk=upload.pk)

    def second(paths: list[str], file: File, md5: str) -> None:
        monkeypatch.setattr(parts, "_join", join)
        parts.complete(faster, body)
        join(paths, file, md5)

    monkeypatch.setattr(parts, "_join", second)
    assert parts.complete(upload, body).file == faster.file
    assert faster.file is not None
    assert File.objects.count() == 1


def test_parts_are_bounded_in_bytes_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    upload = _upload()
    monkeypatch.setattr(parts, "MAX_UPLOAD_BYTES", 5)
    parts.add(upload, _data(b"abc"))
    with pytest.raises(ApiError, match="at most"):
        parts.add(upload, _data(b"def"))
    monkeypatch.setattr(parts, "MAX_PARTS", 1)
    with pytest.raises(ApiError, match="at most"):
        parts.add(upload, _data(b"g"))
    assert UploadPart.objects.filter(upload=upload).count() == 1


def test_a_file_whose_bytes_never_came_is_seen_by_nobody_and_removed_after_a_day() -> None:
    file = uploads.announce(Project.default(), Purpose.FINE_TUNE, "f", 3, None)
    with storage.writing(file.path) as out:
        out.write(b"abc")
    assert not File.objects.visible_to(file.project).exists()
    delete_unneeded_bytes()
    assert _is_stored(file.path)
    File.objects.filter(pk=file.pk).update(deleted_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(NeverArrived):
        file.arrive()
    delete_unneeded_bytes()
    assert not _is_stored(file.path)
    assert not File.objects.exists()


def test_temporary_files_of_killed_processes_are_removed_after_a_day() -> None:
    folder = Path(settings.FILE_UPLOAD_TEMP_DIR)
    old, new = folder / "old", folder / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    storage.delete_abandoned(ARRIVAL_TIME.total_seconds())
    assert (old.exists(), new.exists()) == (False, True)
    new.unlink()


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel copy", "plain copy"])
def test_files_are_joined_whole_whoever_copies_them(monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if not kernel:

        def refuse(*_: object) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    pieces = [os.urandom(size) for size in (1 << 20, 0, 3, (1 << 20) + 1)]
    for number, piece in enumerate(pieces):
        with storage.writing(f"piece/{number}") as out:
            out.write(piece)
    with storage.joining([f"piece/{number}" for number in range(4)], "whole") as joined:
        assert joined.read() == b"".join(pieces)
    assert storage.opened("whole").read() == b"".join(pieces)
    with pytest.raises(FileNotFoundError), storage.joining(["piece/0", "piece/none"], "half"):
        pass
    assert not _is_stored("half")
