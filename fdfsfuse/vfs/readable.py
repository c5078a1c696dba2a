"""The half of an open file that looks at it and reads it; `fdfsfuse.vfs.files` has the other."""

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
"""The pause before the second try; it grows fourfold with each further one."""
_LOOK_S = 3.0
"""How long one question for attributes may take; a storage that hangs is noticed meanwhile."""


class ReadableFile(ABC):
    """Reading, and clean content as a cache. Changes are left to subclasses.

    Attributes:
        number: the inode number in this mount; ``ino`` that in the volume, 0 without a name.
        attr: the attributes that the storage has; `attributes` makes those that users see.
        outdated: whether ``attr`` may have changed at the storage.
        dirty, content, writer: see `fdfsfuse.vfs.files`.
        mtime_ns: the modification time of content that is not stored.
        changed_ns: when that content was changed last, whatever ``mtime_ns`` was set to since.
        writes: WRITEs that came and are not taken yet.
        lock: held while the file is changed.
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
        "volume",
        "writer",
        "writes",
    )

    def __init__(self, context: Context, volume: Volume, number: int, attr: Attr) -> None:
        self._context = context
        self.volume = volume
        self.number = number
        self.ino = attr.ino
        self.attr = attr
        self.outdated = bool(attr.ino) and not volume.memory.knows(attr)
        self.writes = 0
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
        """*attr*, from the storage, with unstored changes. The kernel is about to get them."""
        if not self.dirty:
            self._kernel_knows(attr.size)
            return attr
        self._kernel_size = None
        ctime_ns = max(attr.ctime_ns, self.changed_ns)
        return replace(attr, size=self._size, mtime_ns=self.mtime_ns, ctime_ns=ctime_ns)

    def fresh_attr(self, attr: Attr) -> None:
        """Take newer attributes from an answer of the storage."""
        if self._kernel_size is None and not self.dirty and attr.size != self.attr.size:
            self._kernel_size = self.attr.size
        self.attr = attr
        self.ino = attr.ino or self.ino
        self.outdated = bool(attr.ino) and not self.volume.memory.knows(attr)
        if self._content_version != attr.version and not self.dirty:
            self._drop_content()

    def _kernel_knows(self, size: int) -> None:
        """Note the size that the kernel believes the file to have: it appends there."""
        self._kernel_size = None if size == self.size else size

    def recalled(self) -> None:
        """Note that another mount has changed the inode."""
        self.outdated = True

    @property
    def is_fresh(self) -> bool:
        """Whether ``attr`` is certain to be what the storage has now."""
        return not self.outdated and (not self.ino or self.volume.memory.left() > 0)

    def opened(self, attr: Attr, data: bytes | None) -> None:
        """Take the attributes, and perhaps the content, that open() has brought."""
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
        if self.writes:
            # Not locked are pages that the kernel had before it wrote to them. It may drop such a
            # page while the WRITE waits here: without that WRITE it would keep older content then,
            # and write it back.
            async with self.lock:
                pass
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
        """Read stored content; while the volume is down, from another storage that has it."""
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
        """Read a file that is being written to, after bytes of the range that are under way."""
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
        """Bring unstored content up to date with what other mounts have stored meanwhile."""

    async def _refresh(self) -> None:
        if self.ino:
            attr = await self.look()
            if attr is None:
                return
        else:
            found: Attr = await self.volume.call(names.LookupObject(self.attr.file_id))
            attr = self._context.object_attr(found)
        self.fresh_attr(attr)

    @property
    def reads_on(self) -> bool:
        """Whether the names primary is not needed: it is unreachable, and others have the content.

        A file that is open is then read as it was last known.
        """
        backend = self.volume.backend
        return backend.unreachable and not self.outdated and backend.has_copies(self.attr.file_id)

    async def look(self) -> Attr | None:
        """Ask the storage for the attributes. None: it does not answer, but the file `reads_on`."""
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
        """The whole content, for a change in memory, and its version; None if it is too large."""
        if not self.is_fresh:
            await self._refresh()
        if self.content is not None:
            return self.content, self.attr.version
        if not self.attr.size:
            return b"", self.attr.version
        return await self._load_stored()

    async def _load_stored(self) -> tuple[bytes | bytearray | None, int]:
        """As `_load`, but always what the storage has now."""
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
    """Pause before another try to read an object that is shorter than its attributes say.

    A storage that truncates a file cuts the object first, and publishes the new size when the other
    storages have cut it as well.
    """
    if attempt < _READ_TRIES - 1:
        await trio.sleep(_PAUSE_S * 4**attempt)
