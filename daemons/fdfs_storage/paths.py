"""Where object files are on the disk, and how new ones get there.

Layout: protocol/disk.md section 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from fdfs_storage import directories
from fdfs_storage.files import exchange, status_of, unlink_quietly, write_all
from fdfs_storage.new_file import NewFile
from fdfs_storage.trunk import SlotPlace
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location, parse_location
from fdfsfuse.proto.trunk import find_slot

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_UNNAMED_FLAGS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC


class Paths:
    """The store paths of a storage."""

    def __init__(self, store_paths: Sequence[str]) -> None:
        self.count = len(store_paths)
        self.data = [f"{path}/data/" for path in store_paths]
        self.unnamed = [directories.supports_unnamed_files(path) for path in store_paths]
        self.trunk_file_size = 0
        """Bytes of a new trunk file, which is sparse: a C server may take over the store path."""
        self._temporary_number = 0

    def of(self, location: Location) -> str:
        """Absolute path of the file."""
        return self.data[location.path_index] + location.relative

    def located_at(self, path: str) -> Location | None:
        """The location of an absolute path, None when it is in no store path.

        Raises:
            ProtocolError: it is in one, but no file name of a storage.
        """
        for index, data in enumerate(self.data):
            if path.startswith(data):
                return parse_location(f"M{index:02X}/{path[len(data) :]}", self.count)
        return None

    def link_target(self, location: Location) -> Location | None:
        """The object that a link points to; None when it is no link, or points elsewhere."""
        try:
            return self.located_at(os.readlink(self.of(location)))
        except (OSError, ProtocolError):
            return None

    def slot(self, location: Location) -> SlotPlace | None:
        """The place of an object that a C server put into a trunk file; None for all others."""
        found = find_slot(location)
        if found is None:
            return None
        return SlotPlace(os.path.dirname(self.of(location)), found, self.trunk_file_size)

    def exists(self, location: Location) -> bool:
        """True when there is a file (or link, or directory) of that name."""
        if os.access(self.of(location), os.F_OK):
            return True
        slot = self.slot(location)
        return slot is not None and slot.exists()

    def open_to_change(self, location: Location) -> int:
        """A descriptor of the object, to be closed by the caller. Raises StatusError 2, 22, 5."""
        try:
            return os.open(self.of(location), os.O_RDWR | os.O_CLOEXEC)
        except IsADirectoryError as exc:
            raise StatusError(errno.EINVAL) from exc
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def temporary(self, index: int) -> str:
        """A free path for a temporary file on store path *index*."""
        self._temporary_number += 1
        number = self._temporary_number
        return f"{self.data[index]}{directories.TEMPORARY_PREFIX}{os.getpid()}-{number}"

    def open_new(self, index: int, directory: str) -> NewFile:
        """A new file without a name, for a `Location.directory`. Raises OSError."""
        if not self.unnamed[index]:
            temporary = self.temporary(index)
            return NewFile(os.open(temporary, _CREATE_FLAGS, 0o644), index, directory, temporary)
        path = self.data[index] + directory
        try:
            fd = os.open(path, _UNNAMED_FLAGS, 0o644)
        except FileNotFoundError:
            os.makedirs(path, exist_ok=True)
            fd = os.open(path, _UNNAMED_FLAGS, 0o644)
        return NewFile(fd, index, directory)

    def create(self, content: bytes | memoryview, path: str, mtime: int | None = None) -> None:
        """Make a file with its whole content; nothing is left of it if that fails.

        It is under its name while it is written. That costs less than a file without a name, but
        kill -9 may leave a part of it. Raises OSError; FileExistsError: it is never replaced.

        Args:
            mtime: Unix seconds that become its times, None for now.
        """
        try:
            fd = os.open(path, _CREATE_FLAGS, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = os.open(path, _CREATE_FLAGS, 0o644)
        try:
            write_all(fd, content)
            if mtime is not None:
                os.utime(fd, (mtime, mtime))
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def name(self, new: NewFile, path: str) -> None:
        """Give *new* its name. Raises OSError; FileExistsError: *path* is never replaced."""
        if new.temporary:
            os.link(new.temporary, path)
        else:
            directories.link_unnamed(new.fd, path)

    def replace(self, new: NewFile, path: str, *, kept: bool = False) -> None:
        """Put *new* where *path* is: readers see the old file or the new one. Raises OSError.

        Args:
            kept: its content is found elsewhere if the machine loses its power, so it need not be
                written out soon.
        """
        if new.temporary:
            os.rename(new.temporary, path)
            new.temporary = ""
            return
        temporary = self.temporary(new.path_index)
        directories.link_unnamed(new.fd, temporary)
        try:
            if kept and exchange(temporary, path):
                unlink_quietly(temporary)
            else:
                os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def master_location(metadata: Location) -> Location:
    """Where the object of a metadata file is."""
    return Location(metadata.path_index, metadata.relative[: -len(METADATA_SUFFIX)])


def metadata_location(location: Location) -> Location:
    """Where the metadata file of an object is."""
    return Location(location.path_index, location.relative + METADATA_SUFFIX)
