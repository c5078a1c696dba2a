"""Reads small ranges of files at once where that does not keep the loop waiting."""

from __future__ import annotations

import errno
import os
import time

from fdfs_storage.disk_pace import DiskPace

_PAGE_CACHE_ONLY = getattr(os, "RWF_NOWAIT", 0)
_SLOW_S = 0.0005
"""A hop to a thread, and handing the connection over for it, takes some 250 us of CPU."""


class SmallReads:
    """Reads files of one store path, from the page cache or a disk that has been quick of late."""

    __slots__ = ("_asks_cache", "_pace")

    def __init__(self) -> None:
        self._pace = DiskPace(_SLOW_S)
        self._asks_cache = bool(_PAGE_CACHE_ONLY)
        """False for a file system that knows no such reading, as tmpfs, which never waits."""

    def read(self, fd: int, count: int, offset: int) -> bytes | bytearray | None:
        """*count* bytes from *offset* on; None when they are for a thread, or not all there.

        Raises OSError.
        """
        if not self._asks_cache:
            content = os.pread(fd, count, offset)
            return content if len(content) == count else None
        cached = bytearray(count)
        try:
            if os.preadv(fd, (cached,), offset, _PAGE_CACHE_ONLY) == count:
                return cached
        except BlockingIOError:
            pass
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._asks_cache = False
            return self.read(fd, count, offset)
        start = time.monotonic()
        if not self._pace.is_quick(start):
            return None
        content = os.pread(fd, count, offset)
        self._pace.waited(start, time.monotonic())
        return content if len(content) == count else None
