"""Answers to download requests (14), protocol/wire.md section 4."""

from __future__ import annotations

import errno
import os
import socket
import stat

import trio

from fdfs_storage.files import status_of
from fdfs_storage.serving.small_reads import SmallReads
from fdfs_storage.store import Store
from fdfs_storage.transfer import INLINE_MAX
from fdfs_storage.trunk import SlotPlace
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto.fileid import Location, UsualFields
from fdfsfuse.proto.header import RESPONSE, pack_header
from fdfsfuse.proto.storage import RANGE_SIZE, Download, decode_range
from fdfsfuse.proto.trunk import is_trunk_name
from fdfsfuse.server.connection import FramedConnection

# Without O_NONBLOCK opening a fifo that somebody put there would wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Downloads:
    """The handler over one store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group
        self._usual = UsualFields(group, store.path_count)
        self._reads = [SmallReads() for _ in range(store.path_count)]

    async def download(self, connection: FramedConnection, body: bytes) -> None:
        """Answer with a range of an object.

        Small ranges are read and sent with their header in one call each; of larger ones the
        kernel sends the pages itself.

        Raises:
            ProtocolError, StatusError: nothing has been sent yet.
            ConnectionBroken: the connection cannot go on.
        """
        location, offset, length = self._begin(body)
        if is_trunk_name(location) and (slot := self._store.slot(location)) is not None:
            self._count_success(await _send_slot(connection, slot, offset, length))
            return
        fd = self._open(location)
        try:
            count = _count(os.fstat(fd), offset, length)
            if count <= INLINE_MAX:
                content = await self._read(location, fd, count, offset)
                await connection.send(pack_header(count, RESPONSE) + content)
            else:
                await connection.send(pack_header(count, RESPONSE), socket.MSG_MORE)
                await connection.send_file(fd, offset, count)
        finally:
            os.close(fd)
        self._count_success(count)

    async def _read(
        self, location: Location, fd: int, count: int, offset: int
    ) -> bytes | bytearray:
        """A small range of a file; read in a thread if the disk has to fetch some of it."""
        try:
            content = self._reads[location.path_index].read(fd, count, offset)
            if content is None:
                content = await trio.to_thread.run_sync(os.pread, fd, count, offset)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        if len(content) != count:
            raise ConnectionBroken("a file became shorter while it was read")
        return content

    def download_small(self, body: bytes, _flags: int) -> bytes | None:
        """The response, if it is small and there at once, or soon; None: that is for `download`."""
        location, offset, length = self._begin(body)
        content = None if is_trunk_name(location) else self._read_soon(location, offset, length)
        if content is None:
            self._store.counters.total_download_count -= 1  # `download` will count it
            return None
        count = len(content)
        self._count_success(count)
        return pack_header(count, RESPONSE) + content

    def _read_soon(self, location: Location, offset: int, length: int) -> bytes | bytearray | None:
        fd = self._open(location)
        try:
            # Much cheaper than fstat. What is no file with such a range, `download` sees to.
            count = os.lseek(fd, 0, os.SEEK_END) - offset
            if 0 < length < count:
                count = length
            if not 0 < count <= INLINE_MAX:
                return None
            return self._reads[location.path_index].read(fd, count, offset)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _begin(self, body: bytes) -> tuple[Location, int, int]:
        """The file, offset and length of a `Download`; the usual ones need not be decoded whole."""
        offset, length = decode_range(body)
        location = self._usual.locate(body, RANGE_SIZE)
        if location is None:
            request = Download.decode(body)
            if request.group != self._group:
                raise ProtocolError(f"group {request.group!r} is not ours")
            location = self._locate(request.name)
        self._store.counters.total_download_count += 1
        return location, offset, length

    def _open(self, location: Location) -> int:
        try:
            return os.open(self._store.path(location), _OPEN_FLAGS)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _count_success(self, count: int) -> None:
        counters = self._store.counters
        counters.success_download_count += 1
        counters.total_download_bytes += count
        counters.success_download_bytes += count

    def _locate(self, name: str) -> Location:
        try:
            return self._store.locate(name)
        except ProtocolError:
            # The reference finds a directory here, and so says 21. Nothing is opened by us.
            if name.endswith(("/.", "/..")):
                self._store.locate(name + "-")
                raise StatusError(errno.EISDIR) from None
            raise


async def _send_slot(
    connection: FramedConnection, slot: SlotPlace, offset: int, length: int
) -> int:
    """Answer with a range of a file inside a trunk file; returns how many bytes that were."""
    fd = slot.open()
    try:
        count = _count(slot.stat(), offset, length)
        await connection.send(pack_header(count, RESPONSE), socket.MSG_MORE)
        await connection.send_file(fd, slot.start + offset, count)
    finally:
        os.close(fd)
    return count


def _count(status: os.stat_result, offset: int, length: int) -> int:
    """How many bytes to deliver. Raises StatusError 21, 22."""
    if not stat.S_ISREG(status.st_mode):
        raise StatusError(errno.EISDIR)
    rest = status.st_size - offset
    if rest <= 0:
        raise StatusError(errno.EINVAL, "offset at or behind the end")
    return min(length or rest, rest)
