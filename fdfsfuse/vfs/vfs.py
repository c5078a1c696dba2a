"""A mount without FUSE: everything that the FUSE layer translates to.

::

    async with trio.open_nursery() as nursery:
        vfs = Vfs(options, cluster)
        await nursery.start(vfs.run)
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

import trio

from fdfsfuse.errors import TreeError
from fdfsfuse.proto import names
from fdfsfuse.vfs.backend import Cluster
from fdfsfuse.vfs.context import Context, Entry
from fdfsfuse.vfs.idtree import IdTree
from fdfsfuse.vfs.listing import (
    DirHandle,
    DirHandles,
    IdSource,
    NamesSource,
    ObjectSource,
    RootSource,
    Source,
    VolumeRootSource,
)
from fdfsfuse.vfs.numbers import id_directory
from fdfsfuse.vfs.openfiles import OpenFiles
from fdfsfuse.vfs.options import VfsOptions
from fdfsfuse.vfs.ownfiles import tell
from fdfsfuse.vfs.recalls import Kernel, NoKernel
from fdfsfuse.vfs.tree import Changes, Tree
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.volumes import Volumes
from fdfsfuse.vfs.xattrs import Xattrs

log = logging.getLogger(__name__)


class Vfs:
    """The parts: ``tree`` (names and attributes), ``files`` (handles), ``xattrs``, directories."""

    def __init__(self, options: VfsOptions, cluster: Cluster, kernel: Kernel | None = None) -> None:
        self.context = Context(options, kernel or NoKernel())
        self.volumes = Volumes(self.context, cluster)
        ids = IdTree(self.context, self.volumes)
        self.directories = DirHandles()
        self.tree = Tree(self.context, self.volumes, ids, self.directories)
        self.files = OpenFiles(self.context, self.volumes, self.tree)
        self.xattrs = Xattrs(self.context, self.tree)
        self._stop = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`; started once the trackers have told the volumes.

        Raises:
            ConnectionProblem: no tracker answers. ConfigError: the volume or directory that is to
                be the root is not there.
        """
        async with trio.open_nursery() as nursery:
            self.context.nursery = nursery
            await self.volumes.refresh()
            self.context.spawn(self.volumes.run)
            if self.context.options.top:
                await self.volumes.open_top()
            self.context.spawn(self.files.run)
            task_status.started()
            await self._stop.wait()
            await self.volumes.close()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`; what is not stored is lost: call ``files.store_all`` first."""
        self._stop.set()

    def remember(self, entry: Entry) -> Entry:
        """Count an entry that is given to the kernel as the answer to a lookup."""
        self.context.numbers.remember(entry.number)
        return entry

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take lookups back: (inode number, how many) pairs."""
        for number in self.context.numbers.forget(counts):
            self.context.pages.drop(number)
            self.context.objects.drop(number)
            self.xattrs.forget(number)
            if number not in self.context.states:
                self.context.numbers.drop(number)

    async def set_attributes(
        self, number: int, size: int | None, changes: Changes, handle: int | None
    ) -> Entry:
        """setattr: truncate, then whatever else is to be changed."""
        if size is not None:
            await self.files.truncate(number, size, handle)
            if changes == Changes():
                return await self.tree.getattr(number)
        return await self.tree.set_attributes(number, changes)

    def open_directory(self, number: int) -> int:
        """opendir(). Fetches nothing yet."""
        handle = DirHandle(self.context, number, self._volume_of(number), self._source(number))
        return self.directories.open(handle)

    async def tell_of_directory(self, handle: int) -> None:
        """fsyncdir(): wait until the storage has made all changes and all new files in it.

        Raises:
            TreeError: EIO, it could not be told of all files; programs that have these open get the
                reason. Or the errno with which it has refused a change that was answered already.
        """
        number = self.directories.get(handle).number
        volume = self._volume_of(number)
        if volume is not None and id_directory(number) is None:
            _, ino, _ = self.tree.inode(number)
            untold = await tell(volume.own_files.inside([ino]))
            await volume.wait_for_changes()
            refused = volume.own_changes.take_error(ino)
            if untold or refused:
                raise TreeError(refused or errno.EIO)

    def _volume_of(self, number: int) -> Volume | None:
        return None if number == self.context.volumes_at else self.tree.volume(number)

    def _source(self, number: int) -> Source:
        if number == self.context.volumes_at:
            return RootSource(self.volumes)
        volume = self.tree.volume(number)
        directory = id_directory(number)
        if directory is None:
            _, ino, _ = self.tree.inode(number)
            if ino == names.ROOT_INO:
                return VolumeRootSource(self.context, self.volumes, volume)
            return NamesSource(self.context, volume, ino)
        if directory.level < 2:
            return IdSource(self.volumes, volume, directory)
        return ObjectSource(self.context, volume, directory)
