"""The only module that touches the disk or the object store behind files."""

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.files import File as DjangoFile
from django.core.files.storage import FileSystemStorage, default_storage, storages
from django.core.files.uploadedfile import UploadedFile

_BLOCK = 1 << 20  # bytes moved at a time
_KERNEL_BLOCK = 1 << 30  # bytes that the kernel is asked to copy at a time
_COPY_SECONDS = 60.0  # that a copy is kept without being asked for
_KEPT_COPIES = 2  # of stored files, in each process: the running batch's and the next one's
_REAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}  # the others say only that the kernel can't do this copy


_copies: dict[str, tuple[int, float]] = {}  # descriptors and their last use by name, the last used at the end
_copying = threading.Lock()


class StorageFull(OSError):
    """The storage has no room, or can't be written."""


class Writer(Protocol):
    """What `writing` hands out."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_local() -> bool:
    # Not default_storage, which is nothing yet before its first use.
    return isinstance(storages["default"], FileSystemStorage)


def _publish(temporary: Path, name: str) -> None:
    """Give finished bytes their name; on local disk they are durable before the name exists."""
    if _is_local():
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        target = Path(default_storage.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        # A folder that was made for it is itself an entry of the one above.
        root = Path(default_storage.path(""))
        for folder in target.parents:
            _fsync_folder(folder)
            if folder == root:
                break
        return
    with temporary.open("rb") as stream:
        default_storage.save(name, DjangoFile(stream))  # replaces what has the name, at once
    temporary.unlink()


def prepare() -> None:
    """Make the folder for files on their way; one that can't be made shows at the first upload."""
    with suppress(OSError):
        Path(settings.FILE_UPLOAD_TEMP_DIR).mkdir(parents=True, exist_ok=True)


def _temporary() -> Path:
    prepare()
    descriptor, path = tempfile.mkstemp(dir=settings.FILE_UPLOAD_TEMP_DIR)
    os.close(descriptor)
    return Path(path)


def part_name(part_id: str) -> str:
    """Return an upload part's name in the storage."""
    return f"parts/{part_id[-2:]}/{part_id}"


def file_name(file_id: str) -> str:
    """Return an uploaded file's name in the storage, spread over folders by the id's last characters."""
    return f"{file_id[-2:]}/{file_id}"


def keep_upload(upload: "UploadedFile[Any]", name: str) -> None:
    """Store an uploaded file's bytes under the name, durably; raise StorageFull when they can't be."""
    try:
        if hasattr(upload, "temporary_file_path"):
            # Flushed before it is renamed: Django may still hold the last bytes in the file object's buffer.
            upload.flush()
            temporary = Path(upload.temporary_file_path())
            _publish(temporary, name)
            # Django removes the temporary file when the request ends and ignores that it is gone.
            return
        with writing(name) as out:
            for block in upload.chunks(_BLOCK):
                out.write(block)
    except OSError as error:
        raise StorageFull(error.errno, error.strerror or "storage failed") from error


