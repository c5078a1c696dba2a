"""The tree of the mount: looking up names, attributes, and changes of names.

::

    /                          Volumes
    /VOLUME/...                a volume's names
    /VOLUME/M00/HH/HH/FILE     its objects by id (`fdfsfuse.vfs.idtree`)

Directories and files are named by inode numbers (`fdfsfuse.vfs.numbers`). Every method raises
TreeError, StatusError or ConnectionProblem.
"""

from __future__ import annotations

import errno
import logging
import stat
from typing import NamedTuple

from fdfsfuse.errors import FdfsError, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs import clock
from fdfsfuse.vfs.context import NO_ENTRY, Context, Entry
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.idtree import IdTree, store_path_of
from fdfsfuse.vfs.listing import DirHandles
from fdfsfuse.vfs.numbers import id_directory
from fdfsfuse.vfs.options import Ids
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.volumes import Volumes

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Owner(NamedTuple):
    """The owner of what is made."""

    uid: int
    gid: int


class Changes(NamedTuple):
    """What setattr changes. None leaves a value as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def request(self, ino: int) -> names.SetAttr:
        """The request that makes these changes to inode *ino*."""
        return names.SetAttr(ino, clock.now_ns(), *self)


def without_set_id(mode: int) -> int:
    """*mode* of a file after a change by which the set-id bits are lost.

    Without execution by the group the set-group-id bit means something else, and stays.
    """
    cleared = mode & ~stat.S_ISUID
    return cleared & ~stat.S_ISGID if mode & stat.S_IXGRP else cleared


class Tree:
    """See the module."""

    def __init__(
        self, context: Context, volumes: Volumes, ids: IdTree, directories: DirHandles
    ) -> None:
        self._context = context
        self._volumes = volumes
        self._ids = ids
        self._directories = directories

    # --- where things are ------------------------------------------------------------------------

    def inode(self, number: int) -> tuple[Volume, int, str]:
        """(volume, ino, '') of an inode, or (volume, 0, file id) of an unnamed object.

        Raises:
            TreeError: EPERM for the root and for directories of ids, ESTALE for what is gone.
        """
        found = self._volumes.named(number)
        if found is not None:
            return *found, ""
        if number == self._context.volumes_at or id_directory(number) is not None:
            raise TreeError(errno.EPERM)
        try:
            ino, file_id = self._context.numbers.inode_and_object(number)
            return self._volumes.of(number), ino, file_id
        except KeyError:
            raise TreeError(errno.ESTALE) from None

    def _parent(self, number: int) -> tuple[Volume, int]:
        found = self._volumes.named(number)
        if found is not None:
            return found
        volume, ino, file_id = self.inode(number)
        if file_id:
            raise TreeError(errno.ENOTDIR)
        return volume, ino

    def volume(self, number: int) -> Volume:
        """The volume of an inode other than the root."""
        try:
            return self._volumes.of(number)
        except KeyError:
            raise TreeError(errno.ESTALE) from None

    # --- looking ---------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Entry:
        """Find *name* in directory *parent*. The caller counts the lookup (`Vfs.remember`).

        Raises:
            TreeError, StatusError: ENOENT, there is no such name; ENAMETOOLONG.
        """
        entry = await self.find(parent, name)
        if not entry.number:
            raise TreeError(errno.ENOENT)
        return entry

    async def find(self, parent: int, name: bytes) -> Entry:
        """As `lookup`, but returns an entry with number 0 if there is no such name.

        The entry says how long the kernel may rely on that.
        """
        if len(name) > names.NAME_MAX:
            raise TreeError(errno.ENAMETOOLONG)
        found = self._volumes.named(parent)
        if found is None:
            if parent == self._context.volumes_at:
                return self._volumes.lookup(name) or NO_ENTRY
            directory = id_directory(parent)
            if directory is not None:
                return await self._ids.lookup(self.volume(parent), directory, name)
            found = self._parent(parent)
        volume, ino = found
        if ino == names.ROOT_INO and store_path_of(name) is not None:
            return self._ids.lookup_store_path(volume, name)
        memory = volume.memory
        known = memory.lookup(ino, name)
        if known is None:
            await volume.wait_ahead(ino)
            known = memory.lookup(ino, name)
        if known is None and memory.should_list(ino):
            await volume.call(names.ReadDir(ino, 0, names.LIST_MAX))
            known = memory.lookup(ino, name)
        if known == MISSING:
            return self._context.no_entry(volume, ino, name)
        attr: Attr | None = memory.attr(known) if known is not None else None
        if attr is None:
            try:
                attr = await volume.call(names.Lookup(ino, name))
            except StatusError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                return self._context.no_entry(volume, ino, name)
            assert attr is not None
            await self._look_ahead(volume, ino, attr.ino)
        else:
            volume.names_ahead.used(ino, attr.ino)
        return self._context.entry(volume, attr, ino, name)

    async def _look_ahead(self, volume: Volume, parent: int, ino: int) -> None:
        """Ask for the entries that follow one that was looked up, if that is likely to pay."""
        count, by_name, _ = volume.names_ahead.missed(parent, ino)
        if not count:
            return
        brought: set[int] = set()
        try:
            # The kernel has the directory locked until the lookup is answered.
            with volume.memory.flights.locked(parent):
                opened: names.Opened = await volume.call(names.Open(ino, 0, count, by_name))
            brought.update(entry.attr.ino for entry in opened.following)
        except FdfsError as exc:
            log.debug("nothing is known of what follows inode %d: %s", ino, exc)
        finally:
            volume.names_ahead.came(parent, brought)

    async def getattr(self, number: int) -> Entry:
        """The attributes of an inode."""
        if number == self._context.volumes_at:
            return self._volumes.root_entry()
        named = self._volumes.named(number)
        if named is None and id_directory(number) is not None:
            return self._ids.directory_entry(number)
        volume, ino, file_id = (*named, "") if named is not None else self.inode(number)
        if ino == names.ROOT_INO:
            return await self._volumes.volume_getattr(volume)
        if ino:
            attr = volume.memory.attr(ino) or await self._ask_for_attributes(volume, number, ino)
            return self._context.entry(volume, attr)
        known = self._context.objects.get(number)
        if known is not None:
            return Entry(number, known[0], known[1], known[1])
        found: Attr = await volume.call(names.LookupObject(file_id))
        return self._context.object_entry(number, self._context.object_attr(found))

    async def _ask_for_attributes(self, volume: Volume, number: int, ino: int) -> Attr:
        state = self._context.states.get(number)
        if state is not None:
            return await state.look() or state.attr
        attr: Attr = await volume.call(names.GetAttr(ino))
        return attr

    async def readlink(self, number: int) -> bytes:
        """The target of a symlink."""
        entry = await self.getattr(number)
        if not stat.S_ISLNK(entry.attr.mode):
            raise TreeError(errno.EINVAL)
        return entry.attr.target

    async def space(self) -> names.Space:
        """The space of all volumes together."""
        total = [0, 0, 0, 0]
        for volume in list(self._volumes.by_name.values()):
            space = await volume.space()
            parts = (space.total_bytes, space.free_bytes, space.available_bytes, space.files)
            total = [a + b for a, b in zip(total, parts, strict=True)]
        return names.Space(*total)

    # --- changing --------------------------------------------------------------------------------

    async def set_attributes(self, number: int, changes: Changes) -> Entry:
        """chmod, chown, utimens."""
        volume, ino, file_id = self.inode(number)
        if file_id:
            raise TreeError(errno.EPERM)
        state = self._context.states.get(number)
        request = changes.request(ino)
        attr: Attr | None
        if state is not None:
            attr = await state.set_attributes(request)
        else:
            attr = await volume.own_changes.set_attributes(request) or await volume.call(request)
        return self._context.entry(volume, attr)

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        owner: Owner,
        *,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> Entry:
        """Make an inode of any type. The caller counts the lookup.

        Args:
            mode: type and permissions.
            rdev: the device, for device files; *target*: that of a symlink.
            umask: bits that the kernel has left in *mode*, as a default ACL may replace the umask.
        """
        volume, ino = self._parent(parent)
        now = clock.now_ns()
        request = names.Create(ino, name, mode, owner.uid, owner.gid, now, rdev, target, umask)
        attr = await volume.own_changes.create(request) or await volume.call(request)
        return self._context.entry(volume, attr, ino, name)

    async def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        """unlink and rmdir."""
        found = self._volumes.named(parent)
        if found is None:
            where = id_directory(parent)
            if where is not None:
                await self._ids.remove(self.volume(parent), where, name, directory_wanted=directory)
                self._directories.removed(parent, name)
                return
            found = self._parent(parent)
        volume, ino = found
        if ino == names.ROOT_INO and store_path_of(name) is not None:
            raise TreeError(errno.EPERM)
        request = names.Remove(ino, name, directory, clock.now_ns())
        attr: Attr = await volume.own_changes.remove(request) or await volume.call(request)
        self._directories.removed(parent, name)
        self._changed_by_name(volume, attr)

    async def link(self, number: int, parent: int, name: bytes) -> Entry:
        """A further name for an inode, or the first of an object. The caller counts the lookup."""
        volume, ino, file_id = self.inode(number)
        if parent != self._context.volumes_at and self.volume(parent) is not volume:
            raise TreeError(errno.EXDEV)
        _, parent_ino = self._parent(parent)
        if file_id:
            return await self._adopt(volume, file_id, parent, name, replace=False)
        attr: Attr = await volume.call(names.Link(ino, parent_ino, name, clock.now_ns()))
        return self._context.entry(volume, attr, parent_ino, name)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """renameat2 with its flags."""
        if self._context.volumes_at in (parent, new_parent):
            raise TreeError(errno.EPERM if parent == new_parent else errno.EXDEV)
        if self.volume(parent) is not self.volume(new_parent):
            raise TreeError(errno.EXDEV)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise TreeError(errno.EINVAL)
        where = id_directory(parent)
        volume, new_ino = self._parent(new_parent)
        if where is not None:
            if flags & RENAME_EXCHANGE:
                raise TreeError(errno.EINVAL)
            file_id = await self._ids.unnamed(volume, where, name)
            replace = not flags & RENAME_NOREPLACE
            await self._adopt(volume, file_id, new_parent, new_name, replace=replace)
            self._directories.removed(parent, name)
            return
        _, ino = self._parent(parent)
        if names.ROOT_INO in (ino, new_ino) and (
            (ino == names.ROOT_INO and store_path_of(name) is not None)
            or (new_ino == names.ROOT_INO and store_path_of(new_name) is not None)
        ):
            raise TreeError(errno.EPERM)
        request = names.Rename(ino, name, new_ino, new_name, flags, clock.now_ns())
        answer: names.Renamed = await volume.own_changes.rename(request) or await volume.call(
            request
        )
        if not flags & RENAME_EXCHANGE:
            self._directories.removed(parent, name)
        self._renamed(volume, answer)

    async def _adopt(
        self, volume: Volume, file_id: str, parent: int, name: bytes, *, replace: bool
    ) -> Entry:
        _, parent_ino = self._parent(parent)
        options = self._context.options
        if self._context.options.ids is Ids.HIDE:
            raise TreeError(errno.EPERM)
        answer: names.Renamed = await volume.call(
            names.Adopt(
                file_id, parent_ino, name, replace, options.uid, options.gid, clock.now_ns()
            )
        )
        self._context.numbers.adopted(volume.number, file_id, answer.moved.ino)
        self._renamed(volume, answer)
        return self._context.entry(volume, answer.moved, parent_ino, name)

    def _renamed(self, volume: Volume, answer: names.Renamed) -> None:
        if answer.replaced is not None:
            self._changed_by_name(volume, answer.replaced)
        self._changed_by_name(volume, answer.moved)

    def _changed_by_name(self, volume: Volume, attr: Attr) -> None:
        self._context.told(volume, attr)
        volume.recalls.changed_by_name(attr)
