"""Reading one object through one handle, with read-ahead for sequential readers.

Chunks of the object (aligned, `read_chunk_bytes` each) are received into preallocated buffers, in
parallel on pooled connections. A handle has at most `read_chunks` of them; all handles together
stay below `read_ahead_bytes` (a handle always gets the chunk it waits for). Buffers are reused:
a fresh one costs a page fault per page.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import trio

from fdfsfuse.errors import FdfsError
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.volume import Volume

_NEAR: Final = 8
"""How many times its own length a read may be away from the one that it continues."""


class Plan(NamedTuple):
    """What a read fetches: just its range if ``direct``, else the chunks ``now`` and ``ahead``."""

    direct: bool
    now: range
    ahead: range


def plan_read(
    offset: int, end: int, size: int, position: int, streak: int, chunk: int, window: int
) -> Plan:
    """Decide how to read bytes ``offset .. end`` of an object of *size* bytes.

    Args:
        position: end of the previous read of the handle.
        streak: how many reads in a row were sequential.
        chunk: bytes of a chunk.
        window: chunks that may be held, the current one included.

    The first read at the beginning of a file brings its whole chunk; with the second sequential
    read the window opens.
    """
    if not is_sequential(offset, end, position, chunk):
        return Plan(True, range(0), range(0))
    first, last = offset // chunk, (end - 1) // chunk
    now = range(first, last + 1)
    if streak < 2:
        return Plan(False, now, range(0))
    chunks = (size + chunk - 1) // chunk
    return Plan(False, now, range(last + 1, min(chunks, first + window)))


def is_sequential(offset: int, end: int, position: int, chunk: int) -> bool:
    """Whether a read of ``offset .. end`` continues one that ended at *position*.

    The kernel's own read-ahead arrives a little out of order, in large requests. A small one that
    is not quite near is a random read, for which a whole chunk would be fetched in vain.
    """
    return abs(offset - position) <= min(chunk, _NEAR * (end - offset))


class _Chunk:
    __slots__ = ("buffer", "done", "error", "length", "readers", "waiters")

    def __init__(self, buffer: bytearray, length: int) -> None:
        self.buffer = buffer
        self.length = length
        self.done = False
        self.error: Exception | None = None
        self.readers = 0
        self.waiters = trio.lowlevel.ParkingLot()


class Buffers:
    """A pool of buffers of *size* bytes, of which at most *keep* unused ones are kept."""

    def __init__(self, size: int, keep: int) -> None:
        self._size = size
        self._keep = keep
        self._free: list[bytearray] = []

    def get(self) -> bytearray:
        """A buffer. It may still hold old bytes."""
        return self._free.pop() if self._free else bytearray(self._size)

    def put(self, buffer: bytearray) -> None:
        """Take back a buffer that nobody uses any more."""
        if len(self._free) < self._keep:
            self._free.append(buffer)


class ObjectReader:
    """Reads one object through one handle. When ``file_id`` or ``version`` change, make another."""

    def __init__(
        self,
        context: Context,
        volume: Volume,
        buffers: Buffers,
        file_id: str,
        version: int,
        size: int,
    ) -> None:
        self.file_id = file_id
        self.version = version
        self.size = size
        self._context = context
        self._volume = volume
        self._buffers = buffers
        self._chunks: dict[int, _Chunk] = {}
        self._position = 0
        self._streak = 0

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Up to *length* bytes from *offset*; less only at the end of the object.

        The result is valid until the caller's next checkpoint: its buffer is reused.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        size = self._context.options.read_chunk_bytes
        plan = self._plan(offset, end, size)
        if plan.direct:
            return await self._read_direct(offset, end)
        self._drop_before(plan.now[0] - 1)
        chunks = [self._get(index) for index in plan.now]
        for index in plan.ahead:
            self._prefetch(index)
        await self._wait(chunks)
        start = offset - plan.now[0] * size
        if len(chunks) == 1:
            return memoryview(chunks[0].buffer)[start : min(end - offset + start, chunks[0].length)]
        joined = b"".join(memoryview(chunk.buffer)[: chunk.length] for chunk in chunks)
        return joined[start : start + end - offset]

    async def _wait(self, chunks: list[_Chunk]) -> None:
        for chunk in chunks:
            chunk.readers += 1
        try:
            for chunk in chunks:
                while not chunk.done:
                    await chunk.waiters.park()
                if chunk.error is not None:
                    self.close()
                    raise chunk.error
        finally:
            for chunk in chunks:
                chunk.readers -= 1

    def close(self) -> None:
        """Forget what was read; transfers under way end by themselves."""
        for index in list(self._chunks):
            self._drop(index)

    def _plan(self, offset: int, end: int, chunk: int) -> Plan:
        if is_sequential(offset, end, self._position, chunk):
            self._streak += 1
        else:
            self._streak = 0
            if (offset // chunk) not in self._chunks:
                self.close()
        plan = plan_read(
            offset,
            end,
            self.size,
            self._position,
            self._streak,
            chunk,
            self._context.options.read_chunks,
        )
        self._position = max(self._position, end) if self._streak else end
        return plan

    async def _read_direct(self, offset: int, end: int) -> memoryview:
        buffer = memoryview(bytearray(end - offset))
        got = await self._volume.backend.read_into(self.file_id, offset, buffer, published=True)
        return buffer[:got]

    def _get(self, index: int) -> _Chunk:
        chunk = self._chunks.get(index)
        return chunk if chunk is not None else self._start(index)

    def _prefetch(self, index: int) -> None:
        options = self._context.options
        used = self._context.read_ahead_used
        if (
            index not in self._chunks
            and used + options.read_chunk_bytes <= options.read_ahead_bytes
        ):
            self._start(index)

    def _start(self, index: int) -> _Chunk:
        size = self._context.options.read_chunk_bytes
        chunk = _Chunk(self._buffers.get(), min(size, self.size - index * size))
        self._context.read_ahead_used += size
        self._chunks[index] = chunk
        self._context.spawn(self._fetch, index * size, chunk)
        return chunk

    async def _fetch(self, offset: int, chunk: _Chunk) -> None:
        try:
            view = memoryview(chunk.buffer)[: chunk.length]
            backend = self._volume.backend
            chunk.length = await backend.read_into(self.file_id, offset, view, published=True)
        except (FdfsError, OSError) as exc:
            chunk.error = exc
        except Exception as exc:
            chunk.error = exc
            raise
        finally:
            chunk.done = True
            chunk.waiters.unpark_all()

    def _drop_before(self, index: int) -> None:
        for old in [i for i in self._chunks if i < index]:
            self._drop(old)

    def _drop(self, index: int) -> None:
        chunk = self._chunks.pop(index)
        self._context.read_ahead_used -= self._context.options.read_chunk_bytes
        # A buffer that is still being received into, or that a reader waits for, is not reused.
        if chunk.done and chunk.error is None and not chunk.readers:
            self._buffers.put(chunk.buffer)
