"""Lines are found wherever the blocks of a stream end."""

import io

import pytest

from files import jsonl


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a",
        b"a\n",
        b"a\nbb\n\nccc",
        b"\n\n",
        b"a\r\nb\r\n",
        "é\n日本\n".encode(),
        b"\n \n\t\na \n\n  b\n\n \n",
        b"a\n\n \r",
    ],
)
def test_every_line_has_its_number_offset_and_bytes(text: bytes, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", block)
    lines, wanted, offset = [line + b"\n" for line in text.removesuffix(b"\n").split(b"\n")] if text else [], [], 0
    for number, line in enumerate(lines, 1):
        if line.strip() or number == len(lines):
            wanted.append((number, offset, line.removesuffix(b"\n")))
        offset += len(line)
    assert list(jsonl.iter_lines(io.BytesIO(text))) == wanted


def test_blank_lines_cost_nothing_but_their_bytes() -> None:
    text = b"a\n" + b" \n\n" * (2 << 20) + b"b\n" + b"\n" * (4 << 20)
    found = list(jsonl.iter_lines(io.BytesIO(text)))
    assert found == [(1, 0, b"a"), ((4 << 20) + 2, (6 << 20) + 2, b"b"), ((8 << 20) + 2, len(text) - 1, b"")]


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_a_line_over_the_limit_is_none_and_those_around_it_are_found(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", block)
    found = list(jsonl.iter_lines(io.BytesIO(b"ok\n" + b"x" * 50 + b"\nend"), max_line_bytes=10))
    assert found == [(1, 0, b"ok"), (2, 3, None), (3, 54, b"end")]
