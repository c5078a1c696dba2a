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
small new file  binlog line, file under its name, content, with nothing else between: the line of a
                file that is not whole is the last one, and the file is removed at start. Not for
                appenders: their names do not tell what is whole. If the content is on the disk
                elsewhere (in the log of names), the lines of several may come first: peers get
                it from memory while the files are made. What a crash leaves in part is made whole
                from there; what cannot be made is logged as deleted
delete          binlog line, then unlink. A line whose file still exists is carried out at start.
                What takes long to unlink gets a temporary name, which is removed at start as well
truncate        binlog line, then truncate; carried out at start as well
append, modify  a small piece: binlog line, then data, before any peer can be told. Of a line whose
                data is not there, or in part, peers are sent what there is. What is received in
                pieces: a note (`intents`), data, then binlog line; the note is dealt with at start
new metadata    as a new file
metadata again  binlog line (U), then a whole temporary file in place of the old one: readers see
                old or new
link            as a new file: binlog line (L), then the symbolic link
rename          binlog line (R), then rename; carried out at start as well
=============== =================================================================================

All methods are called on the loop thread, unless they say otherwise; those that are not async
never wait except for the disk, and do little. File contents of more than a few KiB should be
written in a thread, through the descriptor (`NewFile.fd`, `Paths.open_to_change`).
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from fdfs_storage import directories
from fdfs_storage.appenders import Appenders
from fdfs_storage.binlog import Binlog
from fdfs_storage.changes import Changes
from fdfs_storage.counters import Counters
from fdfs_storage.creations import Creations
from fdfs_storage.deletions import Deletions
from fdfs_storage.files import status_of, sync_directory
from fdfs_storage.intents import Intents
from fdfs_storage.locks import Locks
from fdfs_storage.metadata_files import MetadataFiles
from fdfs_storage.naming import Naming
from fdfs_storage.paths import Paths, metadata_location
from fdfs_storage.space import PathSpace, Space, TotalSpace
from fdfs_storage.unfinished import finish_changes, finish_interrupted
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import Location, parse_location

if TYPE_CHECKING:
    from fdfsfuse.core.conf_file import ReservedSpace
    from fdfsfuse.core.config import StorageConfig, StorePath

_SAVE_COUNTERS_S = 10.0


