"""File contents between sockets and disk, in pieces: memory stays bounded, the loop stays free."""

from __future__ import annotations

import os

import trio
from isal import isal_zlib

from fdfs_storage.files import pwrite_all
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
    value = 0
    try:
        while data := os.read(fd, CHUNK):
            value = crc32(data, value)
    finally:
        os.close(fd)
    return value
