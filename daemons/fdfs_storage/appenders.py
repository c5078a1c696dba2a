"""Changing the content of objects: append, modify, truncate; in which order, and why:
`fdfs_storage.store`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fdfs_storage.changes import Changes
from fdfs_storage.files import pwrite_pieces, reserve, status_of
from fdfs_storage.paths import Paths
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import Location


class Appenders:
    """Changes objects and logs it. Whether an object may be changed is the caller's to know."""

    def __init__(self, paths: Paths, changes: Changes) -> None:
        self._paths = paths
        self._changes = changes

    def pwrite(self, location: Location, offset: int, data: bytes | memoryview) -> None:
        """`pwrite_pieces` of one."""
        self.pwrite_pieces(location, [(offset, len(data))], data)

    def pwrite_pieces(
        self, location: Location, pieces: Sequence[tuple[int, int]], data: bytes | memoryview
    ) -> None:
        """Write small *pieces*, (offset, length), that *data* has one behind the other, in one go,
        with their binlog records.

        Raises:
            StatusError: 2 it does not exist, 28, 5; some of it may have been written.
        """
        fd = self._paths.open_to_change(location)
        try:
            size, changes = os.fstat(fd).st_size, []
            for offset, length in pieces:
                op = ops.APPEND if offset == size else ops.MODIFY
                changes.append((op, f" {offset} {length}"))
                size = max(size, offset + length)
            self._changes.log_all(location, changes)
            try:
                pwrite_pieces(fd, pieces, data)
            finally:
                self._changes.notify(op, location)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    def reserve(self, location: Location, offset: int, length: int) -> None:
        """Make sure that a write over what is there will not stop in the middle for want of room.

        Raises:
            StatusError: 28 there is none, 2, 5.
        """
        fd = self._paths.open_to_change(location)
        try:
            reserve(fd, offset, length)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    def take_back(self, location: Location, size: int, end: int) -> None:
        """Cut off what a refused write up to *end* has left behind the old end, *size*: the next
        append goes there. Peers that were sent it already cut it off as well."""
        path = self._paths.of(location)
        try:
            if not size < os.stat(path).st_size <= end:
                return
            try:
                self.truncate(location, size)
            except StatusError:  # no room for the record
                os.truncate(path, size)
        except OSError:
            pass  # what was refused stays, as it would after a crash

    def record_write(self, location: Location, offset: int, length: int, old_size: int) -> None:
        """Log *length* bytes that were written at *offset* when the object had *old_size*.

        An append when they were put at the end and are the end now, else a modification: replicas
        drop appended bytes that they seem to have, and of two writes at the same time the one
        that is behind may be done first.
        """
        try:
            appended = (
                offset == old_size and os.stat(self._paths.of(location)).st_size == offset + length
            )
            op = ops.APPEND if appended else ops.MODIFY
            self._changes.log(op, location, None, f" {offset} {length}")
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._changes.notify(op, location)

    def truncate(self, location: Location, size: int) -> None:
        """Set the object's size, with zero bytes where it grows; nothing if it has that size.

        Raises:
            StatusError: 2 it does not exist, 28, 5.
        """
        fd = self._paths.open_to_change(location)
        try:
            old_size = os.fstat(fd).st_size
            if old_size != size:
                self._changes.log(ops.TRUNCATE, location, None, f" {old_size} {size}")
                os.ftruncate(fd, size)
                self._changes.notify(ops.TRUNCATE, location)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)
