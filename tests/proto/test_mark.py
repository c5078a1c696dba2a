"""Mark files, as C storages write them (protocol/disk.md section 6)."""

from __future__ import annotations

import pytest

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.mark import Mark, mark_name

FILE = b"""binlog_index=0
binlog_offset=656
need_sync_old=1
sync_old_done=1
until_timestamp=1795353706
scan_row_count=9
sync_row_count=2
"""
MARK = Mark(0, 656, True, True, 1795353706, 9, 2)


def test_both_directions() -> None:
    assert Mark.decode(FILE) == MARK
    assert MARK.encode() == FILE
    assert Mark.decode(b"# written by hand\n[x]\n" + FILE.replace(b"=", b" = ")) == MARK


def test_every_key_is_needed() -> None:
    lines = FILE.splitlines(keepends=True)
    for index in range(len(lines)):
        with pytest.raises(ProtocolError):
            Mark.decode(b"".join(lines[:index] + lines[index + 1 :]))
    for cut in range(len(FILE) - 2):
        with pytest.raises(ProtocolError):
            Mark.decode(FILE[:cut])


@pytest.mark.parametrize(
    "data", [b"", b"\xff", FILE.replace(b"656", b"x"), FILE.replace(b"9\n", b"")]
)
def test_damaged_files(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Mark.decode(data)


def test_names() -> None:
    assert mark_name("100001", 23000, by_id=True) == "100001.mark"
    assert mark_name("10.0.0.1", 23000, by_id=False) == "10.0.0.1_23000.mark"


def test_copying() -> None:
    assert Mark(need_sync_old=True).copies_old
    assert not MARK.copies_old
    assert not Mark().copies_old
