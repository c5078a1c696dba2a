r"""The lines of a storage's binlog: ``<timestamp> <op> <name>[ <extra>...]\n``.

Source: protocol/disk.md section 5. Capital ops are changes made here (this storage is their
source), small ones were received from a peer.

== ==================== ==========================================
op what                 fields after the name
== ==================== ==========================================
C  created              none
D  deleted              none
U  content replaced     none (metadata files)
A  appended             offset, length
M  modified             offset, length
T  truncated            old size, new size
L  link created         the target's name
R  renamed              the old name
== ==================== ==========================================
"""

from __future__ import annotations

from typing import NamedTuple

from fdfsfuse.errors import ProtocolError

CREATE = "C"
DELETE = "D"
UPDATE = "U"
APPEND = "A"
MODIFY = "M"
TRUNCATE = "T"
LINK = "L"
RENAME = "R"

LINE_MAX = 255
"""Longest line, newline included."""
FILE_SIZE_MAX = 1 << 30
"""A binlog file that has reached this many bytes is followed by the next one."""

_PLAIN = frozenset("CDU")
_USUAL = frozenset("CDUcdu")
_RANGES = frozenset("AMT")
_TWO_NAMES = frozenset("LR")


class BinlogRecord(NamedTuple):
    """One change. A tuple, as replication decodes one for each file that it pushes.

    ``name`` is the logical name with ``Mxx/`` (metadata: with ``-m`` behind it). ``numbers`` holds
    (offset, length) of A and M, (old size, new size) of T, else (0, 0). ``other_name`` is the
    target of L or the old name of R, else empty.
    """

    timestamp: int
    op: str
    name: str
    numbers: tuple[int, int] = (0, 0)
    other_name: str = ""

    @property
    def is_own(self) -> bool:
        """True when this storage is the source of the change."""
        return self.op.isupper()

    def encode(self) -> bytes:
        """The line with its newline."""
        kind = self.op.upper()
        extra = ""
        if kind in _RANGES:
            extra = f" {self.numbers[0]} {self.numbers[1]}"
        elif kind in _TWO_NAMES:
            extra = f" {self.other_name}"
        return f"{self.timestamp} {self.op} {self.name}{extra}\n".encode("ascii")


def decode_line(line: bytes) -> BinlogRecord:
    """Decode one line, with or without its newline.

    Raises:
        ProtocolError: it is no record, among them the malformed lines that C servers may have
            written (an empty link name; disk.md section 5).
    """
    try:
        fields = line.rstrip(b"\n").decode("ascii").split(" ")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"binlog line {line!r} is not ASCII") from exc
    if len(fields) == 3 and len(line) <= LINE_MAX:  # what nearly all lines look like
        stamp, op, name = fields
        if op in _USUAL and name and stamp.isdigit():
            return BinlogRecord(int(stamp), op, name)
    if len(fields) < 3 or not all(fields) or len(fields[1]) != 1 or len(line) > LINE_MAX:
        raise ProtocolError(f"malformed binlog line {line!r}")
    stamp, op, name = fields[:3]
    extra = fields[3:]
    kind = op.upper()
    try:
        timestamp = int(stamp)
        if kind in _PLAIN and not extra:
            return BinlogRecord(timestamp, op, name)
        if kind in _RANGES and len(extra) == 2:
            first, second = int(extra[0]), int(extra[1])
            if first >= 0 and second >= 0:
                return BinlogRecord(timestamp, op, name, (first, second))
        if kind in _TWO_NAMES and len(extra) == 1:
            return BinlogRecord(timestamp, op, name, other_name=extra[0])
    except ValueError:
        pass
    raise ProtocolError(f"malformed binlog line {line!r}")
