"""What is known of the names in one directory, as a part of `fdfsfuse.vfs.memory`."""

from __future__ import annotations

from typing import Final

MISSING: Final = 0
"""In place of an inode: the name is known not to exist."""
_UNKNOWN_MAX: Final = 1_000


class Directory:
    """Names of a directory.

    Attributes:
        until: the kernel may rely on some of them as long as that.
        complete: names that are neither here nor in ``unknown`` do not exist.
        unknown: names that were recalled since.
        listed: cookie up to which a listing from the start has brought all names; -1: none has.
        misses: names that were not found; many make it worth while to ask for all.
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
        """The inode of a name, MISSING, or None when that is not known."""
        ino = self.names.get(name)
        if ino is None and self.complete and name not in self.unknown:
            return MISSING
        return ino

    def drop(self, name: bytes) -> bool:
        """The name is not known any more; False when it was not."""
        if self.complete or self.listed >= 0:
            self.unknown.add(name)
            if len(self.unknown) > _UNKNOWN_MAX:
                self.incomplete()
        return self.names.pop(name, None) is not None

    def incomplete(self) -> None:
        """There may be names that are not here."""
        self.complete, self.listed = False, -1
        self.unknown.clear()
