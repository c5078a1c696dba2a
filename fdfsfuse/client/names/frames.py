"""Taking the frames of a names session out of a socket and putting them in, without waiting."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from fcntl import ioctl
from typing import Final

import trio
from trio.lowlevel import wait_writable

from fdfsfuse.errors import ConnectionBroken, ProtocolError
from fdfsfuse.proto.header import HEADER_SIZE
from fdfsfuse.proto.names import FRAME_MAX

_READ_SIZE = 64 << 10
_HEADER = struct.Struct(">QBB")
_SIOCOUTQNSD: Final = 0x894B
"""Asks how many bytes a TCP socket has taken and not sent yet (linux/sockios.h)."""
_NO_BYTES: Final = bytes(4)
_JOIN_MAX = 32 << 10
"""A head is sent together with a body by one send() up to this size: it is copied for that."""


class FrameReader:
    """Receives from *sock* and calls ``dispatch(command, status, body)`` for each frame.

    It keeps what has arrived of an incomplete frame, so that any task may go on with it. The body
    of a frame that does not fit one read is received in its place, without further copies.
    """

    __slots__ = ("_dispatch", "_filled", "_head", "_large", "_rest", "_sock")

    def __init__(
        self, sock: socket.socket, dispatch: Callable[[int, int, bytes | bytearray], None]
    ) -> None:
        self._sock = sock
        self._dispatch = dispatch
        self._rest = b""
        self._large: bytearray | None = None
        self._filled = 0
        self._head = (0, 0)

    def receive_nowait(self) -> bool:
        """Receive once and dispatch what is complete. Returns whether more may have arrived.

        Raises:
            BlockingIOError: nothing has arrived.
            ConnectionBroken, ProtocolError: the connection cannot be used on.
        """
        try:
            if self._large is not None:
                self._receive_large(self._large)
                return True
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise ConnectionBroken(f"the connection broke: {exc.strerror}") from exc
        if not data:
            raise ConnectionBroken("the names primary closed the connection")
        self._split(self._rest + data if self._rest else data)
        return len(data) == _READ_SIZE

    def _split(self, data: bytes) -> None:
        position, end = 0, len(data)
        self._rest = b""
        while end - position >= HEADER_SIZE:
            length, command, status = _HEADER.unpack_from(data, position)
            if length > FRAME_MAX:
                raise ProtocolError(f"the names primary sent a frame of {length} bytes")
            start = position + HEADER_SIZE
            position = start + length
            if position > end:
                self._large = bytearray(length)
                self._filled = end - start
                self._large[: self._filled] = data[start:]
                self._head = (command, status)
                return
            self._dispatch(command, status, data[start:position])
        self._rest = data[position:]

    def _receive_large(self, large: bytearray) -> None:
        got = self._sock.recv_into(memoryview(large)[self._filled :])
        if not got:
            raise ConnectionBroken("the names primary closed the connection")
        self._filled += got
        if self._filled == len(large):
            self._large = None
            self._dispatch(*self._head, large)


class FrameWriter:
    """Sends frames to *sock*. What it does not take at once follows by itself, in order.

    Args:
        nursery: where the task runs that sends the rest.
        failed: called when the connection is of no more use, unless the writer was closed.
    """

    __slots__ = (
        "_backlog",
        "_closed",
        "_draining",
        "_failed",
        "_fd",
        "_nursery",
        "_sock",
        "_unsent",
    )

    def __init__(
        self, sock: socket.socket, nursery: trio.Nursery, failed: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._unsent = bytearray(_NO_BYTES)
        self._nursery = nursery
        self._failed = failed
        self._backlog: deque[memoryview] = deque()
        self._draining = False
        self._closed = False

    def write(self, head: bytes, body: bytes) -> None:
        """Send a frame behind all others; never waits."""
        if self._backlog:
            self._backlog += (memoryview(head), memoryview(body))
            return
        size = len(head) + len(body)
        try:
            if size <= _JOIN_MAX:
                sent = self._sock.send(head + body)
            else:
                sent = self._sock.sendmsg([head, body])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._failed()
            return
        if sent < size:
            if sent < len(head):
                self._backlog.append(memoryview(head)[sent:])
            self._backlog.append(memoryview(body)[max(0, sent - len(head)) :])
            if not self._draining:
                self._draining = True
                self._nursery.start_soon(self._drain)

    def all_sent(self) -> bool:
        """Whether all frames have left: the kernel drops the others when this process is killed.

        It holds small ones back while many before them are not acknowledged.
        """
        if self._backlog or self._closed:
            return False
        unsent = self._unsent
        try:
            ioctl(self._fd, _SIOCOUTQNSD, unsent)
        except OSError:
            return False
        return unsent == _NO_BYTES

    def close(self) -> None:
        """Send nothing more. The socket may be closed then."""
        self._closed = True
        self._backlog.clear()

    async def _drain(self) -> None:
        """Write the backlog as the peer takes it."""
        sock, backlog = self._sock, self._backlog
        try:
            while backlog:
                try:
                    await wait_writable(sock)
                except trio.ClosedResourceError:
                    continue  # closed, or somebody who reads was woken
                if not backlog:
                    break
                view = backlog[0]
                try:
                    sent = sock.send(view)
                except BlockingIOError:
                    continue
                if sent == len(view):
                    backlog.popleft()
                else:
                    backlog[0] = view[sent:]
        except OSError:
            if not self._closed:
                self._failed()
        self._draining = False
