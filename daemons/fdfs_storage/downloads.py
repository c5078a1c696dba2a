"""Answers to download requests (14), protocol/wire.md section 4."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time

import trio

from fdfs_storage.disk_pace import DiskPace
from fdfs_storage.files import status_of
from fdfs_storage.store import Store
from fdfs_storage.transfer import INLINE_MAX, read_cached
from fdfs_storage.trunk import SlotPlace
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto.fileid import Location, usual_location
from fdfsfuse.proto.header import (
    GROUP_NAME_SIZE,
    HEADER_SIZE,
    RESPONSE,
    pack_header,
    pack_header_into,
    pack_text,
)
from fdfsfuse.proto.storage import DOWNLOAD_HEAD_SIZE, RANGE_SIZE, Download, decode_range
from fdfsfuse.proto.trunk import is_trunk_name
from fdfsfuse.server.connection import FramedConnection

# Without O_NONBLOCK opening a fifo that somebody put there would wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_SLOW_READ_S = 0.0005
"""A hop to a thread, and handing the connection over for it, takes some 250 us of CPU."""


class Downloads:
    """The handler over one store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group
        self._group_field = pack_text(group, GROUP_NAME_SIZE)
        self._paces: dict[int, DiskPace] = {}
        """By the device of the file system."""

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
            status = os.fstat(fd)
            count = _count(status, offset, length)
            if count <= INLINE_MAX:
                await connection.send(await _read_small(fd, offset, count, status.st_dev))
            else:
                await connection.send(pack_header(count, RESPONSE), socket.MSG_MORE)
                await connection.send_file(fd, offset, count)
        finally:
            os.close(fd)
        self._count_success(count)

    def download_small(self, body: bytes, _flags: int) -> bytearray | None:
        """The response, if it is small and there at once, or soon; None: that is for `download`."""
        location, offset, length = self._begin(body)
        response = None if is_trunk_name(location) else self._read_soon(location, offset, length)
        if response is None:
            self._store.counters.total_download_count -= 1  # `download` will count it
        else:
            self._count_success(len(response) - HEADER_SIZE)
        return response

    def _read_soon(self, location: Location, offset: int, length: int) -> bytearray | None:
        """From the page cache, or from a disk that has been quick of late."""
        fd = self._open(location)
        try:
            status = os.fstat(fd)
            count = _count(status, offset, length)
            if count > INLINE_MAX:
                return None
            response, content = _new_response(count)
            got = read_cached(fd, content, offset, status.st_dev)
            if got != count:
                pace = self._paces.setdefault(status.st_dev, DiskPace(_SLOW_READ_S))
                start = time.monotonic()
                if not pace.is_quick(start):
                    return None
                got = os.preadv(fd, (content,), offset)
                pace.waited(start, time.monotonic())
            return response if got == count else None
        finally:
            os.close(fd)

    def _begin(self, body: bytes) -> tuple[Location, int, int]:
        """The file, offset and length of a `Download`; the usual ones need not be decoded whole."""
        offset, length = decode_range(body)
        location = None
        if body.startswith(self._group_field, RANGE_SIZE):
            location = usual_location(body, DOWNLOAD_HEAD_SIZE, self._store.path_count)
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


async def _read_small(fd: int, offset: int, count: int, device: int) -> bytearray:
    """A whole response; read in a thread if the disk has to fetch some of it."""
    response, content = _new_response(count)
    try:
        if read_cached(fd, content, offset, device) != count:
            got = await trio.to_thread.run_sync(os.preadv, fd, (content,), offset)
            if got != count:
                raise ConnectionBroken("a file became shorter while it was read")
    except OSError as exc:
        raise StatusError(status_of(exc)) from exc
    return response


def _new_response(count: int) -> tuple[bytearray, memoryview]:
    """A response of *count* bytes, and where they go in it."""
    response = bytearray(HEADER_SIZE + count)
    pack_header_into(response, count, RESPONSE)
    return response, memoryview(response)[HEADER_SIZE:]
