"""The directories in which the open batch makes and removes entries, ahead of the inode table.

A mount that makes or removes many entries does so in a few directories. While changes of that kind
follow each other within a batch, each directory is read once, and its times and link count are
written once.
"""

from __future__ import annotations

import sqlite3

from fdfs_storage.names import namespace


class Parents:
    """See the module. Call `settle` before reading or writing the rows of these directories.

    Args:
        db: the writing connection.
    """

    __slots__ = ("_db", "_known", "_touched")

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[int, tuple[int, int, bytes]] = {}
        self._touched: dict[int, tuple[int, int]] = {}

    def check(self, ino: int) -> tuple[int, int, bytes]:
        """See `namespace.check_directory`."""
        known = self._known.get(ino)
        if known is None:
            known = self._known[ino] = namespace.check_directory(self._db, ino)
        return known

    def touch(self, ino: int, now_ns: int, subdirs: int = 0) -> None:
        """The directory has changed, and has *subdirs* more subdirectories."""
        before = self._touched.get(ino)
        self._touched[ino] = (now_ns, subdirs if before is None else before[1] + subdirs)

    def is_ahead(self, ino: int) -> bool:
        """Whether `settle` has to be called before the row of *ino* is read or changed."""
        return ino in self._touched or ino in self._known

    def settle(self) -> None:
        """Write the changes to the table, and forget what was read."""
        self._known.clear()
        if self._touched:
            self._db.executemany(
                "UPDATE inode SET mtime_ns = ?, ctime_ns = ?, nlink = nlink + ? WHERE ino = ?",
                [(now, now, subdirs, ino) for ino, (now, subdirs) in self._touched.items()],
            )
            self._touched.clear()

    def drop(self) -> None:
        """Forget everything, as the batch is rolled back."""
        self._known.clear()
        self._touched.clear()
