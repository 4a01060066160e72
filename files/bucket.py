"""An S3 bucket as the storage: django-storages' backend, read as a stream, and failing as a file system does."""

import errno
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from storages.backends.s3 import S3Storage

_CONNECT_SECONDS = 5
_READ_SECONDS = 60  # of silence
_ATTEMPTS = 5  # of one request, with growing waits between them
_CONNECTIONS = 32  # kept open by one process
_BLOCK = 1 << 20  # bytes asked for at a time
_GONE = ("NoSuchKey", "404")


@contextmanager
def _told_as_os_errors(name: str) -> Iterator[None]:
    """Raise FileNotFoundError for an object that is gone, and OSError for what else goes wrong."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _GONE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        raise OSError(errno.EIO, f"the bucket refused it: {code}", name) from error
    except (BotoCoreError, Boto3Error) as error:
        raise OSError(errno.EIO, f"the bucket can't be reached: {type(error).__name__}", name) from error


class _Object(io.RawIOBase):
    """An object's bytes: one request for as long as they are read in their order, another after a seek."""

    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self._position = 0
        with _told_as_os_errors(key):
            answer = client.get_object(Bucket=bucket, Key=key)
        self._size: int = answer["ContentLength"]
        self._body: Any = answer["Body"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset != self._position:
            self._drop()
            self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        try:
            data = self._read(wanted)
        except OSError:
            # A reader may take hours, and a connection that nothing is read from is cut off.
            data = self._read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        try:
            with _told_as_os_errors(self._key):
                if self._body is None:
                    rest = f"bytes={self._position}-"
                    self._body = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=rest)["Body"]
                data: bytes = self._body.read(wanted)
            if not data:
                raise OSError(errno.EIO, "the bucket gave less than it announced", self._key)
            return data
        except OSError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()


class Bucket(S3Storage):  # type: ignore[misc]  # django-storages has no types
    """Objects of one bucket, below a prefix if one is given."""

    def __init__(self, bucket_name: str, location: str = "") -> None:
        # A server with an address of its own seldom has a host name for each bucket.
        own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": "path" if own else "auto"},
        )
        super().__init__(bucket_name=bucket_name, location=location, client_config=config)
        self._lock = threading.Lock()
        self._shared: tuple[int, Any] = (0, None)

    @property
    def connection(self) -> Any:
        """The process's connection: each request has a thread of its own, and making one takes a tenth of a second."""
        with self._lock:
            if self._shared[0] != os.getpid():
                self._shared = os.getpid(), self._create_session().resource("s3", config=self.client_config)
            return self._shared[1]

    @property
    def bucket(self) -> Any:
        """The bucket, of this process's connection."""
        return self.connection.Bucket(self.bucket_name)

    def check(self) -> None:
        """Look whether the bucket is there and lets us in; raise OSError."""
        with _told_as_os_errors(self.bucket_name):
            self.connection.meta.client.head_bucket(Bucket=self.bucket_name)

    def _open(self, name: str, mode: str = "rb") -> Any:
        client = self.connection.meta.client
        return io.BufferedReader(_Object(client, self.bucket_name, self._normalize_name(name)), _BLOCK)

    def _save(self, name: str, content: Any) -> str:
        with _told_as_os_errors(name):
            return str(super()._save(name, content))

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone is no error."""
        with _told_as_os_errors(name):
            super().delete(name)

    def size(self, name: str) -> int:
        """Return an object's bytes; raise FileNotFoundError."""
        with _told_as_os_errors(name):
            return int(super().size(name))

    def listdir(self, name: str) -> tuple[list[str], list[str]]:
        """Return the folders and the objects below a name."""
        with _told_as_os_errors(name):
            folders, files = super().listdir(name)
            return folders, files
