"""Open files: content that is not stored yet (`fdfsfuse.vfs.readable` reads what is).

A `FileState` belongs to an inode; all handles of the mount share it, and it lives while there is
a handle or unstored content. It is in one of three states:

========= ====================================================================================
clean     the storage has everything. ``content`` may hold the whole content as a cache
memory    ``dirty``, and ``content`` is the whole new content, up to SMALL_CONTENT_MAX;
          stored by StoreContent; of a file that the storage was not told of (``birth``), by
          CreateFile
object    ``dirty``, and ``writer`` changes an object: a new one (``new_object``), published
          by NameObject, or the inode's own one in place, published by CommitWrite
========= ====================================================================================

When another mount has stored something meanwhile, both are brought together:
`fdfsfuse.vfs.merging`.

All changes happen under ``lock``; readers look without it, and between their awaits the state may
change. Promise 2 of the design is kept by `FileState.flush`: when it returns, the content is stored
and named. The modification time is chosen when a write arrives and sent with the content, so that
storing it changes nothing that the kernel has cached.
"""

from __future__ import annotations

import errno
import logging
import sys
import time

from msgspec.structs import replace

from fdfsfuse.errors import ConnectionProblem, FdfsError, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import SMALL_CONTENT_MAX, Attr
from fdfsfuse.vfs import clock
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.merging import MergingFile
from fdfsfuse.vfs.objectwriter import ObjectWriter
from fdfsfuse.vfs.ownfiles import Birth, may_be_foreseen, taken
from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_WARN_EVERY_S = 30.0
_STORE_TRIES = 100
"""Each try that fails means that another mount has stored something meanwhile."""
_PAGE = 4096
_FAR = 1 << 30
"""A write that begins so many bytes behind the end is sent at once, to learn if it is too far."""


