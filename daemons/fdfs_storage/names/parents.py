"""Directories that get and lose entries, ahead of the table of inodes.

A mount that makes or removes many entries does so in the same few directories. So as long as
changes of that kind follow each other, at most to the end of the batch, a directory is looked at
once, and its times and link count are written once.
"""

from __future__ import annotations

import sqlite3

from fdfs_storage.names import tree


class Parents:
    """See the module. *db*: the writing connection.

    Whoever reads or writes these directories' rows calls `settle` before.
    """

    __slots__ = ("_db", "_known", "_touched")

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[int, tuple[int, int, bytes]] = {}
        self._touched: dict[int, tuple[int, int]] = {}

    def check(self, ino: int) -> tuple[int, int, bytes]:
        """See `tree.check_directory`."""
        known = self._known.get(ino)
        if known is None:
            known = self._known[ino] = tree.check_directory(self._db, ino)
        return known

    def touch(self, ino: int, now_ns: int, subdirs: int = 0) -> None:
        """The directory has changed, and has *subdirs* more subdirectories."""
        before = self._touched.get(ino)
        self._touched[ino] = (now_ns, subdirs if before is None else before[1] + subdirs)

    def is_ahead(self, ino: int) -> bool:
        """Whether the row of the directory may not be right, or what is known of it may change."""
        return ino in self._touched or ino in self._known

    def settle(self) -> None:
        """Bring the table up to date, and rely on nothing that was seen before."""
        self._known.clear()
        if self._touched:
            self._db.executemany(
                "UPDATE inode SET mtime_ns = ?, ctime_ns = ?, nlink = nlink + ? WHERE ino = ?",
                [(now, now, subdirs, ino) for ino, (now, subdirs) in self._touched.items()],
            )
            self._touched.clear()

    def drop(self) -> None:
        """The changes are undone."""
        self._known.clear()
        self._touched.clear()
