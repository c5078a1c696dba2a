"""The part of an open file that merges its changes with those of other mounts.

While content waits to be stored, another mount may store something else. A recall may tell us; at
the latest, our store is refused, because it names the version that it is based on. The changes
(`Edits`) are then made again on the new content: in memory, or in place if the content has become
too large for that. Content that takes nothing from the earlier one replaces whatever there is.

Changes in place need no merging, as they write just the bytes that they are for, unless another
mount has replaced the object that is written to.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from functools import partial

import trio

from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import SMALL_CONTENT_MAX, Attr
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.edits import Edits
from fdfsfuse.vfs.objectwriter import ObjectWriter
from fdfsfuse.vfs.readable import ReadableFile
from fdfsfuse.vfs.volume import Volume

_PIECE = 1 << 20
_REDO_TRIES = 20


class MergingFile(ReadableFile):
    """See the module. Everything but `catch_up` is called under ``lock``.

    Attributes:
        new_object: whether ``writer`` writes a new object, and not the inode's own one.
        _base: the version of the content that unstored content was made from.
        _maybe_stored: a store got no answer, so it may itself be what has changed the content.
    """

    __slots__ = ("_base", "_edits", "_maybe_stored", "new_object")

    def __init__(self, context: Context, volume: Volume, number: int, attr: Attr) -> None:
        super().__init__(context, volume, number, attr)
        self.new_object = False
        self._edits = Edits()
        self._base = attr.version
        self._maybe_stored = False

    async def catch_up(self) -> None:
        if self._is_behind:
            async with self.lock:
                await self._catch_up()

    @property
    def _is_behind(self) -> bool:
        """Whether another mount may have changed the content that ours in memory was made from."""
        if not self.dirty or self.content is None or self._edits.whole:
            return False
        return self.outdated or self.attr.version != self._base

    @property
    def _based_on(self) -> int:
        return names.ANY_VERSION if self._edits.whole else self._base

    def _begin(self, version: int) -> None:
        """Begin to change clean content, which is of *version*."""
        self._edits = Edits()
        self._base = version
        self._maybe_stored = False

    async def _catch_up(self) -> None:
        if not self._is_behind:
            return
        if self.outdated:
            await self._refresh()
        if self.attr.version != self._base:
            await self._rebase()

    async def _merged_after(self, exc: StatusError) -> bool:
        """Deal with a store that was refused.

        Returns whether the changes are merged now, so that it is worth while to store again.
        """
        writer = self.writer
        if exc.errno == names.CONTENT_CHANGED:
            self.outdated = True
            if writer is not None:
                await self._redo()
            return True
        if writer is None or exc.errno not in (errno.ESTALE, errno.ENOENT):
            return False
        await self._refresh()
        named = self.attr.file_id == writer.file_id
        if self.new_object:
            # Perhaps an earlier attempt, which got no answer, has named it.
            self.new_object = not named
            return named
        if not named:
            await self._redo()
        return not named

    async def _rebase(self) -> None:
        """Make the changes again, in memory, on what the storage has now."""
        if self.attr.size > SMALL_CONTENT_MAX:
            await self._redo()
            return
        newest, version = await self._load_stored()
        if newest is None:
            await self._redo()
            return
        own, edits = self.content, self._edits
        assert own is not None
        if self._maybe_stored and own.startswith(newest):
            # The store without an answer was done. What was appended since comes after it.
            if len(newest) == len(own):
                edits = self._edits = Edits()
            elif edits.tail is not None:
                edits.tail = max(edits.tail, len(newest))
        appended = len(own) - edits.tail if edits.tail is not None else 0
        if edits.end_on(len(newest)) + appended > SMALL_CONTENT_MAX:
            await self._redo()
            return
        merged = edits.overlay(newest, own)
        self._context.dirty.overdraw(len(merged) - len(own))
        self.content = merged
        self._rebased(version, len(merged))

    async def _redo(self) -> None:
        """Make the changes again, in place, on the object that the inode has now."""
        for attempt in range(_REDO_TRIES):
            try:
                await self._redo_once()
                return
            except StatusError as exc:
                # That object was replaced, too.
                if exc.errno != errno.ENOENT or attempt == _REDO_TRIES - 1:
                    raise

    async def _redo_once(self) -> None:
        volume, edits, old = self.volume, self._edits, self.writer
        await self._refresh()
        if edits.kept is not None:
            for size in dict.fromkeys((min(edits.kept, self.attr.size), edits.floor)):
                self.fresh_attr(await volume.call(names.Truncate(self.ino, size, self.mtime_ns)))
        self.fresh_attr(await volume.call(names.MakeWritable(self.ino)))
        file_id, end, tail = self.attr.file_id, edits.end_on(self.attr.size), edits.tail
        size = end if tail is None else end + self._size - tail
        writer = ObjectWriter(self._context, volume, file_id, volume.backend.view)
        try:
            async for offset, data in self._own_bytes(old):
                shift = 0 if tail is None or offset < tail else end - tail
                await writer.write(offset + shift, data)
            await writer.drain()
        except BaseException:
            writer.discard()
            raise
        if old is not None:
            old.discard()
        if self.content is not None:
            self._context.dirty.give(len(self.content))
            self.content = None
        if tail is not None:
            edits.tail = end
        self.writer, self.new_object = writer, False
        self._rebased(self.attr.version, size)

    async def _own_bytes(self, writer: ObjectWriter | None) -> AsyncIterator[tuple[int, bytes]]:
        """(offset, data) of all changes; no piece has bytes on both sides of `Edits.tail`."""
        tail = self._edits.tail
        ranges = list(self._edits.ranges())
        if tail is not None:
            ranges.append((tail, self._size))
        for start, end in ranges:
            for offset in range(start, end, _PIECE):
                data = await self._own_piece(writer, offset, min(_PIECE, end - offset))
                if data:
                    yield offset, data
        for offset, data in writer.unsent() if writer is not None else ():
            cut = len(data) if tail is None else max(0, tail - offset)
            if data[:cut]:
                yield offset, data[:cut]
            if data[cut:]:
                yield offset + cut, data[cut:]

    async def _own_piece(self, writer: ObjectWriter | None, offset: int, length: int) -> bytes:
        """Bytes as we have written them, without those that have not arrived at the object yet."""
        if writer is None:
            assert self.content is not None
            return bytes(self.content[offset : offset + length])
        buffer = bytearray(length)
        try:
            got = await self.volume.backend.read_into(writer.file_id, offset, memoryview(buffer))
        except StatusError as exc:
            # Behind the end of the object.
            if exc.errno != errno.EINVAL:
                raise
            return b""
        return bytes(buffer[:got])

    def _rebased(self, version: int, size: int) -> None:
        """Note that the changes are merged with *version*; the kernel has to forget its pages."""
        self._base = version
        self._maybe_stored = False
        self.mtime_ns = max(self.mtime_ns, self.attr.mtime_ns)
        if self._kernel_size is None and size != self._size:
            self._kernel_size = self._size
        self._size = size
        self._context.pages.drop(self.number)
        self._context.kernel.forget_attributes(self.number)
        self._forget_pages()

    def _forget_pages(self) -> None:
        """Let the kernel forget its pages of the file, in the background."""
        forget = partial(self._context.kernel.forget_pages, self.number)
        self._context.spawn(partial(trio.to_thread.run_sync, forget, abandon_on_cancel=True))
