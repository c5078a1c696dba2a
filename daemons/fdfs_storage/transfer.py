"""File contents between sockets and disk, in pieces: memory stays bounded, the loop stays free."""

from __future__ import annotations

import os
import sys

import trio
from isal import isal_zlib

from fdfs_storage.files import extents, pwrite_all
from fdfsfuse.server.connection import FramedConnection

INLINE_MAX = 64 << 10
"""Content up to this size is received as a whole and written on the loop: a hop to a thread (60
us) would cost more than the copy into the page cache."""
CHUNK = 512 << 10
"""Piece of larger contents: one receive buffer per transfer, one thread hop per piece. Twice as
much gains nothing, half as much costs a third more CPU time."""
crc32 = isal_zlib.crc32
"""CRC-32 of data, or of more behind what has the given one, as zlib computes it: by ISA-L."""


class Received:
    """How far a transfer has come; right also when it was broken off."""

    __slots__ = ("crc32", "length")

    def __init__(self) -> None:
        self.length = 0
        self.crc32 = 0


async def receive_content(
    connection: FramedConnection, fd: int, offset: int, length: int, received: Received
) -> None:
    """Receive *length* bytes of the current body and write them to *fd* from *offset*.

    While a thread writes one piece, the kernel's socket buffer takes the next.

    Raises:
        ConnectionBroken: the client went away; ``received`` tells what has been written.
        OSError: the disk failed. The rest of the body has not been read.
    """
    buffer = memoryview(bytearray(min(length, CHUNK)))

    def write(piece: memoryview, position: int) -> None:
        pwrite_all(fd, piece, position)
        received.crc32 = crc32(piece, received.crc32)
        received.length += len(piece)

    while received.length < length:
        piece = buffer[: min(len(buffer), length - received.length)]
        await connection.recv_into_exactly(piece)
        await trio.to_thread.run_sync(write, piece, offset + received.length)


def file_crc32(path: str) -> int:
    """CRC-32 of a whole file. Slow for large ones: call it in a thread."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return content_crc32(fd)[1]
    finally:
        os.close(fd)


def content_crc32(fd: int, start: int = 0, size: int = sys.maxsize) -> tuple[int, int]:
    """(length, CRC-32) of *size* bytes of a file, or of those that there are.

    Holes are not read: a file may be larger than any disk. Otherwise as slow as `file_crc32`.
    """
    at, end, value = start, min(start + size, os.fstat(fd).st_size), 0
    for offset, length in extents(fd, start, end):
        value = _with_zeros(value, offset - at)
        at = offset
        while at < offset + length:
            data = os.pread(fd, min(CHUNK, offset + length - at), at)
            if not data:
                return at - start, value
            value = crc32(data, value)
            at += len(data)
    return max(0, end - start), _with_zeros(value, max(0, end - at))


def _with_zeros(value: int, count: int) -> int:
    """The CRC-32 of what has *value* and *count* zero bytes behind it."""
    zeros, length = crc32(b"\0"), 1
    while count:
        if count & 1:
            value = isal_zlib.crc32_combine(value, zeros, length)
        zeros = isal_zlib.crc32_combine(zeros, zeros, length)
        count, length = count >> 1, length << 1
    return value
