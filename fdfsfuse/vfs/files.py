"""Open files: content that is not stored yet, and reading what is.

A `FileState` belongs to an inode; all handles of the mount share it, and it lives while there is
a handle or unstored content. It is in one of three states:

========= ====================================================================================
clean     the storage has everything. ``content`` may hold the whole content as a cache
memory    ``dirty``, and ``content`` is the whole new content, up to SMALL_CONTENT_MAX;
          stored by StoreContent
object    ``dirty``, and ``writer`` changes an object: a new one (``new_object``), published
          by NameObject, or the inode's own one in place, published by CommitWrite
========= ====================================================================================

All changes happen under ``lock``; readers look without it, and between their awaits the state may
change. Promise 2 of the design is kept by `FileState.flush`: when it returns, the content is stored
and named. The modification time is chosen when a write arrives and sent with the content, so that
storing it changes nothing that the kernel has cached.
"""

from __future__ import annotations

import errno
import logging
import time
from functools import partial
from typing import Any

import trio
from msgspec.structs import replace

from fdfsfuse.errors import ConnectionProblem, FdfsError, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import SMALL_CONTENT_MAX, Attr
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.lock import Lock
from fdfsfuse.vfs.objectwriter import ObjectWriter
from fdfsfuse.vfs.readahead import Buffers, ObjectReader
from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_READ_TRIES = 4
_WARN_EVERY_S = 30.0