class FileState(MergingFile):
    """See the module.

    Attributes:
        birth: what the storage has to be told of a file that it does not know; None: it knows it.
        dirty_since: time.monotonic() of the oldest change that is not stored; 0: there is none.
        handles: open handles, and others who need the state.
        opened_at: time.monotonic() of the first open().
        partial_from: where the first page begins that was written in part only; the kernel does
            not keep such pages.
    """

    __slots__ = (
        "_error",
        "_warned_at",
        "_writing_back",
        "birth",
        "dirty_since",
        "handles",
        "opened_at",
        "partial_from",
    )

    def __init__(self, context: Context, volume: Volume, number: int, attr: Attr) -> None:
        super().__init__(context, volume, number, attr)
        self.dirty_since = 0.0
        self._error: Exception | None = None
        self.handles = 0
        self.birth: Birth | None = None
        self.partial_from = sys.maxsize
        self.opened_at = time.monotonic()
        self._writing_back = False
        self._warned_at = float("-inf")

    # --- making ----------------------------------------------------------------------------------

    def make(self, parent: int, name: bytes) -> None:
        """Make this an unborn file (`fdfsfuse.vfs.ownfiles`), empty, under *name* in *parent*."""
        self.mtime_ns = self.changed_ns = self.attr.mtime_ns
        self.birth = Birth(parent, name, self.mtime_ns)
        self._begin(self.attr.version)
        self._edits.resize(0, 0)
        self.content, self._size, self.dirty = b"", 0, True
        self.dirty_since = time.monotonic()
        self.volume.memory.made(parent, name, self.attr, self.mtime_ns)
        self.volume.own_files.add(parent, name, self)

    async def be_born(self) -> None:
        """Tell the storage of an unborn file. An error is reported by the next write or flush."""
        async with self.lock:
            if self.birth is not None:
                await self._try_to_store()

    @property
    def unreachable(self) -> bool:
        """Whether the last attempt to store something got no answer."""
        return isinstance(self._error, ConnectionProblem)

    async def _give_birth(self, birth: Birth, data: bytes) -> Attr | None:
        """Tell the storage of the file, with its content.

        None: an earlier attempt, which got no answer, has made the file; its content may be older.
        """
        ctime_ns = max(self.attr.ctime_ns, self.changed_ns)
        shown = replace(self.attr, mtime_ns=self.mtime_ns, ctime_ns=ctime_ns)
        attr: Attr | None = None
        try:
            attr = await self.volume.call(birth.request(self.volume, shown, data))
        except ConnectionProblem:
            self._maybe_stored = True
            raise
        except StatusError as exc:
            # Whatever is in the way now, number, name or a directory that is gone: if the inode
            # exists, the earlier attempt has made it.
            if not self._maybe_stored or not await self._is_there():
                if taken(exc):
                    raise TreeError(errno.ESTALE) from exc
                raise
        self._end_birth(birth)
        return attr

    async def _is_there(self) -> bool:
        """Whether the storage has the inode. `Volume.call` would first try to make the file."""
        try:
            await self.volume.backend.call(names.GetAttr(self.ino))
        except StatusError:
            return False
        return True

    def _end_birth(self, birth: Birth) -> None:
        self.birth = None
        self.volume.own_files.remove(birth.parent, birth.name, self)

    # --- changing --------------------------------------------------------------------------------

    async def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        """Take *data*; it is stored by the next flush at the latest.

        Args:
            append: write to the end of the file, wherever it is; *offset* is where the kernel
                believes it to be.

        Raises:
            FdfsError, OSError: an earlier change could not be stored.
        """
        # Writes to a volume that is down must not fill the memory that other volumes need.
        ticket = self.volume.enter()
        self.writes += 1
        try:
            await self._write(offset, data, append)
        finally:
            self.writes -= 1
            self.volume.leave(ticket)

    async def _write(self, offset: int, data: bytes, append: bool) -> None:
        async with self.lock:
            self._raise_error()
            if self._edits.crowded:
                await self._flush()
            if append:
                offset = await self._end(offset, len(data))
            append = append and offset == self.size
            far = offset - self.size > _FAR
            if far:
                await self._flush()
            size = None
            if self.writer is None:
                size = await self._write_to_memory(offset, data, append)
            if size is None:
                size = await self._write_to_object(offset, data, append)
            if far:
                await self._check_reach()
            if append:
                offset = size
                self._edits.append(offset)
            else:
                self._edits.write(offset, offset + len(data), size)
            end = offset + len(data)
            cut = offset if offset % _PAGE else end
            if cut % _PAGE:
                self.partial_from = min(self.partial_from, cut - cut % _PAGE)
            self._changed(max(size, end))

    async def _end(self, assumed: int, length: int) -> int:
        """Where a write of *length* bytes to the end goes, which the kernel *assumed* to be there.

        The kernel does not ask for new attributes before it appends. It may also send pages of a
        mapping through a handle that was opened for appending. Those keep their place: writes that
        begin at a page, and not where the kernel believes the end to be.
        """
        await self._catch_up()
        kernel_size = self.size if self._kernel_size is None else self._kernel_size
        if not self.dirty and not self.is_fresh:
            await self._refresh()
        if assumed == self.size or (assumed != kernel_size and assumed % _PAGE == 0):
            return assumed
        self._kernel_has_appended(assumed + length)
        return self.size

    def _kernel_has_appended(self, size: int) -> None:
        """The kernel believes that the file ends at *size* now, but the bytes went elsewhere."""
        self._kernel_size = size
        self._forget_pages()

    async def _write_to_memory(self, offset: int, data: bytes, append: bool) -> int | None:
        """Write to ``content``.

        With *append* the data goes to the end of the file, even if that is no longer at *offset*.

        Returns:
            The size before the write; None if the file is, or would become, too large.
        """
        if not self.dirty and not self.is_fresh:
            await self._refresh()
        if max(offset + len(data), self.size) > SMALL_CONTENT_MAX:
            return None
        content = await self._content_to_change()
        if content is None:
            return None
        size = len(content)
        if append and offset != size:
            self._kernel_has_appended(offset + len(data))
            offset = size
        end = offset + len(data)
        if end > SMALL_CONTENT_MAX:
            return None
        await self._take(max(end, len(content)) - (len(content) if self.dirty else 0))
        if not content and offset == 0:
            self.content = data
            return size
        if not isinstance(content, bytearray):
            content = bytearray(content)
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset:end] = data
        self.content = content
        return size

    async def _write_to_object(self, offset: int, data: bytes, append: bool) -> int:
        """Write by way of ``writer``; as `_write_to_memory` otherwise."""
        if self.writer is None:
            await self._open_object()
        assert self.writer is not None
        for attempt in (0, 1):
            size = self._size
            if append and offset != size:
                self._kernel_has_appended(offset + len(data))
                offset = size
            try:
                await self.writer.write(offset, data)
                break
            except StatusError as exc:
                if attempt or not await self._merged_after(exc):
                    raise
        return size

    async def _check_reach(self) -> None:
        """Send what was just written, far behind the end of a file that was stored until then.

        Raises:
            StatusError: EFBIG, no file may be so large; the write is dropped. Other errors are left
                to the next flush, and what was written is kept.
        """
        assert self.writer is not None
        try:
            await self.writer.drain()
        except (FdfsError, OSError) as exc:
            if isinstance(exc, StatusError) and exc.errno == errno.EFBIG:
                self.writer.discard()
                self.writer = None
                raise

    async def _content_to_change(self) -> bytes | bytearray | None:
        """The present content, for a change in memory; None if it is too large for that."""
        if not self.dirty:
            content, version = await self._load()
            if content is not None:
                self._begin(version)
            return content
        assert self.content is not None
        return self.content

    async def _open_object(self) -> None:
        """Go over to the state *object*: make ``writer``, and give it what is in memory."""
        if self.dirty and not self._edits.whole and self.attr.size:
            await self._flush()
        self.new_object = self.dirty or not self.attr.size
        if not self.dirty:
            self._begin(self.attr.version)
        if self.new_object:
            if self.birth is not None and (born := await self._give_birth(self.birth, b"")):
                self.fresh_attr(born)
            made: names.ObjectMade = await self.volume.call(names.NewObject(self.ino))
            file_id, view = made.file_id, made.view
        else:
            if not self.attr.in_place or not self.is_fresh:
                self.fresh_attr(await self.volume.call(names.MakeWritable(self.ino)))
            file_id, view = self.attr.file_id, self.volume.backend.view
        size = self.size
        writer = ObjectWriter(self._context, self.volume, file_id, view)
        if not self.dirty:
            self._drop_content()
        elif self.content is not None:
            # Given and taken again without a checkpoint between: this never waits.
            self._context.dirty.give(len(self.content))
            if self.content:
                await writer.write(0, bytes(self.content))
            self.content = None
        self._size = size
        self.writer = writer

    async def truncate(self, size: int) -> None:
        """Set the size. The change is stored by the next flush at the latest."""
        async with self.lock:
            self._raise_error()
            small = size <= SMALL_CONTENT_MAX and (not size or self.size <= SMALL_CONTENT_MAX)
            if self.writer is not None or not small:
                await self._flush_before_cut(size)
            content: bytes | bytearray | None = b"" if small else None
            if small and size:
                content = await self._content_to_change()
            elif small and not self.dirty:
                self._begin(self.attr.version)
            if content is None:
                now = clock.now_ns()
                self._stored(await self.volume.call(names.Truncate(self.ino, size, now)))
                return
            old = self.size
            await self._resize(content, size)
            self._edits.resize(old, size)
            self._changed(size)

    async def _flush_before_cut(self, size: int) -> None:
        """`_flush` before the size is set. What cannot be stored is dropped if *size* is 0."""
        try:
            await self._flush()
        except StatusError:
            if size or self.writer is None:
                raise
            self.writer.discard()
            self.writer, self.content = None, b""

    async def _resize(self, content: bytes | bytearray, size: int) -> None:
        held = len(self.content) if self.dirty and self.content is not None else 0
        await self._take(max(0, size - held))
        if size < held:
            self._context.dirty.give(held - size)
        if size <= len(content):
            self.content = content[:size]
        else:
            self.content = bytes(content) + bytes(size - len(content))

    def _changed(self, size: int) -> None:
        if not self.dirty:
            self.dirty = True
        if not self.dirty_since:
            self.dirty_since = time.monotonic()
        self._size = size
        self.mtime_ns = self.changed_ns = clock.now_ns()

    async def set_attributes(self, request: names.SetAttr) -> Attr:
        """chmod, chown and utimens of an open file: a time that is set is not lost by storing."""
        async with self.lock:
            if self.birth is not None and self._maybe_stored:
                # Who finds that the file was made already does not tell what it was made with.
                await self._try_to_store()
                if self.birth is not None:
                    self._raise_error()
            elif self.birth is None and (request.mtime_ns or 0) > request.now_ns:
                # The mtime would become the change time of content that is stored later.
                await self._try_to_store()
            if self.birth is not None:
                attr = request.applied_to(self.attr)
                self.volume.memory.changed_here(request, attr)
            else:
                volume = self.volume
                attr = await volume.own_changes.set_attributes(request) or await volume.call(
                    request
                )
            self.fresh_attr(attr)
            if self.dirty and request.mtime_ns is not None:
                self.mtime_ns = request.mtime_ns
            return attr

    async def change_xattr(self, request: names.SetXattr | names.RemoveXattr) -> bool:
        """setxattr and removexattr of a file that is unborn. Returns whether it was done here.

        If not, the storage has to be asked: it may know the file, or might refuse the change.
        """
        if self.birth is None:
            return False
        async with self.lock:
            birth = self.birth
            if birth is None or self._maybe_stored or not may_be_foreseen(request, birth.xattrs):
                return False
            birth.xattrs = request.applied_to(birth.xattrs)
            attr = replace(self.attr, ctime_ns=request.now_ns)
            self.volume.memory.changed_here(request, attr)
            self.fresh_attr(attr)
            return True

    # --- storing ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Store all changes. Costs nothing if there are none.

        Raises:
            FdfsError, OSError: they could not be stored, or an earlier attempt failed and that was
                not reported yet. They are kept, and the next flush tries again.
        """
        if not self.dirty and self._error is None:
            return
        async with self.lock:
            self._error = None
            await self._flush()

    async def write_back(self) -> None:
        """`flush` in the background: an error is reported by the next write, flush or fsync."""
        self._writing_back = True
        try:
            async with self.lock:
                await self._try_to_store()
        finally:
            self._writing_back = False

    async def _try_to_store(self) -> None:
        try:
            await self._flush()
        except (FdfsError, OSError) as exc:
            self._error = exc
            self.dirty_since = time.monotonic()
            self._warn(exc)

    def write_back_soon(self) -> None:
        """Start `write_back`, unless one is under way."""
        if not self._writing_back:
            self._writing_back = True
            self._context.spawn(self.write_back)

    def _warn(self, exc: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            log.warning("inode %d of %s: not stored yet: %s", self.ino, self._group, exc)

    def relieve(self) -> None:
        """Store something, to give back memory that others wait for."""
        if self.writer is not None:
            self.writer.send_tail()
        elif self.dirty and not self.lock.locked():
            self.write_back_soon()

    async def _flush(self) -> None:
        for _ in range(_STORE_TRIES):
            if not self.dirty:
                return
            try:
                await self._catch_up()
                attr = await self._store()
            except StatusError as exc:
                if not await self._merged_after(exc):
                    raise
            else:
                self._stored(attr)
                return
        raise TreeError(errno.EIO)

    async def _store(self) -> Attr:
        writer = self.writer
        request: names.Request
        if writer is not None:
            await writer.drain()
            file_id, size = writer.file_id, self._size
            if self.new_object:
                request = names.NameObject(self.ino, file_id, size, self.mtime_ns, self._based_on)
            else:
                request = names.CommitWrite(self.ino, file_id, size, self.mtime_ns)
        else:
            assert self.content is not None
            data = bytes(self.content)
            if self.birth is not None and (born := await self._give_birth(self.birth, data)):
                return born
            request = names.StoreContent(self.ino, data, self.mtime_ns, self._based_on)
        try:
            attr: Attr = await self.volume.call(request)
        except ConnectionProblem:
            self._maybe_stored = True
            raise
        return attr

    def _stored(self, attr: Attr) -> None:
        """The storage has all changes, and answered *attr*: the file is clean again."""
        old = self.attr.version
        kernel_size = self.size if self._kernel_size is None else self._kernel_size
        self._context.pages.stored(self.number, old, attr.version)
        content = None
        if not self.dirty:
            self._drop_content()
        elif self.content is not None:
            content, self.content = self.content, None
            self._context.dirty.give(len(content))
        self.writer = None
        self.dirty = False
        self.dirty_since = 0.0
        self.fresh_attr(attr)
        self._kernel_knows(kernel_size)
        if content is not None and self.handles and len(content) == attr.size:
            self._keep_content(content)

    # --- memory ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Drop the content when the last handle is gone. What is not stored by now is lost."""
        if self.dirty:
            log.error(
                "inode %d of %s: %d bytes could not be stored", self.ino, self._group, self._size
            )
            if self.writer is not None:
                self.writer.discard()
            elif self.content is not None:
                self._context.dirty.give(len(self.content))
            self.dirty = False
            self.content = None
            if self.birth is not None:
                birth = self.birth
                entry = (birth.parent, birth.name)
                self.volume.recalls.never_made([self.ino, birth.parent], [entry])
                self._end_birth(birth)
        else:
            self._drop_content()

    @property
    def _group(self) -> str:
        return self.volume.backend.group

    async def _take(self, count: int) -> None:
        """Take memory for unstored content. Clean content that it replaces is given back."""
        if not self._context.dirty.take_nowait(count):
            await self._context.dirty.take(count)
        # Only now: another open() may have brought content while this waited.
        if not self.dirty:
            self._drop_content()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
