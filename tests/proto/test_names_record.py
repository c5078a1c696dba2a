"""Records of the names log: layout, and what reading a damaged file gives."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import UsageError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names_record import Change, Reader, Record

RECORDS = [Record(1, 7, b"first"), Record(1, 8, b"x" * 300), Record(2, 9, b"z")]
DATA = b"".join(map(names_record.pack, RECORDS))
ENDS = [0, 29, 29 + 324, 29 + 324 + 25]


def test_layout() -> None:
    packed = names_record.pack(Record(0x0102, 0x0304, b"payload"))
    checked = b"\0\0\0\7" + b"\0" * 6 + b"\1\2" + b"\0" * 6 + b"\3\4"
    crc = zlib.crc32(checked + b"payload").to_bytes(4, "big")
    assert packed == checked[:4] + crc + checked[4:] + b"payload"


def test_reading_all() -> None:
    reader = Reader(DATA)
    assert list(reader) == RECORDS
    assert reader.tail == names_record.Tail(len(DATA), 0, "")
    assert list(Reader(b"")) == []


@pytest.mark.parametrize("size", range(len(DATA)))
def test_a_file_cut_off_anywhere(size: int) -> None:
    reader = Reader(DATA[:size])
    whole = sum(1 for end in ENDS[1:] if end <= size)
    assert list(reader) == RECORDS[:whole]
    assert reader.tail.offset == ENDS[whole]
    rest = DATA[ENDS[whole] : size]
    assert reader.tail.lost == (len(rest) if any(rest) else 0)
    assert bool(reader.tail.problem) == bool(reader.tail.lost)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= change
    reader = Reader(bytes(damaged))
    intact = sum(1 for end in ENDS[1:] if end <= position)
    assert list(reader) == RECORDS[:intact]
    assert reader.tail.offset == ENDS[intact]
    assert reader.tail.lost == len(DATA) - ENDS[intact]
    assert reader.tail.problem


def test_zeros_behind_the_end_are_room_for_more() -> None:
    reader = Reader(DATA + b"\0" * 100)
    assert list(reader) == RECORDS
    assert reader.tail == names_record.Tail(len(DATA), 0, "")
    torn = Reader(DATA + b"\0" * 99 + b"x")
    assert list(torn) == RECORDS
    assert torn.tail.lost == 100


def test_a_missing_record_ends_the_reading() -> None:
    reader = Reader(DATA[: ENDS[1]] + DATA[ENDS[2] :])
    assert list(reader) == RECORDS[:1]
    assert "record 9 where 8 belongs" in reader.tail.problem


@pytest.mark.parametrize("size", [0, names_record.PAYLOAD_MAX + 1])
def test_impossible_payloads(size: int) -> None:
    with pytest.raises(UsageError):
        names_record.pack_header(1, 1, b"x" * size)


def test_changes() -> None:
    ops: list[names_record.Op] = [
        names.Create(1, b"\xff", 0o100644, 0, 0, -5),
        names_record.PutContent(3, "M00/x", 1, 2, True, None, b"m", True),
        names_record.PutContent(3, "M00/x", 1, 2, False, b"d", b""),
        names_record.MakeFile(1, b"\xff", 9, 0o644, 0, 0, 1, -2, 3, 4, b"d", "M00/x"),
        names_record.MakeFile(
            1, b"f", 9, 0o644, 0, 0, 1, 2, 3, 4, b"d", "M00/x", b"a\x02b", {b"user.\xff": b"\1"}
        ),
        names.ReserveInodes(1024),
        names_record.PutXattr(3, b"user.a", None, "", None, 7),
        names_record.PutXattr(3, b"user.a", b"v", "", None, 7, True),
        names_record.EndSession(5),
        names_record.Forget([1, 2], ["a", "b"]),
    ]
    for op in ops:
        change = Change(4, 5, 3, 6, op)
        assert names_record.decode_change(names_record.encode_change(change)) == change
