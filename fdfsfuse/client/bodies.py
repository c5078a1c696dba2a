"""Sending the body of a request from memory, from a file or from an iterator."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import trio

from fdfsfuse.client.sources import CHUNK_SIZE, FileRange, Progress, Source
from fdfsfuse.errors import ConnectionBroken, UsageError

if TYPE_CHECKING:
    from fdfsfuse.client.connection import Connection

INLINE_SEND = 64 << 10
"""A body in memory up to this size is sent with its head, without a word of progress."""
_IOV_MAX = 1024


class InThread:
    """A plain iterable of bytes, whose items are made in threads."""

    def __init__(self, iterable: Iterable[bytes]) -> None:
        self._iterable = iterable

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        iterator: Iterator[bytes] = await trio.to_thread.run_sync(iter, self._iterable)
        while (chunk := await trio.to_thread.run_sync(next, iterator, None)) is not None:
            yield chunk


async def send_body(
    to: Connection, front: bytes, source: Source, size: int, progress: Progress | None
) -> None:
    """Send *front* and *size* bytes of *source*.

    An answer that arrives before all is sent is raised, if it is a status.
    """
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            await _send_buffer(to, front, source, size, progress)
        elif isinstance(source, FileRange):
            await _send_file(to, front, source, size, progress)
        elif isinstance(source, AsyncIterable):
            await _send_iterable(to, front, source, size, progress)
        elif isinstance(source, Sequence):
            await _send_pieces(to, front, cast("Sequence[bytes]", source), size)
        else:
            await _send_iterable(to, front, InThread(source), size, progress)
    except ConnectionBroken:
        # The peer may have said why before it closed (wire.md trap 3).
        to.raise_early_answer()
        raise


async def _send_buffer(
    to: Connection,
    front: bytes,
    source: bytes | bytearray | memoryview,
    size: int,
    progress: Progress | None,
) -> None:
    if size <= INLINE_SEND:
        packet = b"".join((front, source))
        if len(packet) != len(front) + size:
            raise _wrong_size(len(packet) - len(front), size)
        await to.send_all(packet)
        return
    view = memoryview(source).cast("B")
    if len(view) != size:
        raise _wrong_size(len(view), size)
    await to.send_all(front)
    for start in range(0, size, CHUNK_SIZE):
        part = view[start : start + CHUNK_SIZE]
        await to.send_all(part)
        await _between_chunks(to, len(part), size - start - len(part), progress)


async def _send_pieces(to: Connection, front: bytes, source: Sequence[bytes], size: int) -> None:
    """One system call takes many pieces; what is left of them is sent in turn."""
    total = sum(map(len, source))
    if total != size:
        raise _wrong_size(total, size)
    pieces = [front, *source]
    for start in range(0, len(pieces), _IOV_MAX):
        group = pieces[start : start + _IOV_MAX]
        try:
            sent = to.sock.sendmsg(group)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise to.broken(exc) from exc
        for piece in group:
            if sent < len(piece):
                await to.send_all(memoryview(piece)[sent:])
            sent = max(0, sent - len(piece))


async def _send_file(
    to: Connection, front: bytes, source: FileRange, size: int, progress: Progress | None
) -> None:
    if source.length != size:
        raise _wrong_size(source.length, size)
    buffer = memoryview(bytearray(min(CHUNK_SIZE, size)))
    sent = 0
    while sent < size:
        part = buffer[: min(CHUNK_SIZE, size - sent)]
        got = await _read_file(source.fd, part, source.offset + sent)
        if not got:
            raise UsageError(f"the file became shorter: {sent} of {size} bytes could be read")
        await to.send_all(front + part[:got] if front else part[:got])
        front = b""
        sent += got
        await _between_chunks(to, got, size - sent, progress)
    if front:
        await to.send_all(front)


async def _send_iterable(
    to: Connection, front: bytes, source: AsyncIterable[bytes], size: int, progress: Progress | None
) -> None:
    await to.send_all(front)
    sent = 0
    async with AsyncExitStack() as stack:
        iterator = aiter(source)
        if isinstance(iterator, AsyncGenerator):
            # Nobody else would close it when the sending breaks off.
            stack.push_async_callback(iterator.aclose)
        async for chunk in iterator:
            sent += len(chunk)
            if sent > size:
                raise UsageError(f"the body has more than the {size} bytes announced")
            await to.send_all(chunk)
            await _between_chunks(to, len(chunk), size - sent, progress)
    if sent < size:
        raise UsageError(f"the body has only {sent} of the {size} bytes that were announced")


def _wrong_size(found: int, announced: int) -> UsageError:
    return UsageError(f"the body has {found} bytes, {announced} were announced")


async def _between_chunks(to: Connection, sent: int, left: int, progress: Progress | None) -> None:
    """Let others run, and stop when the peer has answered or closed too early."""
    if progress is not None:
        progress(sent)
    await trio.lowlevel.checkpoint()
    if left and not to.alive():
        to.raise_early_answer()


async def _read_file(fd: int, buffer: memoryview, offset: int) -> int:
    """pread into *buffer*: at once when the page cache has it, else in a thread."""
    try:
        got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        if got:
            return got
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
    return await trio.to_thread.run_sync(os.preadv, fd, [buffer], offset)
