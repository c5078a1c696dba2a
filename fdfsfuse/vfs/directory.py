"""What is remembered of the names in one directory; a part of `fdfsfuse.vfs.memory`."""

from __future__ import annotations

from typing import Final

MISSING: Final = 0
"""In place of an inode number: the name is known not to exist."""
_UNKNOWN_MAX: Final = 1_000


class Directory:
    """The names of a directory.

    Attributes:
        names: the inode number of each name, or MISSING.
        until: until when, on the clock of leases, the kernel may rely on any of them.
        complete: whether names that are neither in ``names`` nor in ``unknown`` do not exist.
        unknown: names that were recalled, of which nothing is known any more.
        listed: the cookie up to which a listing from the start has brought all names; -1: none.
        misses: how many names were not found; listing all may be cheaper after some.
    """

    __slots__ = ("complete", "listed", "misses", "names", "unknown", "until")

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}
        self.until = float("-inf")
        self.complete = False
        self.unknown: set[bytes] = set()
        self.listed = -1
        self.misses = 0

    def get(self, name: bytes) -> int | None:
        """The inode number of a name, MISSING, or None if it is not known."""
        ino = self.names.get(name)
        if ino is None and self.complete and name not in self.unknown:
            return MISSING
        return ino

    def drop(self, name: bytes) -> bool:
        """Forget a name. Returns whether it was known."""
        if self.complete or self.listed >= 0:
            self.unknown.add(name)
            if len(self.unknown) > _UNKNOWN_MAX:
                self.incomplete()
        return self.names.pop(name, None) is not None

    def incomplete(self) -> None:
        """From now on there may be names that are not known here."""
        self.complete, self.listed = False, -1
        self.unknown.clear()
