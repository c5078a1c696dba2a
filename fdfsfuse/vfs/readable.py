"""The half of an open file that looks at it and reads; `fdfsfuse.vfs.files` has the other half."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod

import trio
from msgspec.structs import replace

from fdfsfuse.errors import ConnectionProblem, DeadlineExceeded, StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import SMALL_CONTENT_MAX, Attr
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.handle import Handle
from fdfsfuse.vfs.lock import Lock
from fdfsfuse.vfs.objectwriter import ObjectWriter
from fdfsfuse.vfs.volume import Volume

_READ_TRIES = 8
_PAUSE_S = 0.001
"""Before the first of the tries that wait, of which each pauses four times as long."""
_LOOK_S = 3.0
"""A storage that hangs is found to be unreachable while it is asked for something."""


class ReadableFile(ABC):
    """Reading, and clean content as a cache. Changes are the subclass's.

    ``attr`` is what the storage has, unless it is ``outdated``; `attributes` what users see.
    ``dirty``, ``content`` and ``writer``: see `fdfsfuse.vfs.files`. ``changed_ns``: when content
    was changed last, whatever ``mtime_ns`` has been set to since. ``transfers``: READs and WRITEs
    in flight; the kernel has locked their pages.
    """

    __slots__ = (
        "_content_version",
        "_context",
        "_kernel_size",
        "_size",
        "attr",
        "changed_ns",
        "content",
        "dirty",
        "ino",
        "lock",
        "mtime_ns",
        "number",
        "outdated",
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
        self.outdated = bool(attr.ino) and not volume.memory.knows(attr)
        self.transfers = 0
        self.content: bytes | bytearray | None = None
        self._content_version = -1
        self.dirty = False
        self._size = 0
        self._kernel_size: int | None = None
        self.mtime_ns = 0
        self.changed_ns = 0
        self.writer: ObjectWriter | None = None
        self.lock = Lock()

    # --- looking ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The size that users see."""
        return self._size if self.dirty else self.attr.size

    def attributes(self, attr: Attr) -> Attr:
        """*attr*, an answer of the storage, with what is not stored yet; the kernel is told."""
        if not self.dirty:
            self._kernel_knows(attr.size)
            return attr
        self._kernel_size = None
        ctime_ns = max(attr.ctime_ns, self.changed_ns)
        return replace(attr, size=self._size, mtime_ns=self.mtime_ns, ctime_ns=ctime_ns)

    def fresh_attr(self, attr: Attr) -> None:
        """The storage has told newer attributes."""
        if self._kernel_size is None and not self.dirty and attr.size != self.attr.size:
            self._kernel_size = self.attr.size
        self.attr = attr
        self.ino = attr.ino or self.ino
        self.outdated = bool(attr.ino) and not self.volume.memory.knows(attr)
        if self._content_version != attr.version and not self.dirty:
            self._drop_content()

    def _kernel_knows(self, size: int) -> None:
        """The size that the kernel takes the file to have; it appends there."""
        self._kernel_size = None if size == self.size else size

    def recalled(self) -> None:
        """Somebody else has changed the inode: what is known of it may be outdated."""
        self.outdated = True

    @property
    def is_fresh(self) -> bool:
        """Whether ``attr`` is what the storage would tell now."""
        return not self.outdated and (not self.ino or self.volume.memory.left() > 0)

    def opened(self, attr: Attr, data: bytes | None) -> None:
        """open() has brought attributes, and perhaps the content."""
        if self.dirty:
            return
        self.fresh_attr(attr)
        if self.content is not None or self.writer is not None:
            return
        if data is not None and len(data) == attr.size:
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
            await self.catch_up()
            if not (self.dirty or self.is_fresh or self.reads_on):
                await self._refresh()
                if self.outdated and not last:
                    continue
            if offset >= self.size:
                return b""
            content = self.content
            if content is not None:
                # A copy: a bytearray must not be resized while the kernel takes the bytes.
                return bytes(memoryview(content)[offset : offset + length])
            writer = self.writer
            if writer is not None:
                return await self._read_through(writer, offset, length)
            try:
                data = await self._fetch(handle, offset, length)
            except StatusError as exc:
                # Another mount has stored a new object meanwhile, or changed the size.
                if exc.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                self.outdated = True
                if exc.errno == errno.EINVAL:
                    await _wait_for_size(attempt)
            else:
                # The kernel must not keep what another mount has overwritten meanwhile.
                if not self.outdated or last:
                    return data
            handle.drop_reader()
        raise TreeError(errno.EIO)

    async def _fetch(self, handle: Handle, offset: int, length: int) -> bytes | memoryview:
        """Stored content, which another storage may have when the volume is down."""
        volume = self.volume
        reader = handle.reader(self.attr.file_id, self.attr.size)
        if volume.down and self.reads_on:
            return await reader.read(offset, length)
        ticket = volume.enter()
        try:
            return await reader.read(offset, length)
        except ConnectionProblem:
            volume.mark_down()
            raise
        finally:
            volume.leave(ticket)

    async def _read_through(self, writer: ObjectWriter, offset: int, length: int) -> bytes:
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

    @abstractmethod
    async def catch_up(self) -> None:
        """Let unstored content follow what others have stored meanwhile."""

    async def _refresh(self) -> None:
        if self.ino:
            attr = await self.look()
            if attr is None:
                return
        else:
            attr = await self.volume.call(names.LookupObject(self.attr.file_id))
        self.fresh_attr(attr)

    @property
    def reads_on(self) -> bool:
        """Without the names primary, a file that is open is read as it was where others have it."""
        backend = self.volume.backend
        return backend.unreachable and not self.outdated and backend.has_copies(self.attr.file_id)

    async def look(self) -> Attr | None:
        """The attributes that the storage tells; None: it `reads_on`."""
        volume = self.volume
        attr: Attr
        if not volume.backend.has_copies(self.attr.file_id):
            attr = await volume.call(names.GetAttr(self.ino))
            return attr
        end = trio.current_time() + self._context.options.patience_s
        while not self.reads_on:
            timeout_s = min(_LOOK_S, max(0.0, end - trio.current_time()))
            try:
                attr = await volume.call(names.GetAttr(self.ino), timeout_s=timeout_s)
            except DeadlineExceeded:
                if timeout_s < _LOOK_S:
                    volume.mark_down()
                    raise
            else:
                return attr
        return None

    async def _load(self) -> tuple[bytes | bytearray | None, int]:
        """The whole content, for a change in memory, and its version; None: it is too large."""
        if not self.is_fresh:
            await self._refresh()
        if self.content is not None:
            return self.content, self.attr.version
        if not self.attr.size:
            return b"", self.attr.version
        return await self._load_stored()

    async def _load_stored(self) -> tuple[bytes | bytearray | None, int]:
        """As `_load`, of what the storage has now."""
        for attempt in range(_READ_TRIES):
            opened: names.Opened = await self.volume.call(names.Open(self.ino, SMALL_CONTENT_MAX))
            self.fresh_attr(opened.attr)
            if opened.data is not None:
                return opened.data, opened.attr.version
            if opened.attr.size > SMALL_CONTENT_MAX:
                return None, opened.attr.version
            buffer = bytearray(opened.attr.size)
            got = await self.volume.backend.read_into(opened.attr.file_id, 0, memoryview(buffer))
            if got == len(buffer):
                return buffer, opened.attr.version
            await _wait_for_size(attempt)
        raise TreeError(errno.EIO)

    # --- clean content as a cache ----------------------------------------------------------------

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


async def _wait_for_size(attempt: int) -> None:
    """Wait for the size of an object that is shorter than was told.

    A storage that truncates cuts an object off first, and tells the new size once other storages
    have cut it off as well.
    """
    if attempt < _READ_TRIES - 1:
        await trio.sleep(_PAUSE_S * 4**attempt)
