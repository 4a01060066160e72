"""The index of result files."""

from batches.ordering import Entry, after, pack


def test_an_index_gives_back_lines_by_position_whatever_their_order_in_the_files() -> None:
    entries = [Entry(9, False, 0), Entry(2, True, 0), Entry(5, False, 1 << 40), Entry(7, True, 77)]
    packed = pack(entries)
    assert len(packed) == 12 * 4
    assert after(packed, 0, 10) == sorted(entries)
    assert after(packed, 2, 2) == [Entry(5, False, 1 << 40), Entry(7, True, 77)]
    assert after(packed, 6, 10) == [Entry(7, True, 77), Entry(9, False, 0)]
    assert after(packed, 9, 10) == after(b"", 0, 10) == []
