"""Making objects; in which order, and why: `fdfs_storage.store`."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fdfs_storage.changes import Changes
from fdfs_storage.deletions import Deletions
from fdfs_storage.files import status_of
from fdfs_storage.naming import NAME_TRIES, Naming
from fdfs_storage.new_file import NewFile
from fdfs_storage.paths import Paths
from fdfs_storage.recent import Content
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import Location

_File = TypeVar("_File")


class Creations:
    """Makes the objects of a store."""

    def __init__(
        self, paths: Paths, naming: Naming, changes: Changes, deletions: Deletions
    ) -> None:
        self._paths = paths
        self._naming = naming
        self._changes = changes
        self._deletions = deletions

    def make_name(
        self,
        size: int,
        crc32: int,
        mtime: int,
        extension: str,
        *,
        appender: bool = False,
        path_index: int | None = None,
        takes_space: bool = True,
    ) -> Location:
        """A new, unique name for an object that `write_at` or `create_empty` will make.

        Args:
            size, crc32: of the content.
            mtime: Unix seconds.
            extension: up to 6 characters, no leading dot.
            path_index: store path; None: the storage chooses. A read-only one is replaced.
            takes_space: False for a link: its content is there already.

        Raises:
            StatusError: 28 no space, 16 no unique name was found.
        """
        index = self._naming.choose_path(path_index, size if takes_space else 0)
        directory = self._naming.next_directory()
        for _ in range(NAME_TRIES):
            location = self._naming.new_location(
                index, directory, size, crc32, mtime, extension, appender
            )
            if not self._paths.exists(location):
                return location
        raise StatusError(errno.EBUSY, "no unique name found")

    def make_normal_name(self, old: Location, size: int, crc32: int, mtime: int) -> Location:
        """A new name for the appender *old* as a normal file: it keeps its directory and suffix.

        Raises:
            StatusError: 16 no unique name was found.
        """
        for _ in range(NAME_TRIES):
            location = self._naming.normal_location(old, size, crc32, mtime)
            if not self._paths.exists(location):
                return location
        raise StatusError(errno.EBUSY, "no unique name found")

    def write_at(self, location: Location, data: bytes, mtime: int | None = None) -> None:
        """Make the object *location*, a fresh name, with *data* as its content.

        The file's mtime is *mtime* (Unix seconds) or now. Raises StatusError 28, 5, 17.
        """
        new = self._paths.open_new(location.path_index, location.directory)
        try:
            new.write(data)
            if mtime is not None:
                os.utime(new.fd, (mtime, mtime))
            self._publish(new, location, mtime)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            new.close()

    def announce(self, files: Sequence[tuple[Location, bytes, int]]) -> None:
        """Log new objects, so that peers can be sent them while `make` makes them here.

        Args:
            files: fresh name, content, and mtime (Unix seconds) of each. Each must be followed by
                its `make` or, also when that fails, `withdraw`.

        Raises:
            StatusError: 28, 5; then none is logged.
        """
        try:
            self._changes.announce(files)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def make(self, location: Location, data: bytes, mtime: int) -> None:
        """Make an object that was announced. Raises StatusError 28, 5, 17."""
        try:
            self._paths.create(data, self._paths.of(location), mtime)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._changes.notify(ops.CREATE, location, content=data)
        self._changes.arrived(location)

    def withdraw(self, location: Location) -> None:
        """Take back an object that was announced, whether it was made or not.

        Raises:
            StatusError: 28, 5; peers may keep it.
        """
        self._changes.arrived(location)
        if self._paths.exists(location):
            self._deletions.delete(location)
            return
        try:
            self._changes.log(ops.DELETE, location)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._changes.notify(ops.DELETE, location)

    def create_empty(self, location: Location) -> None:
        """Make the empty object *location* (an appender to be written to)."""
        self.write_at(location, b"")

    def open_new(self, path_index: int | None, size: int) -> NewFile:
        """Begin a file of *size* bytes whose name will be known only at its end.

        Raises:
            StatusError: 28 no space, 5 the disk failed.
        """
        index = self._naming.choose_path(path_index, size)
        directory = self._naming.next_directory()
        try:
            return self._paths.open_new(index, directory)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def create(
        self,
        path_index: int | None,
        content: bytes | memoryview,
        crc32: int,
        extension: str,
    ) -> Location:
        """Make a normal object of *content*, which is small and does not change.

        Raises:
            StatusError: 16 no unique name, 28, 5.
        """
        size = len(content)
        index = self._naming.choose_path(path_index, size)
        directory = self._naming.next_directory()
        create = self._paths.create
        return self._put(create, content, content, index, directory, size, crc32, extension, False)

    def open_new_at(self, near: Location) -> NewFile:
        """Begin a file in the directory of the existing object *near*, for `commit_at`.

        Raises:
            StatusError: 5 the disk failed.
        """
        try:
            return self._paths.open_new(near.path_index, near.directory)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def commit_at(self, new: NewFile, location: Location) -> None:
        """Name what was written into *new*, as `commit` does, but with a given name.

        Raises:
            StatusError: 17 the name exists, 28, 5.
        """
        if self._paths.exists(location):
            raise StatusError(errno.EEXIST)
        try:
            self._publish(new, location, None)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def commit(
        self, new: NewFile, size: int, crc32: int, extension: str, *, appender: bool = False
    ) -> Location:
        """Name what was written into *new*: it is an object from now on. *new* is closed by the
        caller.

        Raises:
            StatusError: 16 no unique name, 28, 5.
        """
        name, index, directory = self._paths.name, new.path_index, new.directory
        return self._put(name, new, new.content, index, directory, size, crc32, extension, appender)

    def _put(
        self,
        put: Callable[[_File, str], None],
        file: _File,
        content: Content | None,
        index: int,
        directory: str,
        size: int,
        crc32: int,
        extension: str,
        appender: bool,
    ) -> Location:
        """Have *put* give *file* a new name, its path, that is in the binlog."""
        now = int(time.time())
        tries = NAME_TRIES
        while tries:
            location = self._naming.new_location(
                index, directory, size, crc32, now, extension, appender
            )
            try:
                self._changes.log(ops.CREATE, location, now)
                put(file, self._paths.of(location))
            except FileExistsError:
                tries -= 1  # nothing is replaced, so there is no need to look first
                continue
            except OSError as exc:
                raise StatusError(status_of(exc)) from exc
            self._changes.notify(ops.CREATE, location, None, content)
            return location
        raise StatusError(errno.EBUSY, "no unique name found")

    def _publish(self, new: NewFile, location: Location, timestamp: int | None) -> None:
        """Binlog line and name, in this order. Raises OSError."""
        self._changes.log(ops.CREATE, location, timestamp)
        self._paths.name(new, self._paths.of(location))
        self._changes.notify(ops.CREATE, location, content=new.content)
