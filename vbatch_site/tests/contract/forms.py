"""Send uploads and look at what they leave behind."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from batches.line_index import batch_of, name_for
from vbatch_site.tests.servers import Server, wait_until

Answer = tuple[int, dict[str, str], Any]
Part = tuple[str, str | None, bytes | str]

LINE = b'{"custom_id": "1"}\n'
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"


def multipart(parts: Sequence[Part], edge: str = "edge") -> bytes:
    """Return a form; a part without a filename is a plain field."""
    body = b""
    for name, filename, content in parts:
        data = content.encode() if isinstance(content, str) else content
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"'
        if filename is not None:
            head += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
        body += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{edge}--\r\n".encode()


def send_form(server: Server, body: bytes | Iterator[bytes], *, edge: str = "edge", path: str = "/v1/files") -> Answer:
    """Post a form; an iterator goes out chunked and without a Content-Length."""
    return server.request("POST", path, body, headers={"Content-Type": f"multipart/form-data; boundary={edge}"})


def upload(
    server: Server, content: bytes, purpose: str = "batch", filename: str = "input.jsonl", **lifetime: str
) -> Answer:
    """Post a file as Python's SDK does: fields first."""
    edge = uuid4().hex
    fields: list[Part] = [("purpose", None, purpose)]
    fields += [(f"expires_after[{key}]", None, value) for key, value in lifetime.items()]
    return send_form(server, multipart([*fields, ("file", filename, content)], edge), edge=edge)


def assert_refused(answer: Answer, status: int, message: str | None = None, **wanted: str | None) -> None:
    """Check that an answer is a refusal in the envelope, with this status and these of its four keys."""
    got, headers, body = answer
    assert got == status, body
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert set(body) - {"detail"} == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    kind = "requests" if status == 429 else "invalid_request_error"
    assert body["error"]["type"] == (kind if status < 500 else "server_error")
    assert body["error"]["message"]
    if message is not None:
        assert body["error"]["message"] == message
    for key, value in wanted.items():
        assert body["error"][key] == value, body


def _paths(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def uploaded_files(server: Server) -> int:
    """Return how many uploaded files can be seen; other tests' batches make output files meanwhile."""
    # Nor do those count that have expired: the sweep removes them when it comes round.
    seen = (
        "SELECT count(*) FROM files_file WHERE deleted_at IS NULL AND purpose <> 'batch_output'"
        " AND coalesce(expires_at > now(), true)"
    )
    return int(server.query(seen)[0][0])


def assert_nothing_left(server: Server) -> None:
    """Check that no upload lies around: not in the folder where files arrive, and none in the storage without a row."""
    wait_until(lambda: not _paths(server.home / "tmp"))

    def every_file_has_a_row() -> bool:
        stored = _paths(server.home / "files")
        rows = server.query("SELECT path FROM files_file UNION SELECT path FROM files_uploadpart")
        known = {path for (path,) in rows}
        # The index of a batch's lines lies beside its files and goes with them.
        return stored <= known | {name_for(batch_id) for path in known if (batch_id := batch_of(path))}

    # A batch of another test that is being finalized has its file for a moment before it has the row.
    wait_until(every_file_has_a_row)
