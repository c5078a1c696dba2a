"""Names of files that were deleted, so that a record that comes late brings none of them back.

A member that restarts sends its last records again, and of two members that changed one file a
third may hear in either order. The names are those of the last deletions in the binlog; after a
start they are read from its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fdfsfuse.core.recent import Recent
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord, decode_line

if TYPE_CHECKING:
    from fdfs_storage.binlog import Binlog
    from fdfs_storage.changes import Changes
    from fdfsfuse.proto.fileid import Location

_NAMES_MAX = 1 << 17
"""About 25 MiB when full, which takes as many deletions."""
_TAIL = 16 << 20
_MARKS = (b" D ", b" d ", b" R ", b" r ")


def names_deleted(binlog: Binlog) -> dict[str, int]:
    """Names that were deleted, and not made again here, with the time (Unix seconds). Blocks."""
    deleted: dict[str, int] = {}
    for line in binlog.tail_lines(_TAIL):
        try:
            record = decode_line(line)
        except ProtocolError:
            continue
        kind = record.op.upper()
        if record.op in (ops.CREATE, ops.LINK):
            deleted.pop(record.name, None)
        elif kind in (ops.DELETE, ops.RENAME):
            name = record.name if kind == ops.DELETE else record.other_name
            deleted[name] = max(record.timestamp, deleted.get(name, 0))
    return deleted


class Deletion(NamedTuple):
    """``at``: Unix seconds. ``by``: the id of the member where it was made, '' when that is not
    known (the binlog does not tell), `HERE` for this storage."""

    at: int
    by: str


HERE = "here"


class Deleted:
    """The names, each with its last deletion."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._last: Recent[str, Deletion] = Recent(_NAMES_MAX)

    @classmethod
    def load(cls, changes: Changes) -> Deleted:
        """Read the end of the binlog (blocks), and hear of what follows."""
        deleted = cls(changes)
        changes.observers.append(deleted._observe)
        for line in changes.binlog.tail_lines(_TAIL):
            if any(mark in line for mark in _MARKS):
                try:
                    deleted._take(decode_line(line))
                except ProtocolError:
                    continue
        return deleted

    def _take(self, record: BinlogRecord) -> None:
        kind = record.op.upper()
        by = HERE if record.is_own else ""
        if kind == ops.DELETE:
            self.add(record.name, record.timestamp, by)
        elif kind == ops.RENAME:
            self.add(record.other_name, record.timestamp, by)

    def last(self, name: str) -> Deletion | None:
        """The last deletion of *name*, None if none is known."""
        return self._last.get(name)

    def at(self, name: str) -> int | None:
        """When *name* was deleted last, None if that is not known."""
        deletion = self._last.get(name)
        return None if deletion is None else deletion.at

    def add(self, name: str, timestamp: int, by: str) -> None:
        """Note a deletion; the oldest are forgotten when there are too many."""
        deletion = Deletion(timestamp, by)
        known = self._last.get(name)
        self._last[name] = deletion if known is None or known.at <= timestamp else known

    def _observe(self, op: str, location: Location, other: Location | None) -> None:
        """A change in the store; those by peers are noted with their record's time instead."""
        if op == ops.DELETE:
            self.add(location.name, self._changes.logged_at, HERE)
        elif op == ops.RENAME and other is not None:
            self.add(other.name, self._changes.logged_at, HERE)
