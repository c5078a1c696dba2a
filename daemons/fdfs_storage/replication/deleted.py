"""Names of files that were deleted, so that a record that comes late brings none of them back.

A member that restarts sends its last records again, and of two members that changed one file a
third may hear in either order. The names are those of the last deletions in the binlog; after a
start they are read from its end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord, decode_line

if TYPE_CHECKING:
    from fdfs_storage.binlog import Binlog
    from fdfsfuse.proto.fileid import Location

_NAMES_MAX = 1 << 17
"""About 25 MiB when full, which takes as many deletions."""
_TAIL = 16 << 20
_MARKS = (b" D ", b" d ", b" R ", b" r ")


class Deleted:
    """The names, each with the time of its last deletion (Unix seconds)."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    @classmethod
    def load(cls, binlog: Binlog) -> Deleted:
        """Read the end of *binlog*. Blocks."""
        deleted = cls()
        for line in binlog.tail_lines(_TAIL):
            if any(mark in line for mark in _MARKS):
                try:
                    deleted._take(decode_line(line))
                except ProtocolError:
                    continue
        return deleted

    def _take(self, record: BinlogRecord) -> None:
        kind = record.op.upper()
        if kind == ops.DELETE:
            self.add(record.name, record.timestamp)
        elif kind == ops.RENAME:
            self.add(record.other_name, record.timestamp)

    def at(self, name: str) -> int | None:
        """When *name* was deleted, None if that is not known."""
        return self._at.get(name)

    def add(self, name: str, timestamp: int) -> None:
        """Note a deletion; the oldest are forgotten when there are too many."""
        known = self._at.pop(name, None)
        self._at[name] = timestamp if known is None else max(known, timestamp)
        if len(self._at) > _NAMES_MAX:
            del self._at[next(iter(self._at))]

    def observe(self, op: str, location: Location, other: Location | None) -> None:
        """A change in the store; those by peers are noted with their record's time instead."""
        if op == ops.DELETE:
            self.add(location.name, int(time.time()))
        elif op == ops.RENAME and other is not None:
            self.add(other.name, int(time.time()))
