"""Binlog lines; the examples are those of protocol/disk.md section 5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.binlog import LINE_MAX, BinlogRecord, decode_line

A = "M00/00/00/fwAAFWsC6X2EaZluAAAAANiug8g022.log"
B = "M00/00/00/fwAAFWsC6Y-ACkOjAAAACtSE22k022.log"

LINES = [
    (BinlogRecord(1795352879, "C", A), f"1795352879 C {A}\n"),
    (BinlogRecord(1795352879, "C", f"{A}-m"), f"1795352879 C {A}-m\n"),
    (BinlogRecord(1795352959, "A", A, (12, 12)), f"1795352959 A {A} 12 12\n"),
    (BinlogRecord(1795352961, "M", A, (0, 8)), f"1795352961 M {A} 0 8\n"),
    (BinlogRecord(1795352963, "T", A, (24, 10)), f"1795352963 T {A} 24 10\n"),
    (BinlogRecord(1795352967, "U", f"{A}-m"), f"1795352967 U {A}-m\n"),
    (BinlogRecord(1795352969, "D", f"{A}-m"), f"1795352969 D {A}-m\n"),
    (BinlogRecord(1795352975, "R", B, other_name=A), f"1795352975 R {B} {A}\n"),
    (BinlogRecord(1795352959, "a", A, (12, 12)), f"1795352959 a {A} 12 12\n"),
    (BinlogRecord(1795352980, "l", B, other_name=A), f"1795352980 l {B} {A}\n"),
]


@pytest.mark.parametrize(("record", "line"), LINES)
def test_examples(record: BinlogRecord, line: str) -> None:
    assert record.encode() == line.encode()
    assert decode_line(line.encode()) == record
    assert decode_line(line.rstrip("\n").encode()) == record
    assert record.is_own == record.op.isupper()


@pytest.mark.parametrize(
    "line",
    [
        "1795352879 L  M00/00/00/target\n",
        "1795352879 l \n",
        "",
        "\n",
        "1795352879\n",
        "1795352879 C\n",
        f"x C {A}\n",
        f"1795352879 X {A}\n",
        f"1795352879 CC {A}\n",
        f"1795352879 C {A} 1\n",
        f"1795352879 A {A} 1\n",
        f"1795352879 A {A} 1 -2\n",
        f"1795352879 A {A} 1 x\n",
        f"1795352879 R {A}\n",
        f"1795352879 C {A}\u00e4\n",
        f"1795352879 C {'x' * LINE_MAX}\n",
    ],
)
def test_malformed_lines_are_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        decode_line(line.encode())


@given(st.binary(max_size=300))
def test_any_bytes_give_a_record_or_a_protocol_error(line: bytes) -> None:
    try:
        record = decode_line(line)
    except ProtocolError:
        return
    assert decode_line(record.encode()) == record
