"""Replicas on the disk: what a peer sends, put into files, with its binlog line in lower case.

A whole file is received under no name (or a temporary one) and named when it is complete, so a
crash leaves the old file or the new one; a new small one is made under its name, and what a crash
leaves of that is removed at start. The binlog line comes before the name, as with uploads; a crash
in between is no loss, as the peer was not answered and sends the record again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from fdfs_storage.files import pwrite_all, status_of
from fdfs_storage.new_file import NewFile
from fdfs_storage.paths import master_location, metadata_location
from fdfs_storage.transfer import file_crc32
from fdfsfuse.core.replicas import (
    Found,
    Nature,
    Subject,
    is_orphaned,
    outlives,
    stays_deleted,
    subject_of,
)
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location

if TYPE_CHECKING:
    from fdfs_storage.replication.deleted import Deleted, Deletion
    from fdfs_storage.store import Store
    from fdfs_storage.trunk import SlotPlace

DAMAGED = errno.EBADMSG
"""Status: the content does not fit size and CRC-32 in its name."""


class Replicas:
    """Files of peers in a store."""

    def __init__(self, store: Store, deleted: Deleted) -> None:
        self._store = store
        self._paths = store.paths
        self._changes = store.changes
        self._deleted = deleted

    # --- whole files --------------------------------------------------------------------------

    def find(self, location: Location) -> Found | None:
        """The regular file of that name, if there is one."""
        try:
            info = os.lstat(self._paths.of(location))
        except OSError:
            return None
        if not stat.S_ISREG(info.st_mode):
            return None
        return Found(info.st_size, int(info.st_mtime))

    def last_deletion(self, location: Location) -> Deletion | None:
        """The last deletion of the name, if one is known."""
        return self._deleted.last(location.name)

    def deleted_elsewhere(self, location: Location, sender: str) -> bool:
        """True when the last deletion of the name was made at another member than *sender*."""
        deletion = self._deleted.last(location.name)
        return deletion is not None and deletion.by not in ("", sender)

    def is_orphaned(self, location: Location, timestamp: int) -> bool:
        """True for the metadata of a file that was deleted after it was set."""
        if not location.base.endswith(METADATA_SUFFIX):
            return False
        master = master_location(location)
        return is_orphaned(
            subject_of(master.name),
            timestamp,
            self._deleted.at(master.name),
            exists=self._store.exists(master),
        )

    def fits_name(self, location: Location, subject: Subject) -> bool:
        """True when the file's CRC-32 is that of its name. Reads it: in a thread if large."""
        try:
            return file_crc32(self._paths.of(location)) == subject.crc32
        except OSError:
            return False

    def _fits(self, location: Location, subject: Subject) -> bool:
        """True when there is a regular file of that name, as it promises."""
        found = self.find(location)
        return (
            found is not None and found.size == subject.size and self.fits_name(location, subject)
        )

    def is_same(self, location: Location, content: memoryview) -> bool:
        """True when the file has exactly this content."""
        try:
            with open(self._paths.of(location), "rb", buffering=0) as file:
                return file.read(len(content) + 1) == content
        except OSError:
            return False

    def open_new(self, location: Location) -> NewFile:
        """Begin a whole file for `put`. Raises OSError."""
        return self._paths.open_new(location.path_index, location.directory)

    def put(
        self,
        location: Location,
        new: NewFile,
        timestamp: int,
        op: str,
        *,
        again: bool,
        logged: bool = False,
    ) -> None:
        """Name what was written into *new*, in place of what has the name now.

        Args:
            again: the sender sends it once more if this machine loses its power soon.
            logged: it is in the binlog already.

        Raises:
            OSError: it could not be done.
        """
        path = self._paths.of(location)
        os.utime(new.fd, (timestamp, timestamp))
        if not logged:
            self._changes.log_received(op, location.name, timestamp)
        try:
            self._paths.name(new, path)
        except FileExistsError:
            self._paths.replace(new, path, kept=again)
        self._changes.notify(op, location)

    def put_small(
        self,
        location: Location,
        content: memoryview,
        timestamp: int,
        op: str,
        *,
        again: bool,
        logged: bool = False,
    ) -> None:
        """A whole file that is in memory; see `put`. Raises StatusError 28, 5."""
        try:
            new = self.open_new(location)
            try:
                new.write(content)
                self.put(location, new, timestamp, op, again=again, logged=logged)
            finally:
                new.close()
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def make_small(
        self,
        location: Location,
        content: memoryview,
        subject: Subject,
        timestamp: int,
        op: str,
        *,
        again: bool,
    ) -> bool:
        """A file that is in memory and fits its name, *subject*; False when it is here already.

        It is under its name at once; see "small new file" in `fdfs_storage.store`. *again*: see
        `put`. Raises StatusError 28, 5.
        """
        try:
            self._changes.log_received(op, location.name, timestamp)
            self._paths.create(content, self._paths.of(location), timestamp)
        except FileExistsError:
            if self._fits(location, subject):
                return False
            self.put_small(location, content, timestamp, op, again=again, logged=True)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        else:
            self._changes.notify(op, location)
        return True

    @staticmethod
    def fill_slot(slot: SlotPlace, content: memoryview) -> None:
        """Write the content of a file in a trunk file. Raises StatusError 28, 5."""
        try:
            slot.write(content)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def take_slot(self, location: Location, slot: SlotPlace, timestamp: int, op: str) -> None:
        """The file in *slot*, which `fill_slot` has written, exists now. Raises StatusError."""
        try:
            self._changes.log_received(op, location.name, timestamp)
            slot.write_header()
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._changes.notify(op, location)

    def note(self, location: Location, timestamp: int, op: str) -> None:
        """Log a record that changes nothing here."""
        self._changes.log_received(op, location.name, timestamp)

    # --- parts --------------------------------------------------------------------------------

    def size(self, location: Location) -> int | None:
        """Bytes of the file, None without one. Raises StatusError 17: not a regular file."""
        try:
            info = os.lstat(self._paths.of(location))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        if not stat.S_ISREG(info.st_mode):
            raise StatusError(errno.EEXIST)
        return info.st_size

    def write(
        self, location: Location, offset: int, content: memoryview, timestamp: int, op: str
    ) -> None:
        """A part that is in memory. Raises StatusError 2, 28, 5."""
        fd = self._store.paths.open_to_change(location)
        try:
            pwrite_all(fd, content, offset)
            self.wrote(location, fd, (offset, len(content)), timestamp, op)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    def wrote(
        self, location: Location, fd: int, numbers: tuple[int, int], timestamp: int, op: str
    ) -> None:
        """Log a change that was made to the file *fd*. Raises OSError."""
        os.utime(fd, (timestamp, timestamp))
        extra = f" {numbers[0]} {numbers[1]}"
        self._changes.log_received(op, location.name, timestamp, extra)
        self._changes.notify(op, location)

    def truncate(self, location: Location, old: int, new: int, timestamp: int) -> None:
        """Set the file's size. Raises StatusError 2, 28, 5."""
        fd = self._store.paths.open_to_change(location)
        try:
            os.ftruncate(fd, new)
            self.wrote(location, fd, (old, new), timestamp, "t")
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    # --- names --------------------------------------------------------------------------------

    def delete(
        self, location: Location, timestamp: int, by: str, *, later_stays: bool = True
    ) -> None:
        """Delete the file or link, as the member *by* did, and its metadata, which that one may
        not have had; nothing if it was made again, or changed, later than that.

        Also the deletion of a file that is not here is logged: its creation may be on the way.

        Args:
            later_stays: False for stock members: with clocks that differ their deletions may
                seem to be earlier than what they delete.

        Raises:
            StatusError: 2 it is not here, 5.
        """
        nature = subject_of(location.name).nature
        known = self._deleted.at(location.name) is not None
        self._deleted.add(location.name, timestamp, by)
        if later_stays and self._outlives(nature, location, timestamp):
            return
        try:
            missing = not self._store.remove(location)
            if not (missing and known):
                self._changes.log_received("d", location.name, timestamp)
            if not location.base.endswith(METADATA_SUFFIX):
                self._delete_metadata(metadata_location(location), nature, timestamp, by)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        if missing:
            raise StatusError(errno.ENOENT)
        self._changes.notify("d", location)

    def _delete_metadata(self, metadata: Location, master: Nature, timestamp: int, by: str) -> None:
        if not self._outlives(master, metadata, timestamp) and self._store.remove(metadata):
            self._deleted.add(metadata.name, timestamp, by)
            self._changes.log_received("d", metadata.name, timestamp)
            self._changes.notify("d", metadata)

    def _outlives(self, nature: Nature, location: Location, timestamp: int) -> bool:
        """See `outlives`. Of files that are made once there is no need to look."""
        return nature is Nature.REPLACED and outlives(nature, self.find(location), timestamp)

    def link(self, location: Location, target: Location, timestamp: int, by: str) -> None:
        """A symbolic link, as *by* made it; nothing when its name is taken or was deleted.

        The target may be on its way here from another member, so it need not be here yet. Raises
        StatusError 5.
        """
        path, target_path = self._paths.of(location), self._paths.of(target)
        deleted = stays_deleted(
            subject_of(location.name).nature,
            timestamp,
            self._deleted.at(location.name),
            elsewhere=self.deleted_elsewhere(location, by),
        )
        try:
            self._changes.log_received("l", location.name, timestamp, f" {target.name}")
            if deleted or os.path.lexists(path):
                return
            os.symlink(target_path, path)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._changes.notify("l", location, target)

    def rename(self, new: Location, old: Location, timestamp: int, by: str, *, fits: bool) -> None:
        """Give *old* the name *new*, as *by* did, if that is what its content has to be called.

        One that does not fit is deleted: a change of it was overtaken by its new name.

        Args:
            fits: *old* exists, with the content that *new* promises.

        Raises:
            StatusError: 17 the new name is taken or deleted, 2 there is no usable *old*, 5.
        """
        path, old_path = self._paths.of(new), self._paths.of(old)
        try:
            taken = os.path.lexists(path) or self._deleted.at(new.name) is not None
            if not taken and fits:
                self._changes.log_received("r", new.name, timestamp, f" {old.name}")
                os.rename(old_path, path)
                self._deleted.add(old.name, timestamp, by)
                self._changes.notify("r", new, old)
                return
            if os.path.lexists(path):
                # It came from a recovery, which writes no binlog: others recover by our binlog.
                self.note(new, timestamp, "c")
            if os.path.lexists(old_path):
                self.delete(old, timestamp, by)
        except OSError as exc:
            if isinstance(exc, StatusError):
                raise
            raise StatusError(status_of(exc)) from exc
        raise StatusError(errno.EEXIST if taken else errno.ENOENT)

    def locate(self, name: str) -> Location:
        """Check a file name. Raises ProtocolError."""
        location = self._store.locate(name)
        if location.name != name:
            raise ProtocolError(f"{name!r} is not how a storage writes a file name")
        return location
