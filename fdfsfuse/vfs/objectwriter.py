"""Write-behind to one appender: a large file that is being written.

Adjacent writes are gathered into chunks; full chunks are sent in parallel on pooled connections.
Chunks that overlap are sent one after the other. A chunk that could not be sent is kept and
sent again by the next `ObjectWriter.drain`, so that a later fsync can still succeed.

Memory: every byte that was not sent yet is taken from the mount's dirty budget.
"""

from __future__ import annotations

import logging

import trio

from fdfsfuse.errors import FdfsError
from fdfsfuse.proto.names import WriteObject
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)


class _Chunk:
    __slots__ = ("length", "offset", "pieces")

    def __init__(self, offset: int, data: bytes) -> None:
        self.offset = offset
        self.length = len(data)
        self.pieces = [data]

    @property
    def end(self) -> int:
        return self.offset + self.length

    def append(self, data: bytes) -> None:
        self.pieces.append(data)
        self.length += len(data)

    def overwrite(self, offset: int, data: bytes) -> None:
        whole = bytearray(b"".join(self.pieces))
        start = offset - self.offset
        whole[start : start + len(data)] = data
        self.pieces = [bytes(whole)]

    def overlaps(self, offset: int, end: int) -> bool:
        return self.offset < end and offset < self.end


class ObjectWriter:
    """Used under the lock of its file, except for `overlaps`."""

    def __init__(self, context: Context, volume: Volume, file_id: str, view: int) -> None:
        self.file_id = file_id
        self._context = context
        self._volume = volume
        self._view = view
        self._tail: _Chunk | None = None
        self._sending: set[_Chunk] = set()
        self._unsent = 0
        self._failed: list[_Chunk] = []
        self._error: Exception | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, offset: int, data: bytes) -> None:
        """Take *data* for *offset*. Returns before it was sent.

        Raises:
            FdfsError, OSError: an earlier chunk could not be sent; *data* was not taken.
        """
        self._raise_error()
        options = self._context.options
        end = offset + len(data)
        while any(chunk.overlaps(offset, end) for chunk in self._sending):
            await self._changed.park()
        tail = self._tail
        if tail is not None and tail.offset <= offset and end <= tail.end:
            tail.overwrite(offset, data)
            return
        if tail is not None and (offset != tail.end or tail.length >= options.chunk_bytes):
            await self._seal(offset, end)
        if not self._context.dirty.take_nowait(len(data)):
            # What this file holds must be on its way before it waits for others.
            await self._seal(offset, end)
            await self._context.dirty.take(len(data))
        if self._tail is None:
            self._tail = _Chunk(offset, data)
        else:
            self._tail.append(data)
        if self._tail.length >= options.chunk_bytes:
            self.send_tail()
        while self._unsent > options.unsent_bytes or len(self._sending) > options.unsent_chunks:
            await self._changed.park()

    def send_tail(self) -> None:
        """Send what was gathered, although more may follow."""
        tail, self._tail = self._tail, None
        if tail is not None:
            self._start(tail)

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether bytes of the range are not on the storage yet."""
        chunks = [*self._sending, *self._failed]
        if self._tail is not None:
            chunks.append(self._tail)
        return any(chunk.overlaps(offset, end) for chunk in chunks)

    async def drain(self) -> None:
        """Wait until everything is on the storage. What had failed is tried once more.

        Raises:
            FdfsError, OSError: something could not be sent. It is kept for the next drain.
        """
        self._error = None
        failed, self._failed = self._failed, []
        for chunk in failed:
            self._start(chunk)
            while self._sending:
                await self._changed.park()
        self.send_tail()
        while self._sending:
            await self._changed.park()
        self._raise_error()

    def discard(self) -> None:
        """Give up: what was not sent is dropped."""
        chunks = self._failed + ([self._tail] if self._tail is not None else [])
        self._failed, self._tail = [], None
        self._context.dirty.give(sum(chunk.length for chunk in chunks))

    async def _seal(self, offset: int, end: int) -> None:
        self.send_tail()
        while any(chunk.overlaps(offset, end) for chunk in self._sending):
            await self._changed.park()

    def _start(self, chunk: _Chunk) -> None:
        self._sending.add(chunk)
        self._unsent += chunk.length
        self._context.spawn(self._send, chunk)

    async def _send(self, chunk: _Chunk) -> None:
        try:
            self._volume.check_up()
            head = WriteObject(self.file_id, self._view, chunk.offset, chunk.length)
            await self._volume.backend.write_object(head, chunk.pieces)
        except Exception as exc:
            if not isinstance(exc, (FdfsError, OSError)):
                log.exception("error while sending to %s", self.file_id)
            self._error = exc
            self._failed.append(chunk)
        else:
            self._context.dirty.give(chunk.length)
        finally:
            self._sending.discard(chunk)
            self._unsent -= chunk.length
            self._changed.unpark_all()

    def _raise_error(self) -> None:
        # While a chunk has failed nothing newer is taken: it could be overwritten by the old one.
        if self._error is not None:
            raise self._error
