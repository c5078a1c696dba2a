"""The record of changes: each one is in the binlog, and observers hear of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fdfs_storage.binlog import Binlog
from fdfs_storage.counters import Counters
from fdfs_storage.recent import Content, RecentContents
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import STORE_PATHS, Location

Observer = Callable[[str, Location, Location | None], None]
"""Called with (binlog op, location, other) after a change; metadata changes have a location that
ends in ``-m``, *other* is the target of a link or the old name of a rename. The op is in lower
case when the change came from a peer. Must not raise, and must be quick."""


class Changes:
    """Binlog and observers of a store; ``counters`` keep the time of the last change.

    Attributes:
        logged_at: timestamp of the last line about a change of our own, for observers.
        recent: contents of small new files; None while nobody wants them.
        coming: name -> content of new files that are logged already and are being made.
    """

    def __init__(self, binlog: Binlog, counters: Counters) -> None:
        self.binlog = binlog
        self.counters = counters
        self.observers: list[Observer] = []
        self.logged_at = 0
        self.recent: RecentContents | None = None
        self.coming: dict[str, bytes] = {}

    def log(
        self, op: str, location: Location, timestamp: int | None = None, extra: str = ""
    ) -> None:
        """Write a line for a change of our own. Raises OSError."""
        if timestamp is None:
            timestamp = int(time.time())
        line = f"{timestamp} {op} {STORE_PATHS[location.path_index]}{location.relative}{extra}\n"
        self.binlog.append(line.encode())
        self.counters.last_source_update = self.logged_at = timestamp

    def log_all(self, location: Location, changes: Sequence[tuple[str, str]]) -> None:
        """Write lines for changes of one object of our own, (op, extra). Raises OSError."""
        timestamp = int(time.time())
        lines = [f"{timestamp} {op} {location.name}{extra}\n" for op, extra in changes]
        self.binlog.append("".join(lines).encode("ascii"))
        self.counters.last_source_update = self.logged_at = timestamp

    def announce(self, files: Sequence[tuple[Location, bytes, int]]) -> None:
        """Write the lines of new files of our own: (name, content, Unix seconds) of each.

        Peers may be told of them from now on, so whoever announces a file makes it before anybody
        else gets a turn, or logs its deletion; both end with `arrived`. Raises OSError.
        """
        lines = [f"{timestamp} {ops.CREATE} {file.name}\n" for file, _, timestamp in files]
        self.binlog.append("".join(lines).encode("ascii"))
        self.counters.last_source_update = self.logged_at = files[-1][2]
        for file, content, _ in files:
            self.coming[file.name] = content

    def arrived(self, location: Location) -> None:
        """What was announced is in its file, or never will be. Fine when nothing was."""
        self.coming.pop(location.name, None)

    def content(self, name: str) -> Content | None:
        """The content of a file, if it is in memory: that of a new one always is.

        May be called in a thread.
        """
        content = self.coming.get(name)
        if content is None and self.recent is not None:
            return self.recent.get(name)
        return content

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
