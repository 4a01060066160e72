"""What came of one line. Pure: no Django."""

from typing import NamedTuple


class Outcome(NamedTuple):
    """A finished line on its way to the database; the fields are columns of `Result`."""

    batch_id: str
    line: int
    custom_id: str | None  # None for a bad line that has none
    status_code: int | None = None
    request_id: str = ""
    body: bytes | None = None
    error_code: str = ""
    error_message: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    milliseconds: int = 0
    attempts: int = 1

    @property
    def succeeded(self) -> bool:
        """Whether the line belongs in the output file."""
        return self.status_code == 200 and not self.error_code

    @property
    def failure_code(self) -> str:
        """Why the line failed: our code, or the engine's status; empty when it succeeded."""
        return self.error_code or ("" if self.succeeded else f"http_{self.status_code}")