class FileState:
    """See the module. ``attr`` is what the storage has; `attributes` what users see.

    ``transfers``: READs and WRITEs in flight; the kernel has locked their pages.
    """

    __slots__ = (
        "_content_version",
        "_context",
        "_error",
        "_kernel_size",
        "_outdated",
        "_size",
        "_warned_at",
        "_writing_back",
        "attr",
        "content",
        "dirty",
        "dirty_since",
        "handles",
        "held",
        "ino",
        "lock",
        "mtime_ns",
        "new_object",
        "number",
        "opened_at",
        "transfers",
        "volume",
        "writer",
    )

    def __init__(self, context: Context, volume: Volume, number: int, attr: Attr) -> None:
        self._context = context
        self.volume = volume
        self.number = number
        self.ino = attr.ino
        self.attr = attr
        self._outdated = False
        self.transfers = 0
        self.content: bytes | bytearray | None = None
        self._content_version = -1
        self.dirty = False
        self.dirty_since = 0.0
        self._size = 0
        self._kernel_size: int | None = None
        self.mtime_ns = 0
        self.writer: ObjectWriter | None = None
        self.new_object = False
        self._error: Exception | None = None
        self.handles = 0
        self.held = False
        self.opened_at = time.monotonic()
        self.lock = Lock()
        self._writing_back = False
        self._warned_at = float("-inf")

    # --- looking ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The size that users see."""
        return self._size if self.dirty else self.attr.size

    def attributes(self, attr: Attr) -> Attr:
        """*attr*, an answer of the storage, with what is not stored yet; the kernel is told."""
        self._kernel_size = None
        if not self.dirty:
            return attr
        ctime_ns = max(attr.ctime_ns, self.mtime_ns)
        return replace(attr, size=self._size, mtime_ns=self.mtime_ns, ctime_ns=ctime_ns)

    def fresh_attr(self, attr: Attr) -> None:
        """The storage has told newer attributes."""
        self.attr = attr
        self.ino = attr.ino or self.ino
        self._outdated = bool(attr.ino) and not self.volume.memory.knows(attr)
        if self._content_version != attr.version and not self.dirty:
            self._drop_content()

    def recalled(self) -> None:
        """Somebody else has changed the inode: what is known of it may be outdated."""
        self._outdated = True

    @property
    def _is_fresh(self) -> bool:
        """Whether ``attr`` is what the storage would tell now."""
        return not self._outdated and (not self.ino or self.volume.memory.left() > 0)

    def opened(self, attr: Attr, data: bytes | None) -> None:
        """open() has brought attributes, and perhaps the content."""
        if self.dirty:
            return
        self.fresh_attr(attr)
        if data is not None and self.content is None and len(data) == attr.size:
            self._keep_content(data)

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, handle: Handle, offset: int, length: int) -> bytes | memoryview:
        """Read through *handle*. The result is valid until the caller's next checkpoint."""
        self.transfers += 1
        try:
            return await self._read(handle, offset, length)
        finally:
            self.transfers -= 1

    async def _read(self, handle: Handle, offset: int, length: int) -> bytes | memoryview:
        for attempt in range(_READ_TRIES):
            last = attempt == _READ_TRIES - 1
            if not (self.dirty or self._is_fresh) and self._can_refresh:
                await self._refresh()
                if self._outdated and not last:
                    continue
            if offset >= self.size:
                return b""
            content = self.content
            if content is not None:
                # A copy: a bytearray must not be resized while the kernel takes the bytes.
                return bytes(memoryview(content)[offset : offset + length])
            writer = self.writer
            if writer is not None:
                return await self._read_through(writer, handle, offset, length)
            try:
                data = await self._fetch(handle, offset, length)
            except StatusError as exc:
                # Another mount has stored a new object meanwhile, or changed the size.
                if exc.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                self._outdated = True
            else:
                # The kernel must not keep what another mount has overwritten meanwhile.
                if not self._outdated or last:
                    return data
            handle.drop_reader()
        raise TreeError(errno.EIO)

    async def _fetch(self, handle: Handle, offset: int, length: int) -> bytes | memoryview:
        """Stored content, which another storage may have when the volume is down."""
        volume = self.volume
        reader = handle.reader(self.attr.file_id, self.attr.size)
        if volume.down and len(volume.backend.replicas()) > 1:
            return await reader.read(offset, length)
        ticket = volume.enter()
        try:
            return await reader.read(offset, length)
        except ConnectionProblem:
            volume.mark_down()
            raise
        finally:
            volume.leave(ticket)

    @property
    def _can_refresh(self) -> bool:
        """Without the names primary a file that is open is read on as it was."""
        return self._outdated or self.volume.backend.connected

    async def _read_through(
        self, writer: ObjectWriter, handle: Handle, offset: int, length: int
    ) -> bytes:
        """Read a file that is being written to: bytes under way must have arrived first."""
        end = min(offset + length, self.size)
        if writer.overlaps(offset, end):
            async with self.lock:
                if self.writer is writer:
                    await writer.drain()
        buffer = bytearray(end - offset)
        got = 0
        try:
            got = await self.volume.backend.read_into(writer.file_id, offset, memoryview(buffer))
        except StatusError as exc:
            # The file was extended by truncate: the object itself is shorter, the rest is zero.
            if exc.errno != errno.EINVAL:
                raise
        buffer[got:] = bytes(len(buffer) - got)
        return bytes(buffer)

    async def _refresh(self) -> None:
        if self.ino:
            attr = await self.volume.call(names.GetAttr(self.ino))
        else:
            attr = await self.volume.call(names.LookupObject(self.attr.file_id))
        self.fresh_attr(attr)

    async def _load(self) -> bytes | bytearray:
        """The whole content, for a change in memory."""
        if not self._is_fresh:
            await self._refresh()
        if self.content is not None:
            return self.content
        if not self.attr.size:
            return b""
        opened: names.Opened = await self.volume.call(names.Open(self.ino, SMALL_CONTENT_MAX))
        self.fresh_attr(opened.attr)
        if opened.data is not None:
            return opened.data
        buffer = bytearray(opened.attr.size)
        got = await self.volume.backend.read_into(opened.attr.file_id, 0, memoryview(buffer))
        if got != len(buffer):
            raise TreeError(errno.EIO)
        return buffer

    # --- changing --------------------------------------------------------------------------------

    async def write(self, offset: int, data: bytes, *, append: bool = False) -> None:
        """Take *data*; it reaches the storage with the next flush at the latest.

        Args:
            append: to the end, wherever that is; *offset* is where the kernel takes it to be.

        Raises:
            FdfsError, OSError: an earlier change could not be stored.
        """
        # What a volume that is down cannot take must not fill the memory for the others.
        ticket = self.volume.enter()
        self.transfers += 1
        try:
            await self._write(offset, data, append)
        finally:
            self.transfers -= 1
            self.volume.leave(ticket)

    async def _write(self, offset: int, data: bytes, append: bool) -> None:
        async with self.lock:
            self._raise_error()
            if append:
                offset = await self._end(offset, len(data))
            end = offset + len(data)
            if self.writer is None and not await self._write_to_memory(offset, end, data):
                await self._open_object()
            if self.writer is not None:
                await self.writer.write(offset, data)
            self._changed(max(self.size, end))

    async def _end(self, assumed: int, length: int) -> int:
        """Where to append: the kernel does not ask for new attributes before it appends.

        Only what begins where the kernel takes the end to be is moved. The rest are pages of a
        mapping, which the kernel may send through a handle for appending.
        """
        kernel_size = self._kernel_size
        if kernel_size is None:
            if self.dirty or self._is_fresh:
                return assumed
            kernel_size = self.size
        if not self.dirty and not self._is_fresh:
            await self._refresh()
        if assumed != kernel_size or self.size == kernel_size:
            return assumed
        # Its pages have the new bytes in the wrong place now.
        self._kernel_size = assumed + length
        forget = partial(self._context.kernel.forget_pages, self.number)
        self._context.spawn(partial(trio.to_thread.run_sync, forget, abandon_on_cancel=True))
        return self.size

    async def _write_to_memory(self, offset: int, end: int, data: bytes) -> bool:
        """False when the file is too large for that."""
        if self.size > SMALL_CONTENT_MAX:
            return False
        content = self.content if self.dirty else await self._load()
        assert content is not None
        if max(end, len(content)) > SMALL_CONTENT_MAX:
            if not self.dirty:
                await self._take(len(content))
                self.content = content
                self._size, self.mtime_ns, self.dirty = len(content), self.attr.mtime_ns, True
            return False
        await self._take(max(end, len(content)) - (len(content) if self.dirty else 0))
        if not content and offset == 0:
            self.content = data
            return True
        if not isinstance(content, bytearray):
            content = bytearray(content)
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset:end] = data
        self.content = content
        return True

    async def _open_object(self) -> None:
        """Leave memory behind: from here on an object is written to."""
        if self.content is None:
            if not self.attr.in_place or not self._is_fresh:
                self.fresh_attr(await self.volume.call(names.MakeWritable(self.ino)))
            file_id, view = self.attr.file_id, self.volume.backend.view
            self.new_object = False
        else:
            made: names.ObjectMade = await self.volume.call(names.NewObject(self.ino))
            file_id, view = made.file_id, made.view
            self.new_object = True
        size = self.size
        writer = ObjectWriter(self._context, self.volume, file_id, view)
        if self.content is not None:
            # Given and taken again without a checkpoint between: this never waits.
            self._context.dirty.give(len(self.content))
            if self.content:
                await writer.write(0, bytes(self.content))
            self.content = None
        self._size = size
        self.writer = writer

    async def truncate(self, size: int) -> None:
        """Set the size. What it makes of the content is stored by the next flush at the latest."""
        async with self.lock:
            self._raise_error()
            if size > SMALL_CONTENT_MAX or (size and self.size > SMALL_CONTENT_MAX):
                await self._flush()
                now = time.time_ns()
                self._stored(await self.volume.call(names.Truncate(self.ino, size, now)))
                return
            if self.writer is not None:
                await self._flush()
            content = (self.content if self.dirty else await self._load()) if size else b""
            assert content is not None
            await self._resize(content, size)
            self._changed(size)

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
        self.mtime_ns = time.time_ns()

    async def set_attributes(self, request: names.SetAttr) -> Attr:
        """SetAttr, in order with the storing of content: a time that is set stays."""
        async with self.lock:
            attr: Attr = await self.volume.call(request)
            self.fresh_attr(attr)
            if self.dirty and request.mtime_ns is not None:
                self.mtime_ns = request.mtime_ns
            return attr

    # --- storing ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Return when all changes are stored. Costs nothing when there are none.

        Raises:
            FdfsError, OSError: they could not be stored, or an earlier attempt failed and nobody
                was told yet. They are kept; the next flush tries again.
        """
        if not self.dirty and self._error is None:
            return
        async with self.lock:
            self._error = None
            await self._flush()

    async def write_back(self) -> None:
        """`flush` on our own account; an error is told to the next write, flush or fsync."""
        self._writing_back = True
        try:
            async with self.lock:
                try:
                    await self._flush()
                except (FdfsError, OSError) as exc:
                    self._error = exc
                    self.dirty_since = time.monotonic()
                    self._warn(exc)
        finally:
            self._writing_back = False

    def write_back_soon(self) -> None:
        """`write_back` in the background, unless one is under way."""
        if not self._writing_back:
            self._writing_back = True
            self._context.spawn(self.write_back)

    def _warn(self, exc: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            log.warning("inode %d of %s: not stored yet: %s", self.ino, self._group, exc)

    def relieve(self) -> None:
        """Give back memory soon: others wait for it."""
        if self.writer is not None:
            self.writer.send_tail()
        elif self.dirty and not self.lock.locked():
            self.write_back_soon()

    async def _flush(self) -> None:
        if not self.dirty:
            return
        if self.writer is not None:
            attr = await self._publish(self.writer)
        else:
            assert self.content is not None
            data = bytes(self.content)
            attr = await self.volume.call(names.StoreContent(self.ino, data, self.mtime_ns))
        self._stored(attr)

    async def _publish(self, writer: ObjectWriter) -> Any:
        await writer.drain()
        kind = names.NameObject if self.new_object else names.CommitWrite
        return await self.volume.call(kind(self.ino, writer.file_id, self._size, self.mtime_ns))

    def _stored(self, attr: Attr) -> None:
        """The storage has all changes: clean again."""
        old = self.attr.version
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
        if content is not None and self.handles and len(content) == attr.size:
            self._keep_content(content)

    # --- memory ----------------------------------------------------------------------------------

    def close(self) -> None:
        """The last handle is gone and everything is stored, or cannot be."""
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
        else:
            self._drop_content()

    @property
    def _group(self) -> str:
        return self.volume.backend.group

    def _keep_content(self, content: bytes | bytearray) -> None:
        """Keep clean content as a cache, if there is room for it."""
        if self._context.clean_used + len(content) <= self._context.options.clean_bytes:
            self._context.clean_used += len(content)
            self.content = content
            self._content_version = self.attr.version

    def _drop_content(self) -> None:
        if self.content is not None:
            self._context.clean_used -= len(self.content)
            self.content = None

    async def _take(self, count: int) -> None:
        """Take memory for unstored content; what was clean content until now is counted anew."""
        if not self._context.dirty.take_nowait(count):
            await self._context.dirty.take(count)
        # Only now: another open() may have brought content while this waited.
        if not self.dirty:
            self._drop_content()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error


class Handle:
    """One open() of a file."""

    __slots__ = ("_buffers", "_context", "_reader", "append", "state")

    def __init__(
        self, context: Context, state: FileState, buffers: Buffers, *, append: bool = False
    ) -> None:
        self._context = context
        self._buffers = buffers
        self._reader: ObjectReader | None = None
        self.append = append
        self.state = state

    def reader(self, file_id: str, size: int) -> ObjectReader:
        """The reader of the object in its present version."""
        reader = self._reader
        version = self.state.attr.version
        if reader is not None:
            if (reader.file_id, reader.version, reader.size) == (file_id, version, size):
                return reader
            reader.close()
        volume = self.state.volume
        reader = ObjectReader(self._context, volume, self._buffers, file_id, version, size)
        self._reader = reader
        return reader

    def drop_reader(self) -> None:
        """Forget what was read ahead."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
