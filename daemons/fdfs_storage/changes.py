"""The record of changes: each one is in the binlog, and observers hear of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fdfs_storage.binlog import Binlog
from fdfs_storage.counters import Counters
from fdfs_storage.recent import Content, RecentContents
from fdfsfuse.proto.fileid import Location

Observer = Callable[[str, Location, Location | None], None]
"""Called with (binlog op, location, other) after a change; metadata changes have a location that
ends in ``-m``, *other* is the target of a link or the old name of a rename. The op is in lower
case when the change came from a peer. Must not raise, and must be quick."""


class Changes:
    """Binlog and observers of a store; ``counters`` keep the time of the last change.

    Attributes:
        logged_at: timestamp of the last line about a change of our own, for observers.
        recent: contents of small new files; None while nobody wants them.
    """

    def __init__(self, binlog: Binlog, counters: Counters) -> None:
        self.binlog = binlog
        self.counters = counters
        self.observers: list[Observer] = []
        self.logged_at = 0
        self.recent: RecentContents | None = None

    def log(
        self, op: str, location: Location, timestamp: int | None = None, extra: str = ""
    ) -> None:
        """Write a line for a change of our own. Raises OSError."""
        if timestamp is None:
            timestamp = int(time.time())
        self.binlog.append(f"{timestamp} {op} {location.name}{extra}\n".encode("ascii"))
        self.counters.last_source_update = self.logged_at = timestamp

    def log_all(self, location: Location, changes: Sequence[tuple[str, str]]) -> None:
        """Write lines for changes of one object of our own, (op, extra). Raises OSError."""
        timestamp = int(time.time())
        lines = [f"{timestamp} {op} {location.name}{extra}\n" for op, extra in changes]
        self.binlog.append("".join(lines).encode("ascii"))
        self.counters.last_source_update = self.logged_at = timestamp

    def log_received(self, op: str, name: str, timestamp: int, extra: str = "") -> None:
        """Write a line for a change that a peer sent: *op* is in lower case. Raises OSError."""
        self.binlog.append(f"{timestamp} {op} {name}{extra}\n".encode("ascii"))
        self.counters.last_sync_update = int(time.time())

    def notify(
        self,
        op: str,
        location: Location,
        other: Location | None = None,
        content: Content | None = None,
    ) -> None:
        """Tell the observers. *content*: all of a new file, if it is in memory."""
        recent = self.recent
        if recent is not None:
            recent.note(location.name, content)
            if other is not None:
                recent.note(other.name, None)
        for observer in self.observers:
            observer(op, location, other)
