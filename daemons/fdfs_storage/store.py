"""The object files of a storage: naming, writing, changing and deleting them.

Everything that changes an object goes through here, by-id requests of FastDFS clients as well as
the names engine, so that each change is in the binlog before it is answered, and observers hear
of it. Layout: protocol/disk.md sections 1 and 5; names: protocol/file-id.md.

What a crash (kill -9) may leave at each step, and why that is right:

=============== =================================================================================
change          order and why
=============== =================================================================================
new file        content into a file without a name (O_TMPFILE), binlog line, name. Before the name
                is there nothing exists; a line without its file is skipped by every reader. So an
                object that exists is always in the binlog
delete          binlog line, then unlink. A line whose file still exists is carried out at start
truncate        binlog line, then truncate; carried out at start as well
append, modify  data, then binlog line (which tells peers what to fetch). An append that was not
                answered may stay; that is so with every append whose answer is lost
new metadata    as a new file
metadata again  binlog line (U), then rename of a whole temporary file: readers see old or new
link            as a new file: binlog line (L), then the symbolic link
rename          binlog line (R), then rename; carried out at start as well
=============== =================================================================================

All methods are called on the loop thread, unless they say otherwise; those that are not async
never wait except for the disk, and do little. File contents of more than a few KiB should be
written in a thread, through the descriptor (`NewFile.fd`, `open_object`).
"""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from fdfs_storage import directories, trunk
from fdfs_storage.binlog import Binlog
from fdfs_storage.counters import Counters
from fdfs_storage.files import (
    copy_into,
    pwrite_all,
    sync_directory,
    unlink_quietly,
    write_all,
)
from fdfs_storage.files import (
    status_of as status_of,
)
from fdfs_storage.locks import PathLocks
from fdfs_storage.naming import NAME_TRIES, Naming
from fdfs_storage.new_file import NewFile
from fdfs_storage.space import PathSpace, Space, TotalSpace
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import (
    METADATA_SUFFIX,
    Location,
    is_slave,
    parse_location,
)
from fdfsfuse.proto.trunk import find_slot, is_trunk_name

if TYPE_CHECKING:
    from fdfsfuse.core.conf_file import ReservedSpace
    from fdfsfuse.core.config import StorageConfig, StorePath

logger = logging.getLogger(__name__)

Observer = Callable[[str, Location, Location | None], None]
"""Called with (binlog op, location, other) after a change; metadata changes have a location that
ends in ``-m``, *other* is the target of a link or the old name of a rename. Must not raise, and
must be quick."""

ANY_PATH = None
_UNLINK_IN_THREAD_BYTES = 16 << 20
_SAVE_COUNTERS_S = 10.0
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_UNNAMED_FLAGS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC


class Store:
    """All store paths of a storage. Made by `Store.open`.

    Attributes:
        binlog: the change log; ``binlog.position`` is where the next change will be.
        counters: statistics; counted up by the request handlers.
        observers: functions told of every change.
        locks: one lock per object for changes that last over an await; see `PathLocks`.
    """

    def __init__(
        self,
        base_path: Path,
        store_paths: Sequence[StorePath],
        *,
        subdir_count: int,
        distribute_by_hash: bool,
        rotate_count: int,
        rng: random.Random | None = None,
    ) -> None:
        self.binlog = Binlog.open(base_path)
        self._stat_path = base_path / "data" / "storage_stat.dat"
        self.counters = Counters.load(self._stat_path)
        self.observers: list[Observer] = []
        self.locks = PathLocks()
        self.path_count = len(store_paths)
        self.subdir_count = subdir_count
        self._paths = [path.path for path in store_paths]
        self._data = [f"{path.path}/data/" for path in store_paths]
        self._unnamed = [directories.supports_unnamed_files(p.path) for p in store_paths]
        self._space = Space(self._paths)
        self._naming = Naming(
            self.counters,
            self._space,
            [not path.readonly for path in store_paths],
            subdir_count=subdir_count,
            by_hash=distribute_by_hash,
            rotate_count=rotate_count,
            rng=rng,
        )
        self._temporary_number = 0
        self._doomed: list[str] = []
        self._wake = trio.Event()

    @classmethod
    async def open(cls, config: StorageConfig) -> Store:
        """Open the store of a configuration: make directories, finish what a crash cut off.

        Raises:
            OSError: a path cannot be used; the text names it.
        """

        def prepare() -> Store:
            for path in config.store_paths:
                directories.prepare(path.path, config.subdir_count_per_path)
            store = cls(
                Path(config.base_path),
                config.store_paths,
                subdir_count=config.subdir_count_per_path,
                distribute_by_hash=config.file_distribute_path_mode == 1,
                rotate_count=config.file_distribute_rotate_count,
            )
            store._finish_interrupted()
            return store

        return await trio.to_thread.run_sync(prepare)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background service: removes large deleted files, saves the counters when they changed."""
        task_status.started()
        saved = b""
        while True:
            with trio.move_on_after(_SAVE_COUNTERS_S):
                await self._wake.wait()
            self._wake = trio.Event()
            doomed, self._doomed = self._doomed, []
            for path in doomed:
                await trio.to_thread.run_sync(unlink_quietly, path)
            now = self.counters.statistics().encode()
            if now != saved:
                await trio.to_thread.run_sync(self.counters.save, self._stat_path)
                saved = now

    def close(self) -> None:
        """Save the counters and close the binlog, synced."""
        self.counters.save(self._stat_path)
        self.binlog.sync()
        self.binlog.close()

    def configure(
        self, source: str, reserved: ReservedSpace, *, prefer_most_free: bool = False
    ) -> None:
        """Set what the tracker decides.

        Args:
            source: this storage as it is written into file names: its IPv4 address or its id.
            reserved: space that uploads must leave free.
            prefer_most_free: the storage chooses the path with most free space for uploads that
                name none (store_path=2), instead of taking turns.
        """
        self._naming.configure(source, prefer_most_free=prefer_most_free)
        self._space.reserved = reserved

    # --- where things are -------------------------------------------------------------------

    def locate(self, name: str) -> Location:
        """Check a file name (protocol/wire.md section 4). Raises ProtocolError (status 22)."""
        return parse_location(name, self.path_count)

    def path(self, location: Location) -> str:
        """Absolute path of the object's file."""
        return self._data[location.path_index] + location.relative

    def metadata_path(self, location: Location) -> str:
        """Absolute path of the object's metadata file."""
        return self._data[location.path_index] + location.relative + METADATA_SUFFIX

    def data_directory(self, path_index: int) -> str:
        """``STORE_PATH/data``, the directory of the sub directories."""
        return self._data[path_index][:-1]

    def slot(self, location: Location) -> trunk.SlotPlace | None:
        """The place of an object that a C server put into a trunk file; None for all others."""
        found = find_slot(location)
        if found is None:
            return None
        return trunk.SlotPlace(os.path.dirname(self.path(location)), found)

    def exists(self, location: Location) -> bool:
        """True when there is a file (or link, or directory) of that name."""
        if is_trunk_name(location) and (slot := self.slot(location)) is not None:
            return slot.exists()
        return os.access(self.path(location), os.F_OK)

    def stat(self, location: Location) -> os.stat_result:
        """stat() of the object's file, links followed. Raises StatusError 2."""
        if is_trunk_name(location) and (slot := self.slot(location)) is not None:
            return slot.stat()
        try:
            return os.stat(self.path(location))
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def space(self) -> list[PathSpace]:
        """Total and free MB of each store path, at most a second old."""
        return self._space.paths()

    def total_space(self) -> TotalSpace:
        """All store paths together, in bytes."""
        return self._space.total()

    # --- new objects ------------------------------------------------------------------------

    def make_name(
        self,
        size: int,
        crc32: int,
        mtime: int,
        extension: str,
        *,
        appender: bool = False,
        path_index: int | None = ANY_PATH,
        takes_space: bool = True,
    ) -> Location:
        """A new, unique name for an object that `write_at`, `create_empty` or `copy` will make.

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
        high, low = self._naming.next_directory()
        for _ in range(NAME_TRIES):
            location = self._naming.new_location(
                index, high, low, size, crc32, mtime, extension, appender
            )
            if not self.exists(location):
                return location
        raise StatusError(errno.EBUSY, "no unique name found")

    def make_normal_name(self, old: Location, size: int, crc32: int, mtime: int) -> Location:
        """A new name for the appender *old* as a normal file: it keeps its directory and suffix.

        Raises:
            StatusError: 16 no unique name was found.
        """
        return self._naming.normal_location(old, size, crc32, mtime)

    def write_at(self, location: Location, data: bytes, mtime: int | None = None) -> None:
        """Make the object *location*, a fresh name, with *data* as its content.

        The file's mtime is *mtime* (Unix seconds) or now. Raises StatusError 28, 5, 17.
        """
        new = self._open_unnamed(location.path_index, location.high, location.low)
        try:
            write_all(new.fd, data)
            if mtime is not None:
                os.utime(new.fd, (mtime, mtime))
            self._publish(new, location, mtime)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            new.close()

    def create_empty(self, location: Location) -> None:
        """Make the empty object *location* (an appender to be written to)."""
        self.write_at(location, b"")

    def open_new(self, path_index: int | None, size: int) -> NewFile:
        """Begin a file of *size* bytes whose name will be known only at its end.

        Raises:
            StatusError: 28 no space, 5 the disk failed.
        """
        index = self._naming.choose_path(path_index, size)
        high, low = self._naming.next_directory()
        try:
            return self._open_unnamed(index, high, low)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def open_new_at(self, near: Location) -> NewFile:
        """Begin a file in the directory of the existing object *near*, for `commit_at`.

        Raises:
            StatusError: 5 the disk failed.
        """
        try:
            return self._open_unnamed(near.path_index, near.high, near.low)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def commit_at(self, new: NewFile, location: Location) -> None:
        """Name what was written into *new*, as `commit` does, but with a given name.

        Raises:
            StatusError: 17 the name exists, 28, 5.
        """
        if self.exists(location):
            raise StatusError(errno.EEXIST)
        try:
            self._publish(new, location, None)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def check_space(self, path_index: int, size: int) -> None:
        """Raises StatusError 28 unless *size* more bytes may go to the store path."""
        if not self._space.fits(path_index, size):
            raise StatusError(errno.ENOSPC)

    def commit(
        self, new: NewFile, size: int, crc32: int, extension: str, *, appender: bool = False
    ) -> Location:
        """Name what was written into *new*: it is an object from now on. *new* is closed by the
        caller.

        Raises:
            StatusError: 16 no unique name, 28, 5.
        """
        now = int(time.time())
        for _ in range(NAME_TRIES):
            location = self._naming.new_location(
                new.path_index, new.high, new.low, size, crc32, now, extension, appender
            )
            try:
                self._publish(new, location, now)
            except FileExistsError:
                continue  # linking never replaces, so there is no need to look first
            except OSError as exc:
                raise StatusError(status_of(exc)) from exc
            return location
        raise StatusError(errno.EBUSY, "no unique name found")

    async def copy(self, source: Location, target: Location) -> int:
        """Make the object *target*, a fresh name, with the content of *source*; returns its size.

        The kernel copies, or shares blocks where the file system can. Metadata is not copied.
        Raises StatusError 2, 28, 5.
        """
        try:
            new = self._open_unnamed(target.path_index, target.high, target.low)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        slot = self.slot(source)
        try:
            if slot is not None:
                size = await trio.to_thread.run_sync(slot.copy_into, new.fd)
            else:
                size = await trio.to_thread.run_sync(copy_into, self.path(source), new.fd)
            self._publish(new, target, None)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            new.close()
        return size

    def _open_unnamed(self, index: int, high: int, low: int) -> NewFile:
        """A new file without a name. Raises OSError."""
        if not self._unnamed[index]:
            temporary = self._temporary_path(index)
            return NewFile(os.open(temporary, _CREATE_FLAGS, 0o644), index, high, low, temporary)
        directory = f"{self._data[index]}{high:02X}/{low:02X}"
        try:
            fd = os.open(directory, _UNNAMED_FLAGS, 0o644)
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)
            fd = os.open(directory, _UNNAMED_FLAGS, 0o644)
        return NewFile(fd, index, high, low)

    def _temporary_path(self, index: int) -> str:
        self._temporary_number += 1
        number = self._temporary_number
        return f"{self._data[index]}{directories.TEMPORARY_PREFIX}{os.getpid()}-{number}"

    def _publish(
        self, new: NewFile, location: Location, timestamp: int | None, op: str = ops.CREATE
    ) -> None:
        """Binlog line and name, in this order (see the top). Raises OSError."""
        self._log(op, location, timestamp)
        path = self.path(location)
        if not new.temporary:
            directories.link_unnamed(new.fd, path)
        else:
            os.link(new.temporary, path)
        self._notify(op, location)

    # --- deleting ---------------------------------------------------------------------------

    def delete(self, location: Location) -> None:
        """Delete the object and its metadata.

        A slave that a C server stored as a link takes the file with it that it points to.

        Raises:
            StatusError: 2 it does not exist, 22 it is neither a file nor a link, 5.
        """
        path = self.path(location)
        if is_trunk_name(location) and (slot := self.slot(location)) is not None:
            self._delete_slot(location, slot)
            return
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode) and is_slave(location.name, in_trunk=False):
                self._delete_link_target(location)
            elif not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
                raise StatusError(errno.EINVAL, "neither a file nor a link")
            metadata = self.metadata_path(location)
            has_metadata = os.access(metadata, os.F_OK)
            self._log(ops.DELETE, location)
            self._unlink(path, info.st_size, location.path_index)
            self._notify(ops.DELETE, location)
            if has_metadata:
                self._delete_metadata(location, metadata)
        except StatusError:
            raise
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _delete_slot(self, location: Location, slot: trunk.SlotPlace) -> None:
        slot.stat()
        metadata = self.metadata_path(location)
        try:
            self._log(ops.DELETE, location)
            slot.clear()
            self._notify(ops.DELETE, location)
            if os.access(metadata, os.F_OK):
                self._delete_metadata(location, metadata)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _unlink(self, path: str, size: int, path_index: int) -> None:
        """Unlink; large files lose their name here and their blocks in the background."""
        if size < _UNLINK_IN_THREAD_BYTES:
            os.unlink(path)
            return
        temporary = self._temporary_path(path_index)
        os.rename(path, temporary)
        self._doomed.append(temporary)
        self._wake.set()

    def _delete_link_target(self, link: Location) -> None:
        target = self._link_target(link)
        if target is not None:
            try:
                self.delete(target)
            except StatusError:
                logger.warning("the target %s of the deleted link stays", target.name)

    # --- new names for existing content -----------------------------------------------------

    def link(self, location: Location, target: Location) -> None:
        """Make *location*, a fresh name, a symbolic link to the object *target*.

        A link to a link points to what that one points to, so that it outlives it.

        Raises:
            StatusError: 17 the name exists, 95 the target is in a trunk file, 28, 5.
        """
        if self.slot(target) is not None:
            raise StatusError(errno.EOPNOTSUPP, "no links to files in trunk files")
        target = self._link_target(target) or target
        try:
            if os.path.lexists(self.path(location)):
                raise StatusError(errno.EEXIST)
            self._log(ops.LINK, location, None, f" {target.name}")
            os.symlink(self.path(target), self.path(location))
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._notify(ops.LINK, location, target)

    def rename(self, old: Location, new: Location) -> None:
        """Give the object *old* the fresh name *new*; its metadata is lost, as in FastDFS.

        Raises:
            StatusError: 2 there is no *old*, 5.
        """
        path = self.path(old)
        metadata = self.metadata_path(old)
        try:
            if not os.path.lexists(path):
                raise StatusError(errno.ENOENT)
            self._log(ops.RENAME, new, None, f" {old.name}")
            os.rename(path, self.path(new))
            self._notify(ops.RENAME, new, old)
            if os.access(metadata, os.F_OK):
                self._delete_metadata(old, metadata)
        except StatusError:
            raise
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _link_target(self, location: Location) -> Location | None:
        """The object that a link points to; None when it is no link, or points elsewhere."""
        try:
            target = os.readlink(self.path(location))
        except OSError:
            return None
        for index, data in enumerate(self._data):
            if target.startswith(data):
                try:
                    return self.locate(f"M{index:02X}/{target[len(data) :]}")
                except ProtocolError:
                    return None
        return None

    # --- metadata ---------------------------------------------------------------------------

    def read_metadata(self, location: Location) -> bytes | None:
        """The metadata text, or None when there is none (or no object)."""
        try:
            fd = os.open(self.metadata_path(location), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        try:
            with os.fdopen(fd, "rb", buffering=0) as file:
                return file.read()
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def write_metadata(self, location: Location, text: bytes) -> None:
        """Replace the metadata text; empty *text* removes it. The object itself is not looked at.

        Raises:
            StatusError: 28, 5.
        """
        path = self.metadata_path(location)
        try:
            exists = os.access(path, os.F_OK)
            if not text:
                if exists:
                    self._delete_metadata(location, path)
            elif exists:
                self._replace_metadata(location, path, text)
            else:
                new = self._open_unnamed(location.path_index, location.high, location.low)
                try:
                    write_all(new.fd, text)
                    self._publish(new, _metadata_location(location), None)
                finally:
                    new.close()
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _replace_metadata(self, location: Location, path: str, text: bytes) -> None:
        temporary = self._temporary_path(location.path_index)
        fd = os.open(temporary, _CREATE_FLAGS, 0o644)
        try:
            try:
                write_all(fd, text)
            finally:
                os.close(fd)
            self._log(ops.UPDATE, _metadata_location(location))
            os.rename(temporary, path)
        except OSError:
            unlink_quietly(temporary)
            raise
        self._notify(ops.UPDATE, _metadata_location(location))

    def _delete_metadata(self, location: Location, path: str) -> None:
        self._log(ops.DELETE, _metadata_location(location))
        os.unlink(path)
        self._notify(ops.DELETE, _metadata_location(location))

    # --- changing appenders -----------------------------------------------------------------

    def open_object(self, location: Location, *, write: bool = False) -> int:
        """A descriptor of the object, to be closed by the caller. Raises StatusError 2, 22, 5."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            return os.open(self.path(location), flags)
        except IsADirectoryError as exc:
            raise StatusError(errno.EINVAL) from exc
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def pwrite(self, location: Location, offset: int, data: bytes | memoryview) -> None:
        """Write a small piece at *offset*, in one go, with its binlog record.

        Raises:
            StatusError: 2 it does not exist, 28, 5.
        """
        fd = self.open_object(location, write=True)
        try:
            old_size = os.fstat(fd).st_size
            pwrite_all(fd, data, offset)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)
        self.record_write(location, offset, len(data), old_size)

    def record_write(self, location: Location, offset: int, length: int, old_size: int) -> None:
        """Log *length* bytes that were written at *offset* when the object had *old_size*.

        An append when they begin at the old end, else a modification.
        """
        op = ops.APPEND if offset == old_size else ops.MODIFY
        try:
            self._log(op, location, None, f" {offset} {length}")
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self._notify(op, location)

    def truncate(self, location: Location, size: int) -> None:
        """Set the object's size, with zero bytes where it grows; nothing if it has that size.

        Raises:
            StatusError: 2 it does not exist, 28, 5.
        """
        fd = self.open_object(location, write=True)
        try:
            old_size = os.fstat(fd).st_size
            if old_size != size:
                self._log(ops.TRUNCATE, location, None, f" {old_size} {size}")
                os.ftruncate(fd, size)
                self._notify(ops.TRUNCATE, location)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    # --- durability -------------------------------------------------------------------------

    async def sync_file(self, location: Location) -> None:
        """Make the object (content, size, name) survive the loss of power. Raises StatusError."""
        path = self.path(location)

        def sync() -> None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            sync_directory(os.path.dirname(path))
            self.binlog.sync()

        try:
            await trio.to_thread.run_sync(sync)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    # --- the log ----------------------------------------------------------------------------

    def _log(
        self, op: str, location: Location, timestamp: int | None = None, extra: str = ""
    ) -> None:
        if timestamp is None:
            timestamp = int(time.time())
        self.binlog.append(f"{timestamp} {op} {location.name}{extra}\n".encode("ascii"))
        self.counters.last_source_update = timestamp

    def _notify(self, op: str, location: Location, other: Location | None = None) -> None:
        for observer in self.observers:
            observer(op, location, other)

    def _finish_interrupted(self) -> None:
        """Carry out what is the last record of its object and was logged before a crash only."""
        last = {record.name: record for record in self.binlog.tail()}
        for record in last.values():
            if not record.is_own:
                continue
            try:
                location = self.locate(record.name)
                if record.op == ops.RENAME:
                    self._finish_rename(self.locate(record.other_name), location)
                elif record.op == ops.DELETE:
                    self._finish_deletion(location)
                elif record.op == ops.TRUNCATE:
                    self._finish_truncation(location, *record.numbers)
            except (ProtocolError, OSError):
                continue

    def _finish_rename(self, old: Location, new: Location) -> None:
        if not os.path.lexists(self.path(new)):
            self.rename(old, new)
            logger.info("finished renaming %s to %s", old.name, new.name)
        elif os.path.lexists(self.metadata_path(old)):
            self._delete_metadata(old, self.metadata_path(old))

    def _finish_deletion(self, location: Location) -> None:
        path = self.path(location)
        slot = self.slot(location)
        if slot is not None and slot.exists():
            logger.info("finishing the deletion of %s", location.name)
            slot.clear()
        elif os.path.lexists(path):
            logger.info("finishing the deletion of %s", location.name)
            unlink_quietly(path)

    def _finish_truncation(self, location: Location, old_size: int, size: int) -> None:
        path = self.path(location)
        if os.lstat(path).st_size == old_size:
            logger.info("finishing the truncation of %s", location.name)
            os.truncate(path, size)


def _metadata_location(location: Location) -> Location:
    return Location(
        location.path_index, location.high, location.low, location.base + METADATA_SUFFIX
    )
