"""WRITE_OBJECT and TRUNCATE_OBJECT: changing appenders of mounts in place, on plain connections.

Large data goes from the socket to the file bit by bit, never whole into memory. Each piece gets its
own line in the FastDFS binlog before the request is answered, as the lines tell the other storages
what to fetch. With one line per commit, bytes that were written but not committed when a mount died
would differ from server to server. No storage may fetch bytes that are not in the file yet, so the
line is written after them, unless nothing waits in between.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage.disk_pace import DiskPace
from fdfs_storage.files import pwrite_all, pwrite_pieces, status_of
from fdfs_storage.intents import Intent
from fdfs_storage.names.checks import FILE_SIZE_MAX, fail
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.reads import Reads
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto import names, structs
from fdfsfuse.proto.header import pack_response

if TYPE_CHECKING:
    from fdfsfuse.server.connection import FramedConnection

HEAD_MAX: Final = 4096
PIECE: Final = 256 << 10
DISCARD_MAX: Final = 8 << 20
"""A refused request with more data than this costs the connection instead of being read."""
GATHER_MAX: Final = 512 << 10
"""So much is received before anything of it is written."""
_SLOW_S: Final = 0.005


class ObjectWriter:
    """Carries the requests out. ``view`` is the number that requests must name."""

    def __init__(self, reads: Reads, objects: Objects, view: int) -> None:
        self._reads = reads
        self._objects = objects
        self._view = view
        self._pace = DiskPace(_SLOW_S)
        self._buffers: list[bytearray] = []

    async def write(self, connection: FramedConnection, length: int) -> None:
        """A WRITE_OBJECT whose body has *length* bytes.

        Raises:
            ProtocolError, ConnectionBroken: the connection cannot be used on.
        """
        if not length > 4:
            raise ProtocolError("WRITE_OBJECT without a head")
        head_length = int.from_bytes(await connection.recv_exactly(4), "big")
        if not 1 <= head_length <= min(HEAD_MAX, length - 4):
            raise ProtocolError(f"a WRITE_OBJECT head of {head_length} bytes")
        head = structs.decode(names.WriteObject, await connection.recv_exactly(head_length))
        rest = length - 4 - head_length
        pieces = head.pieces()
        if len(head.more) > names.WRITE_PIECES_MAX or min(size for _, size in pieces) < 0:
            raise ProtocolError("a WRITE_OBJECT with absurd pieces")
        if sum(size for _, size in pieces) != rest:
            raise ProtocolError(f"WRITE_OBJECT brings {rest} bytes, not those of its pieces")
        if rest <= GATHER_MAX:
            data = memoryview(bytearray(rest))
            if rest:
                await connection.recv_into_exactly(data)
            try:
                await self._write_gathered(head, pieces, data)
                status = 0
            except StatusError as exc:
                status = exc.errno or errno.EIO
            await connection.send(pack_response(status=status))
            return
        try:
            self._check_write(head, pieces)
            fd = self._objects.store.paths.open_to_change(self._objects.locate(head.file_id))
        except StatusError as exc:
            await self._refuse(connection, rest, exc.errno or errno.EIO)
            return
        try:
            status, received = await self._receive_pieces(connection, fd, head.file_id, pieces)
        finally:
            os.close(fd)
        if status:
            await self._refuse(connection, rest - received, status)
        else:
            await connection.send(pack_response())

    def _check_write(self, head: names.WriteObject, pieces: list[tuple[int, int]]) -> None:
        """May all that be written? Raises StatusError."""
        if any(not 0 <= offset <= FILE_SIZE_MAX - size for offset, size in pieces):
            raise fail(errno.EFBIG)
        self._check(head.file_id, head.view)

    async def _write_gathered(
        self, head: names.WriteObject, pieces: list[tuple[int, int]], data: memoryview
    ) -> None:
        """Write pieces that are in memory. Raises StatusError: some may have been written."""
        self._check_write(head, pieces)
        file_id, intents = head.file_id, self._objects.store.intents
        pieces = [piece for piece in pieces if piece[1]]
        start = time.monotonic()
        if not pieces:
            return
        if self._pace.is_quick(start):
            self._objects.pwrite_pieces(file_id, pieces, data)
            self._pace.waited(start, time.monotonic())
            return
        fd = self._objects.store.paths.open_to_change(self._objects.locate(file_id))
        try:
            with ExitStack() as notes:
                size = os.fstat(fd).st_size
                for offset, length in pieces:
                    intent = Intent(file_id, offset, length, size, False)
                    notes.enter_context(intents.noted(intent))
                try:
                    await trio.to_thread.run_sync(pwrite_pieces, fd, pieces, data)
                finally:
                    # Also when it failed: how far it came is not known.
                    end = os.fstat(fd).st_size
                    for offset, length in pieces:
                        if offset < end:
                            written = min(length, end - offset)
                            self._objects.record_write(file_id, offset, written, size)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    async def _receive_pieces(
        self, connection: FramedConnection, fd: int, file_id: str, pieces: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """Write the pieces up to the first that fails: (status, bytes received)."""
        size, received = os.fstat(fd).st_size, 0
        for offset, length in pieces:
            with self._objects.store.intents.noted(Intent(file_id, offset, length, size, False)):
                try:
                    status, done, got = await self._receive(connection, fd, offset, length)
                except BaseException:
                    # The server stops. How far it came is not known: all that may be there.
                    written = min(length, os.fstat(fd).st_size - offset)
                    if written > 0:
                        self._objects.record_write(file_id, offset, written, size)
                    raise
                received += got
                if done:
                    self._objects.record_write(file_id, offset, done, size)
                    size = max(size, offset + done)
            if status:
                return status, received
        return 0, received

    async def _receive(
        self, connection: FramedConnection, fd: int, offset: int, count: int
    ) -> tuple[int, int, int]:
        """Bytes from the socket into the file: (status, bytes written, bytes received).

        What was received of a connection that broke is written as well.
        """
        buffer = self._buffers.pop() if self._buffers else bytearray(PIECE)
        view = memoryview(buffer)
        done = 0
        try:
            while done < count:
                wanted = min(PIECE, count - done)
                filled = 0
                try:
                    while filled < wanted:
                        filled += await connection.recv_into(view[filled:wanted])
                except ConnectionBroken:
                    return await self._end_broken(fd, view[:filled], offset, done)
                try:
                    await self._pwrite(fd, view[:wanted], offset + done)
                except OSError as exc:
                    return status_of(exc), done, done + wanted
                done += wanted
            return 0, done, done
        finally:
            view.release()
            if len(self._buffers) < 8:
                self._buffers.append(buffer)

    async def _end_broken(
        self, fd: int, rest: memoryview, offset: int, done: int
    ) -> tuple[int, int, int]:
        """The connection broke: nobody will hear an answer, sending it tells the caller so."""
        try:
            await self._pwrite(fd, rest, offset + done)
        except OSError as exc:
            return status_of(exc), done, done + len(rest)
        return errno.EIO, done + len(rest), done + len(rest)

    async def _pwrite(self, fd: int, data: memoryview, offset: int) -> None:
        """Into the page cache from here, which costs less than a thread; but when the kernel
        makes writers wait for the disk, in a thread."""
        start = time.monotonic()
        if not self._pace.is_quick(start):
            await trio.to_thread.run_sync(pwrite_all, fd, data, offset)
            return
        pwrite_all(fd, data, offset)
        self._pace.waited(start, time.monotonic())

    async def truncate(self, connection: FramedConnection, length: int) -> None:
        """A TRUNCATE_OBJECT whose body has *length* bytes."""
        if not 1 <= length <= HEAD_MAX:
            raise ProtocolError(f"a TRUNCATE_OBJECT of {length} bytes")
        head = structs.decode(names.TruncateObject, await connection.recv_exactly(length))
        status = 0
        try:
            if not 0 <= head.size <= FILE_SIZE_MAX:
                raise fail(errno.EFBIG)
            self._check(head.file_id, head.view)
            self._objects.truncate(head.file_id, head.size)
        except StatusError as exc:
            status = exc.errno or errno.EIO
        await connection.send(pack_response(status=status))

    def _check(self, file_id: str, view: int) -> None:
        """May the object be changed? StatusError NOT_PRIMARY, 22, 2."""
        if view != self._view:
            raise StatusError(names.NOT_PRIMARY)
        self._objects.locate(file_id)
        if not self._reads.writable_object(file_id):
            self._objects.stat(file_id)
            if self._reads.is_hidden(file_id):
                raise fail(errno.ENOENT, "garbage")
            raise fail(errno.EINVAL, "not an object that may be changed in place")

    async def _refuse(self, connection: FramedConnection, rest: int, status: int) -> None:
        if rest > DISCARD_MAX:
            await connection.send(pack_response(status=status))
            await connection.linger()
            raise ConnectionBroken("a refused write was too long to be read")
        await connection.discard(rest)
        await connection.send(pack_response(status=status))