class Store:
    """All store paths of a storage. Made by `Store.open`.

    Attributes:
        binlog: the change log; ``binlog.position`` is where the next change will be.
        counters: statistics; counted up by the request handlers.
        changes: the way into the binlog, and who is told of every change.
        paths: where files are on the disk.
        path: `Paths.of`.
        slot: `Paths.slot`.
        exists: `Paths.exists`.
        creations: makes objects.
        read_metadata: the metadata text of a location, None when there is none (or no object).
        delete: `Deletions.delete`.
        remove: `Deletions.remove`.
        appenders: changes the content of objects.
        intents: notes of changes whose bytes are being received.
        locks: one lock per object, for changes that last over an await.
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
        self.changes = Changes(self.binlog, self.counters)
        self.locks: Locks[Location] = Locks()
        self.path_count = len(store_paths)
        self.subdir_count = subdir_count
        mounts = [path.path for path in store_paths]
        self.paths = Paths(mounts)
        self.path = self.paths.of
        self.slot = self.paths.slot
        self.exists = self.paths.exists
        self.appenders = Appenders(self.paths, self.changes)
        self.intents = Intents(base_path / "data")
        self._metadata = MetadataFiles(self.paths, self.changes)
        self.read_metadata = self._metadata.read
        self._space = Space(mounts)
        self._naming = Naming(
            self.counters,
            self._space,
            [not path.readonly for path in store_paths],
            subdir_count=subdir_count,
            by_hash=distribute_by_hash,
            rotate_count=rotate_count,
            rng=rng,
        )
        self._wake = trio.Event()
        self._deletions = Deletions(
            self.paths, self.changes, self._metadata, lambda: self._wake.set()
        )
        self.creations = Creations(self.paths, self._naming, self.changes, self._deletions)
        self.delete = self._deletions.delete
        self.remove = self._deletions.remove

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
            finish_interrupted(store)
            finish_changes(store)
            return store

        return await trio.to_thread.run_sync(prepare)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background service: removes deleted files, saves the counters when they changed."""
        task_status.started()
        saved, save_at = b"", trio.current_time() + _SAVE_COUNTERS_S
        while True:
            with trio.move_on_at(save_at):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._deletions.finish()
            if trio.current_time() < save_at:
                continue
            save_at += _SAVE_COUNTERS_S
            now = self.counters.statistics().encode()
            if now != saved:
                await trio.to_thread.run_sync(self.counters.save, self._stat_path)
                saved = now

    def close(self) -> None:
        """Save the counters, close the binlog, synced, and remove what was deleted."""
        self.counters.save(self._stat_path)
        self.binlog.sync()
        self.binlog.close()
        self.intents.close()
        self._deletions.close()

    def configure(
        self,
        source: str,
        reserved: ReservedSpace,
        *,
        prefer_most_free: bool = False,
        trunk_file_size: int = 0,
    ) -> None:
        """Set what the tracker decides.

        Args:
            source: this storage as it is written into file names: its IPv4 address or its id.
            reserved: space that uploads must leave free.
            prefer_most_free: the storage chooses the path with most free space for uploads that
                name none (store_path=2), instead of taking turns.
            trunk_file_size: bytes, of a trunk file that a C storage begins.
        """
        self._naming.configure(source, prefer_most_free=prefer_most_free)
        self._space.reserve(reserved)
        self.paths.trunk_file_size = trunk_file_size

    # --- where things are -------------------------------------------------------------------

    def locate(self, name: str) -> Location:
        """Check a file name (protocol/wire.md section 4). Raises ProtocolError (status 22)."""
        return parse_location(name, self.path_count)

    def data_directory(self, path_index: int) -> str:
        """``STORE_PATH/data``, the directory of the sub directories."""
        return self.paths.data[path_index][:-1]

    def stat(self, location: Location) -> os.stat_result:
        """stat() of the object's file, links followed. Raises StatusError 2."""
        try:
            return os.stat(self.paths.of(location))
        except OSError as exc:
            slot = self.slot(location)
            if slot is not None:
                return slot.stat()
            raise StatusError(status_of(exc)) from exc

    def space(self) -> list[PathSpace]:
        """Total and free MB of each store path, at most a second old."""
        return self._space.paths()

    def total_space(self) -> TotalSpace:
        """All store paths together, in bytes."""
        return self._space.total()

    def check_space(self, path_index: int, size: int) -> None:
        """Raises StatusError 28 unless *size* more bytes may go to the store path."""
        if not self._space.fits(path_index, size):
            raise StatusError(errno.ENOSPC)

    # --- new names for existing content -----------------------------------------------------

    def link(self, location: Location, target: Location) -> None:
        """Make *location*, a fresh name, a symbolic link to the object *target*.

        A link to a link points to what that one points to, so that it outlives it.

        Raises:
            StatusError: 17 the name exists, 95 the target is in a trunk file, 28, 5.
        """
        if self.slot(target) is not None:
            raise StatusError(errno.EOPNOTSUPP, "no links to files in trunk files")
        target = self.paths.link_target(target) or target
        try:
            if os.path.lexists(self.path(location)):
                raise StatusError(errno.EEXIST)
            self.changes.log(ops.LINK, location, None, f" {target.name}")
            os.symlink(self.path(target), self.path(location))
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        self.changes.notify(ops.LINK, location, target)

    def rename(self, old: Location, new: Location) -> None:
        """Give the object *old* the fresh name *new*; its metadata is lost, as in FastDFS.

        Raises:
            StatusError: 2 there is no *old*, 5.
        """
        path = self.path(old)
        metadata = metadata_location(old)
        try:
            if not os.path.lexists(path):
                raise StatusError(errno.ENOENT)
            self.changes.log(ops.RENAME, new, None, f" {old.name}")
            os.rename(path, self.path(new))
            self.changes.notify(ops.RENAME, new, old)
            if os.access(self.paths.of(metadata), os.F_OK):
                self._metadata.delete(metadata)
        except StatusError:
            raise
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    # --- metadata ---------------------------------------------------------------------------

    def write_metadata(self, location: Location, text: bytes, *, kept: bool = False) -> None:
        """Replace the metadata text; empty *text* removes it. The object itself is not looked at.

        *kept*: see `Paths.replace`.

        Raises:
            StatusError: 28, 5.
        """
        self._metadata.write(location, text, kept=kept)

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
