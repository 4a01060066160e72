"""Lines are found wherever the blocks of a stream end."""

import io

import pytest

from files import jsonl


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("text", [b"", b"a", b"a\n", b"a\nbb\n\nccc", b"\n\n", b"a\r\nb\r\n", "é\n日本\n".encode()])
def test_every_line_has_its_number_offset_and_bytes(text: bytes, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", block)
    found = list(jsonl.iter_lines(io.BytesIO(text)))
    assert [raw for _, _, raw in found] == text.split(b"\n")[: len(found)]
    assert b"\n".join(raw for _, _, raw in found if raw is not None) == text.removesuffix(b"\n")
    for number, (reported, offset, raw) in enumerate(found, 1):
        assert reported == number
        assert raw is not None
        assert text[offset : offset + len(raw)] == raw


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_a_line_over_the_limit_is_none_and_those_around_it_are_found(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", block)
    found = list(jsonl.iter_lines(io.BytesIO(b"ok\n" + b"x" * 50 + b"\nend"), max_line_bytes=10))
    assert found == [(1, 0, b"ok"), (2, 3, None), (3, 54, b"end")]
