"""Write-behind to one appender: a large file that is being written.

Writes are gathered: adjacent ones into one chunk, scattered ones as several chunks of one *batch*.
Full batches are sent, each as one request, in parallel on pooled connections; batches that overlap
one after the other. A batch that could not be sent is kept and sent again by the next
`ObjectWriter.drain`, so that a later fsync can still succeed.

Memory: every byte that was not sent yet is taken from the mount's dirty budget.
"""

from __future__ import annotations

import logging

import trio

from fdfsfuse.errors import FdfsError
from fdfsfuse.proto.names import WRITE_PIECES_MAX, WriteObject
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_BLOCK_SHIFT = 16


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


class _Batch:
    """Chunks that do not overlap. ``_blocks`` are the 64 KiB blocks that they touch."""

    __slots__ = ("_blocks", "chunks", "length")

    def __init__(self) -> None:
        self.chunks: list[_Chunk] = []
        self.length = 0
        self._blocks: set[int] = set()

    def add(self, offset: int, data: bytes) -> None:
        """Take *data*, which overlaps nothing here."""
        self.length += len(data)
        self._blocks.update(_blocks(offset, offset + len(data)))
        if self.chunks and self.chunks[-1].end == offset:
            self.chunks[-1].append(data)
        else:
            self.chunks.append(_Chunk(offset, data))

    def overlaps(self, offset: int, end: int) -> bool:
        if self._blocks.isdisjoint(_blocks(offset, end)):
            return False
        return any(chunk.offset < end and offset < chunk.end for chunk in self.chunks)

    def holding(self, offset: int, end: int) -> _Chunk | None:
        """The chunk that the whole range is in."""
        for chunk in self.chunks:
            if chunk.offset <= offset and end <= chunk.end:
                return chunk
        return None

    def request(self, file_id: str, view: int) -> tuple[WriteObject, list[bytes]]:
        """Head and data that write all of it."""
        first, *more = [(chunk.offset, chunk.length) for chunk in self.chunks]
        data = [piece for chunk in self.chunks for piece in chunk.pieces]
        return WriteObject(file_id, view, *first, more), data


def _blocks(offset: int, end: int) -> range:
    return range(offset >> _BLOCK_SHIFT, (end - 1 >> _BLOCK_SHIFT) + 1)


class ObjectWriter:
    """See the module. Everything but `overlaps` is called under the lock of the file."""

    def __init__(self, context: Context, volume: Volume, file_id: str, view: int) -> None:
        self.file_id = file_id
        self._context = context
        self._volume = volume
        self._view = view
        self._tail: _Batch | None = None
        self._sending: set[_Batch] = set()
        self._unsent = 0
        self._failed: list[_Batch] = []
        self._error: Exception | None = None
        self._discarded = False
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, offset: int, data: bytes) -> None:
        """Take *data* for *offset*. Does not wait until it is sent, only until there is room.

        Raises:
            FdfsError, OSError: an earlier batch could not be sent; *data* was not taken.
        """
        self._raise_error()
        options = self._context.options
        end = offset + len(data)
        await self._wait_sent(offset, end)
        tail = self._tail
        if tail is not None and tail.overlaps(offset, end):
            chunk = tail.holding(offset, end)
            if chunk is not None:
                chunk.overwrite(offset, data)
                return
            await self._seal(offset, end)
        if not self._context.dirty.take_nowait(len(data)):
            # Send what this file holds before waiting for memory that others hold.
            await self._seal(offset, end)
            await self._context.dirty.take(len(data))
            if self._error is not None:
                self._context.dirty.give(len(data))
                raise self._error
        if self._tail is None:
            self._tail = _Batch()
        tail = self._tail
        tail.add(offset, data)
        if tail.length >= options.chunk_bytes or len(tail.chunks) > WRITE_PIECES_MAX:
            self.send_tail()
        while self._unsent > options.unsent_bytes or len(self._sending) > options.unsent_chunks:
            await self._changed.park()

    def send_tail(self) -> None:
        """Send what was gathered, without waiting for more."""
        tail, self._tail = self._tail, None
        if tail is not None:
            self._start(tail)

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether bytes of the range are not on the storage yet."""
        batches = [*self._sending, *self._failed]
        if self._tail is not None:
            batches.append(self._tail)
        return any(batch.overlaps(offset, end) for batch in batches)

    async def drain(self) -> None:
        """Wait until everything is on the storage. What had failed is tried once more.

        Raises:
            FdfsError, OSError: something could not be sent. It is kept for the next drain.
        """
        self._error = None
        failed, self._failed = self._failed, []
        for batch in failed:
            self._start(batch)
            while self._sending:
                await self._changed.park()
        self.send_tail()
        while self._sending:
            await self._changed.park()
        self._raise_error()

    def unsent(self) -> list[tuple[int, bytes]]:
        """(offset, data) of what is not on the storage, in the order of the writes."""
        batches = self._failed + ([self._tail] if self._tail is not None else [])
        chunks = [chunk for batch in batches for chunk in batch.chunks]
        return [(chunk.offset, b"".join(chunk.pieces)) for chunk in chunks]

    def discard(self) -> None:
        """Drop everything that was not sent."""
        self._discarded = True
        batches = self._failed + ([self._tail] if self._tail is not None else [])
        self._failed, self._tail = [], None
        self._context.dirty.give(sum(batch.length for batch in batches))

    async def _seal(self, offset: int, end: int) -> None:
        """Send what was gathered, and wait until nothing of the range is under way."""
        self.send_tail()
        await self._wait_sent(offset, end)

    async def _wait_sent(self, offset: int, end: int) -> None:
        """Wait until nothing of the range is under way. Raises an error of a batch that failed."""
        while any(batch.overlaps(offset, end) for batch in self._sending):
            await self._changed.park()
        self._raise_error()

    def _start(self, batch: _Batch) -> None:
        self._sending.add(batch)
        self._unsent += batch.length
        self._context.spawn(self._send, batch)

    async def _send(self, batch: _Batch) -> None:
        try:
            self._volume.check_up()
            await self._volume.backend.write_object(*batch.request(self.file_id, self._view))
        except Exception as exc:
            if not isinstance(exc, (FdfsError, OSError)):
                log.exception("error while sending to %s", self.file_id)
            self._error = exc
            if self._discarded:
                self._context.dirty.give(batch.length)
            else:
                self._failed.append(batch)
        else:
            self._context.dirty.give(batch.length)
        finally:
            self._sending.discard(batch)
            self._unsent -= batch.length
            self._changed.unpark_all()

    def _raise_error(self) -> None:
        # While a batch has failed nothing newer is taken: it could be overwritten by the old one.
        if self._error is not None:
            raise self._error
