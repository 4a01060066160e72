"""The index of an ended batch's lines finds each line, by place, by fault and by name."""

import io

from hypothesis import given
from hypothesis import strategies as st

from batches import line_index
from batches.line_index import ERROR, OUTPUT, SIZE, Entry, LineIndex

NUMBER = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(NUMBER, st.integers(0, 2**63), st.sampled_from([OUTPUT, ERROR]), TEXT)
def test_what_is_packed_is_read_back(line: int, offset: int, file: int, custom_id: str) -> None:
    entry = Entry(line, file, offset, 9, 8, 7, 200, 1, 15, 4, 3, 2, "engine_error", "stop", custom_id)
    assert LineIndex(io.BytesIO(line_index.pack(entry))).page(0, 1) == [entry]


def _index(entries: list[Entry]) -> LineIndex:
    return LineIndex(io.BytesIO(b"".join(map(line_index.pack, entries))))


def test_pages_filters_and_names_agree_with_the_lines() -> None:
    lines = [
        Entry(i, i % 7 == 0, i * 10, 10, i * 5, 5, custom_id=f"request-{i}", finish_reason="stop")
        for i in range(1, 201)
    ]
    index = _index(lines)
    assert index.count == 200
    assert index.page(195, 50) == lines[195:]
    assert index.page(900, 50) == []
    assert index.at(index.in_file(ERROR)) == [line for line in lines if line.line % 7 == 0]
    assert [entry.line for entry in index.at(index.named("quest-19"))] == [19, *range(190, 200)]
    assert index.named("nobody") == []
    assert list(index.entries()) == lines
    assert index.reasons() == {"stop": 200}


def test_a_long_name_is_cut_and_no_name_is_found_across_two_records() -> None:
    index = _index([Entry(1, 0, 0, 1, 0, 1, custom_id="x" * 500), Entry(2, 0, 1, 1, 1, 1, custom_id="b")])
    assert [len(entry.custom_id) for entry in index.entries()] == [line_index.ID_BYTES, 1]
    assert index.named("x") == [0]
    assert index.named("xb") == []


def test_the_index_belongs_to_both_files_and_no_other() -> None:
    for name in ("batches/batch_1_output.jsonl", "batches/batch_1_error.jsonl"):
        assert line_index.batch_of(name) == "batch_1"
    assert line_index.batch_of("ab/file-1") is None


def test_why_an_answer_ended_is_read_without_parsing_it() -> None:
    assert line_index.finish_reason(b'{"choices":[{"finish_reason": "length"}]}') == "length"
    assert line_index.finish_reason(b'{"data":[]}') == ""
    assert SIZE < 200
