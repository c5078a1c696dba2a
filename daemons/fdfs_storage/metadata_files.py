"""The metadata files of objects: ``NAME-m`` beside them (protocol/disk.md section 1)."""

from __future__ import annotations

import os
import time

from fdfs_storage.changes import Changes
from fdfs_storage.files import status_of
from fdfs_storage.paths import Paths, metadata_location
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location

_READ_SIZE = 448
"""More than most metadata: one read shows its end. Bytes of up to 479 need no malloc in Python."""
_READ_MORE_SIZE = 64 << 10


def deletion_time(info: os.stat_result) -> int:
    """Timestamp of the deletion, now, of a file: Unix seconds, not before its own time.

    A storage whose clock is ahead may have made the file. By their times its peers tell whether
    it was made before it was deleted, or after that.
    """
    return max(int(time.time()), int(info.st_mtime))


class MetadataFiles:
    """Reads, replaces and removes them."""

    def __init__(self, paths: Paths, changes: Changes) -> None:
        self._paths = paths
        self._changes = changes

    def read(self, location: Location) -> bytes | None:
        """The metadata text of the object, or None when there is none (or no object)."""
        try:
            fd = os.open(self._paths.of(location) + METADATA_SUFFIX, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        try:
            text = os.read(fd, _READ_SIZE)
            if len(text) == _READ_SIZE:
                while more := os.read(fd, _READ_MORE_SIZE):
                    text += more
            return text
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    def write(self, location: Location, text: bytes, *, kept: bool = False) -> None:
        """Replace the metadata text; empty *text* removes it. The object itself is not looked at.

        *kept*: see `Paths.replace`.

        Raises:
            StatusError: 28, 5.
        """
        file = metadata_location(location)
        path = self._paths.of(file)
        try:
            try:
                old_s: int | None = int(os.stat(path).st_mtime)
            except FileNotFoundError:
                old_s = None
            if text:
                self._write(file, path, text, old_s, kept=kept)
            elif old_s is not None:
                self.delete(file)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _write(
        self, file: Location, path: str, text: bytes, old_s: int | None, *, kept: bool
    ) -> None:
        """Log, then name a whole new file: readers, and a crash, see the old text or the new.

        The time never goes back, not even when the clock of the storage that made the last change
        is ahead of ours: by their times replicas tell which of two texts is the later one.
        """
        now_s = int(time.time())
        timestamp = now_s if old_s is None else max(now_s, old_s)
        op = ops.CREATE if old_s is None else ops.UPDATE
        new = self._paths.open_new(file.path_index, file.directory)
        try:
            new.write(text)
            os.utime(new.fd, (timestamp, timestamp))
            self._changes.log(op, file, timestamp)
            if old_s is None:
                self._paths.name(new, path)
            else:
                self._paths.replace(new, path, kept=kept)
        finally:
            new.close()
        self._changes.notify(op, file, content=text)

    def delete(self, file: Location) -> None:
        """Remove the metadata file *file*. Raises OSError."""
        path = self._paths.of(file)
        self._changes.log(ops.DELETE, file, deletion_time(os.stat(path)))
        os.unlink(path)
        self._changes.notify(ops.DELETE, file)