@contextmanager
def writing(name: str) -> Iterator[Writer]:
    """Write a file that appears under its name, whole and durable, when the block ends without an error."""
    temporary = _temporary()
    try:
        with temporary.open("wb", buffering=_BLOCK) as stream:
            yield stream
        _publish(temporary, name)
    except OSError as error:
        raise StorageFull(error.errno, error.strerror or "storage failed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def joining(sources: Sequence[str], name: str) -> Iterator[BinaryIO]:
    """Join stored files into a new one: yield it for a last look, and publish it when the block ends without an error.

    Raises FileNotFoundError for a source that is gone, StorageFull when there is no room.
    """
    temporary = _temporary()
    try:
        with temporary.open("w+b", buffering=0) as out:
            try:
                for source in sources:
                    with opened(source) as part:
                        _append(part, out)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageFull(error.errno, error.strerror or "storage failed") from error
            out.seek(0)
            yield cast(BinaryIO, out)
        try:
            _publish(temporary, name)
        except OSError as error:
            raise StorageFull(error.errno, error.strerror or "storage failed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _append(source: BinaryIO, out: BinaryIO) -> None:
    """Append a whole file; the kernel copies it, or shares its blocks, where both lie on one file system."""
    try:
        descriptor = source.fileno()
        while os.copy_file_range(descriptor, out.fileno(), _KERNEL_BLOCK):
            continue
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _REAL_FAULTS:
            raise
    # All of it from a store that is no file system, nothing otherwise.
    while block := source.read(_BLOCK):
        left = memoryview(block)
        while left:
            left = left[out.write(left) :]


def opened(name: str) -> BinaryIO:
    """Open a stored file for reading; raise FileNotFoundError."""
    return cast(BinaryIO, default_storage.open(name, "rb"))


def is_empty(folder: str = "") -> bool:
    """Return whether nothing is stored."""
    try:
        folders, files = default_storage.listdir(folder)
    except FileNotFoundError:
        return True
    return not files and all(is_empty(f"{folder}/{name}" if folder else name) for name in folders)


def size(name: str) -> int:
    """Return a stored file's bytes; raise FileNotFoundError."""
    return default_storage.size(name)


def local_descriptor(name: str, *, again: bool = False) -> int:
    """Return a descriptor that can be read at any offset; what lies elsewhere is copied to an unnamed local file.

    `again` keeps the copy for whoever asks next, until `drop_copies`: each shard of a batch opens the same file.
    """
    if _is_local():
        return os.open(default_storage.path(name), os.O_RDONLY)
    if not again:
        return _copied(name)
    with _copying:
        copy, _ = _copies.pop(name, (-1, 0.0))
        _copies[name] = copy if copy >= 0 else _copied(name), time.monotonic()
        while len(_copies) > _KEPT_COPIES:
            os.close(_copies.pop(next(iter(_copies)))[0])
        return os.dup(_copies[name][0])


def drop_copies() -> None:
    """Forget copies that nobody asked for lately: a file that is deleted must not live on in them."""
    with _copying:
        for name in [name for name, (_, at) in _copies.items() if time.monotonic() - at > _COPY_SECONDS]:
            os.close(_copies.pop(name)[0])


def _copied(name: str) -> int:
    temporary = _temporary()
    try:
        with opened(name) as source, temporary.open("wb") as out:
            while block := source.read(_BLOCK):
                out.write(block)
        return os.open(temporary, os.O_RDONLY)
    finally:
        # The open descriptor keeps the bytes until it is closed, also by a crash.
        temporary.unlink(missing_ok=True)


def free_bytes() -> int:
    """Return the room on the disk that files go to, or through; raise OSError."""
    return shutil.disk_usage(settings.FILE_UPLOAD_TEMP_DIR).free


def probe() -> None:
    """Write a byte where files arrive, keep nothing of it, and look at the bucket; raise OSError if that can't be."""
    with tempfile.TemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR) as stream:
        stream.write(b"x")
        stream.flush()
    if not _is_local():
        storages["default"].check()  # type: ignore[attr-defined]


def delete_abandoned(older_than_seconds: float) -> int:
    """Remove what processes that were killed left in the folder for files on their way; return how many files."""
    limit, count = time.time() - older_than_seconds, 0
    with suppress(FileNotFoundError):
        for entry in os.scandir(settings.FILE_UPLOAD_TEMP_DIR):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                    os.unlink(entry.path)
                    count += 1
    return count


def delete(name: str) -> None:
    """Remove a stored file; one that is gone is no error."""
    default_storage.delete(name)


async def stream(source: BinaryIO) -> AsyncIterator[bytes]:
    """Yield an open file in blocks without holding it in memory or blocking the event loop; close it at the end."""
    try:
        while block := await sync_to_async(source.read, thread_sensitive=False)(_BLOCK):
            yield block
    finally:
        source.close()
