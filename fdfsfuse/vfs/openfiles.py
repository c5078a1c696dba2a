"""Handles of files: open, create, read, write, flush, release; and work in the background.

In the background, content that nobody flushes is stored after a while, and storages are told of
inodes that stay open (``Holds``), so that these live on when their last name is removed.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from typing import NamedTuple

import trio

from fdfsfuse.errors import FdfsError, StatusError, TreeError, describe
from fdfsfuse.proto import names
from fdfsfuse.vfs import clock
from fdfsfuse.vfs.ahead import Wanted
from fdfsfuse.vfs.context import Context, Entry
from fdfsfuse.vfs.files import FileState
from fdfsfuse.vfs.handle import Handle
from fdfsfuse.vfs.readahead import Buffers
from fdfsfuse.vfs.tree import Changes, Owner, Tree, without_set_id
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.volumes import Volumes

log = logging.getLogger(__name__)

_TICK_S = 1.0


class Opened(NamedTuple):
    """The answer to open().

    Attributes:
        handle: the number of the handle.
        keep_cache: whether the kernel may keep the pages that it has of the file.
        stored: how many bytes of pages the kernel has been given along with this open().
    """

    handle: int
    keep_cache: bool
    stored: int = 0


class OpenFiles:
    """See the module."""

    def __init__(self, context: Context, volumes: Volumes, tree: Tree) -> None:
        self._context = context
        self._volumes = volumes
        self._tree = tree
        self._next = 0
        self._handles: dict[int, Handle] = {}
        options = context.options
        keep = options.read_ahead_bytes // options.read_chunk_bytes // 4
        self._buffers = Buffers(options.read_chunk_bytes, keep)

    # --- opening ---------------------------------------------------------------------------------

    async def open(self, number: int, flags: int, *, privileged: bool = True) -> Opened:
        """open(): brings fresh attributes, and the content of a small file, in one round trip.

        Args:
            number: the inode number in this mount.
            flags: those of open(2).
            privileged: whether truncating leaves the set-id bits alone, as it does for root. The
                kernel leaves that to the file system.
        """
        volume, ino, file_id = self._tree.inode(number)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if file_id:
            if writing or flags & os.O_TRUNC:
                raise TreeError(errno.EPERM)
            entry = await self._tree.getattr(number)
            state = self._state(volume, number, entry.attr)
        else:
            state = await self._open_inode(volume, number, ino, flags, privileged)
        pages, version = self._context.pages, state.attr.version
        had = pages.version(number)
        keep, stored = state.dirty or had == version, 0
        if not keep:
            pages.are(number, version)
            stored = self._store_pages(state) if had is None else 0
        return Opened(self._handle(state, flags), keep or stored > 0, stored)

    def _store_pages(self, state: FileState) -> int:
        """Give the kernel pages of a file of which it has none, if the content is at hand.

        This spares a READ, which almost always follows an open(). Only for the first handle, as the
        kernel would wait for READs in flight, and only content that the storage would recall.

        Returns how many bytes the kernel has got.
        """
        content = state.content
        if not content or state.handles or not state.is_fresh or not isinstance(content, bytes):
            return 0
        return len(content) if self._context.kernel.store_pages(state.number, content) else 0

    async def _open_inode(
        self, volume: Volume, number: int, ino: int, flags: int, privileged: bool
    ) -> FileState:
        state = self._context.states.get(number)
        if state is None or not state.dirty:
            known = volume.memory.attr(ino)
            version = self._context.pages.version(number)
            # No content is needed if the kernel has its pages, or if it is to be cut off.
            wanted = not flags & os.O_TRUNC and (known is None or known.version != version)
            limit = self._context.options.open_data_bytes
            if known is not None and (not wanted or not known.size or known.size > limit):
                opened = names.Opened(known, None if known.size else b"")
            elif wanted:
                opened = await self._open_with_content(volume, number, ino, known)
            else:
                opened = await volume.call(names.Open(ino, 0))
            orphan = not opened.attr.nlink and state is None
            if not stat.S_ISREG(opened.attr.mode) or (orphan and volume.recalls.refuse_orphan()):
                raise TreeError(errno.ESTALE)
            state = self._state(volume, number, opened.attr)
            state.opened(opened.attr, opened.data)
        elif not flags & os.O_TRUNC:
            await state.catch_up()
        if flags & os.O_TRUNC:
            state.handles += 1
            try:
                await state.truncate(0)
                if not privileged:
                    await self._clear_set_id(state)
            except BaseException:
                await self._leave(state)
                raise
            state.handles -= 1
        return state

    async def _open_with_content(
        self, volume: Volume, number: int, ino: int, known: names.Attr | None
    ) -> names.Opened:
        """Open a file whose content may come along; that of its neighbours may be asked for too."""
        context, parent = self._context, volume.memory.parent(ino)
        volume.names_ahead.superseded(parent)
        if known is None or not context.contents.has(number):
            await volume.wait_ahead(parent)
            known = volume.memory.attr(ino)
        if known is not None:
            data = context.contents.take(number, known.version)
            if data is not None:
                volume.files_ahead.used(parent, ino)
                onward = volume.files_ahead.onward(parent)
                if onward.entries:
                    context.spawn(self._open_ahead, volume, parent, onward)
                return names.Opened(known, data)
        return await self._open_ahead(volume, parent, volume.files_ahead.missed(parent, ino))

    async def _open_ahead(self, volume: Volume, parent: int, wanted: Wanted) -> names.Opened:
        """Ask for a small file, and for the contents of the files that follow it."""
        context = self._context
        count, by_name, ino = wanted
        brought: set[int] = set()
        end = 0
        try:
            limit = context.options.open_data_bytes
            opened: names.Opened = await volume.call(names.Open(ino, limit, count, by_name))
            for entry in opened.following:
                if entry.data and volume.memory.knows(entry.attr):
                    following = context.numbers.of_inode(volume.number, entry.attr.ino)
                    if context.pages.version(following) != entry.attr.version:
                        context.contents.put(following, entry.attr.version, entry.data)
                        brought.add(entry.attr.ino)
            if count and len(opened.following) >= count:
                end = opened.following[-1].attr.ino
        finally:
            if count:
                volume.files_ahead.came(parent, brought, end)
        return opened

    async def _clear_set_id(self, state: FileState) -> None:
        """Clear set-id bits; the kernel does so after write() and truncate(), not for O_TRUNC."""
        mode = state.attr.mode
        cleared = without_set_id(mode)
        if cleared != mode:
            request = Changes(mode=stat.S_IMODE(cleared)).request(state.ino)
            await state.set_attributes(request)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, owner: Owner, *, umask: int = 0
    ) -> tuple[Opened, Entry]:
        """Make a file and open it. The caller counts the lookup (`Vfs.remember`)."""
        volume, parent_ino, _ = self._tree.inode(parent)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        with volume.memory.flights.locked(parent_ino):
            return await self._create(parent, name, mode, flags, owner, umask)

    async def _create(
        self, parent: int, name: bytes, mode: int, flags: int, owner: Owner, umask: int
    ) -> tuple[Opened, Entry]:
        volume, parent_ino, _ = self._tree.inode(parent)
        ino = await volume.own_files.number_for(parent_ino, name)
        if ino:
            entry = self._make(volume, parent_ino, name, ino, mode & ~umask, owner)
            return Opened(self._handle(self._context.states[entry.number], flags), False), entry
        try:
            entry = await self._tree.create(parent, name, mode, owner, umask=umask)
        except StatusError as exc:
            # Another mount was faster; without O_EXCL its file is as good.
            if exc.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            entry = await self._tree.lookup(parent, name)
            if not stat.S_ISREG(entry.attr.mode):
                raise
            opened = await self.open(entry.number, flags, privileged=owner.uid == 0)
            return opened, self._entry(entry)
        state = self._state(volume, entry.number, entry.attr)
        self._context.pages.are(entry.number, entry.attr.version)
        return Opened(self._handle(state, flags), False), entry

    def _make(
        self, volume: Volume, parent: int, name: bytes, ino: int, mode: int, owner: Owner
    ) -> Entry:
        """Make a file of which the storage is told later (`fdfsfuse.vfs.ownfiles`)."""
        directory = volume.memory.attr(parent)
        assert directory is not None
        gid = directory.gid if directory.mode & stat.S_ISGID else owner.gid
        now = clock.now_ns()
        attr = names.Attr(ino, mode, 1, owner.uid, gid, 0, 0, now, now, now, 0)
        number = self._context.numbers.of_inode(volume.number, ino)
        self._state(volume, number, attr).make(parent, name)
        self._context.pages.are(number, attr.version)
        return self._context.entry(volume, attr, parent, name)

    def _entry(self, entry: Entry) -> Entry:
        state = self._context.states[entry.number]
        return entry._replace(attr=state.attributes(state.attr))

    def _state(self, volume: Volume, number: int, attr: names.Attr) -> FileState:
        state = self._context.states.get(number)
        if state is None:
            state = FileState(self._context, volume, number, attr)
            self._context.states[number] = state
        return state

    def _handle(self, state: FileState, flags: int) -> int:
        state.handles += 1
        self._next += 1
        append = bool(flags & os.O_APPEND)
        self._handles[self._next] = Handle(self._context, state, self._buffers, append=append)
        return self._next

    def _get(self, handle: int) -> Handle:
        try:
            return self._handles[handle]
        except KeyError:
            raise TreeError(errno.EBADF) from None

    # --- using -----------------------------------------------------------------------------------

    async def read(self, handle: int, offset: int, length: int) -> bytes | memoryview:
        """The result is valid until the caller's next checkpoint."""
        opened = self._get(handle)
        return await opened.state.read(opened, offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> None:
        """Take *data*; see `FileState.write`."""
        opened = self._get(handle)
        await opened.state.write(offset, data, append=opened.append)

    async def flush(self, handle: int) -> None:
        """close(): see `FileState.flush`."""
        await self._get(handle).state.flush()

    async def sync(self, handle: int) -> None:
        """fsync(): also waits until the names are stored by which the file is found."""
        state = self._get(handle).state
        await state.flush()
        await state.volume.wait_for_changes()
        refused = state.volume.own_changes.take_error(state.ino)
        if refused:
            raise TreeError(refused)

    async def truncate(self, number: int, size: int, handle: int | None) -> None:
        """Set the size. Without a handle the change is stored at once."""
        if handle is not None:
            await self._get(handle).state.truncate(size)
            return
        volume, ino, file_id = self._tree.inode(number)
        if file_id:
            raise TreeError(errno.EPERM)
        state = self._context.states.get(number)
        if state is None:
            attr: names.Attr = await volume.call(names.GetAttr(ino))
            state = self._state(volume, number, attr)
        state.handles += 1
        try:
            await state.truncate(size)
            await state.flush()
        finally:
            await self._leave(state)

    async def release(self, handle: int) -> None:
        """Close a handle, as its last descriptor was closed. What was not flushed is stored."""
        opened = self._handles.pop(handle, None)
        if opened is not None:
            opened.drop_reader()
            await self._leave(opened.state)

    async def _leave(self, state: FileState) -> None:
        """One user less. The last one stores what is not stored; meanwhile others may come."""
        state.handles -= 1
        while not state.handles and state.dirty:
            try:
                await state.flush()
            except (FdfsError, OSError) as exc:
                group = state.volume.backend.group
                log.warning("inode %d of %s: %s", state.ino, group, describe(exc))
                break
        if not state.handles and self._context.states.get(state.number) is state:
            self._complete_pages(state)
            self._drop(state)

    def _complete_pages(self, state: FileState) -> None:
        """Give the kernel the pages of a small file that were written in parts.

        It keeps only pages that were written as a whole, and would have to READ the others. As
        nobody has the file open, there are no READs in flight that it would wait for.
        """
        content, attr, start = state.content, state.attr, state.partial_from
        if (
            content
            and start < attr.size == len(content)
            and state.is_fresh
            and self._context.pages.version(state.number) == attr.version
        ):
            self._context.kernel.store_pages(state.number, bytes(content[start:]), start)

    def _drop(self, state: FileState) -> None:
        state.close()
        del self._context.states[state.number]
        if not self._context.numbers.known(state.number):
            self._context.numbers.drop(state.number)

    # --- in the background -----------------------------------------------------------------------

    async def run(self) -> None:
        """Store old content, and tell the storages which inodes are open, until cancelled."""
        while True:
            await trio.sleep(_TICK_S)
            now = time.monotonic()
            options = self._context.options
            held: dict[Volume, set[int]] = {}
            for state in list(self._context.states.values()):
                if state.dirty and now - state.dirty_since > options.write_back_s:
                    state.write_back_soon()
                inos = held.setdefault(state.volume, set())
                if state.ino and now - state.opened_at > options.held_after_s:
                    inos.add(state.ino)
            for volume in self._volumes.by_name.values():
                inos = held.get(volume, set())
                if inos != volume.held_open:
                    self._context.spawn(self._tell, volume, inos)

    async def _tell(self, volume: Volume, inos: set[int]) -> None:
        """Tell the storage what is open now. After a reconnect the session tells it everything."""
        added, removed = inos - volume.held_open, volume.held_open - inos
        volume.held_open = inos
        try:
            await volume.backend.call(names.Holds(sorted(added), sorted(removed)), timeout_s=5.0)
        except FdfsError:
            # Tell everything again next time.
            volume.held_open = volume.held_open - added | removed
            raise

    async def store_all(self) -> int:
        """Store everything that is not stored yet. Returns how many files could not be stored."""
        states = [state for state in self._context.states.values() if state.dirty]
        async with trio.open_nursery() as nursery:
            for state in states:
                nursery.start_soon(state.write_back)
            for volume in self._volumes.by_name.values():
                # Each change that the storage refuses is logged.
                nursery.start_soon(volume.own_changes.wait)
        return sum(state.dirty for state in states)
