"""One connection over a blocking socket: a request, then its answer.

The counterpart of `fdfsfuse.client.connection`. Timeouts are left to the kernel (SO_RCVTIMEO,
SO_SNDTIMEO), which costs nothing per call: a small request is one send and one receive. As these
are set once, a wait ends every `_SLICE_S` to look at the time.

A connection is used by one thread at a time; how exchanges end: `fdfsfuse.client.base`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, cast

from fdfsfuse.client.address import Address
from fdfsfuse.client.answers import check_length
from fdfsfuse.client.base import BaseConnection
from fdfsfuse.client.plans.steps import SKIP, Ask, Open, Send
from fdfsfuse.client.sockets import FIRST_READ, first_read, set_options
from fdfsfuse.client.sources import CHUNK_SIZE, FileRange, Source
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    UsageError,
)
from fdfsfuse.proto.header import HEADER_SIZE, pack_header

_INLINE_SEND = 64 << 10
_SLICE_S = 1.0


Touch: TypeAlias = Callable[[int], float]
"""Called with the number of bytes sent since the last call; returns when to give up."""


class TimedOut(Exception):
    """The time that an exchange was given is over."""


def connect(address: Address, timeout_s: float) -> Connection:
    """Connect to *address*; each of the host's addresses is tried in turn.

    Raises:
        ConnectFailed: nobody answered there in time, or the name is unknown.
    """
    try:
        sock = socket.create_connection(address, max(timeout_s, 0.001))
    except OSError as exc:
        if isinstance(exc, TimeoutError):
            problem = f"no answer within {timeout_s:g} s"
        else:
            problem = exc.strerror or str(exc)
        raise ConnectFailed(f"cannot connect to {address}: {problem}") from exc
    try:
        set_options(sock)
        return Connection(sock, address)
    except OSError as exc:
        sock.close()
        raise ConnectFailed(f"cannot connect to {address}: {exc.strerror}") from exc


class Connection(BaseConnection):
    """See the module."""

    __slots__ = ("_due", "_rest", "_slice_s")

    def __init__(self, sock: socket.socket, address: Address) -> None:
        sock.settimeout(None)
        super().__init__(sock, address)
        self._slice_s = 0.0
        self._due = 0.0
        """The time.monotonic() at which an exchange ends with `TimedOut`."""
        self._rest = b""
        """What was received behind the header of an answer that `receive` receives."""

    # --- exchanges -------------------------------------------------------------------------------

    def ask(self, step: Ask, due: float) -> bytes:
        """Send a request and return the body of its answer.

        Raises:
            StatusError: the peer answered with a status.
            ConnectionBroken, ProtocolError, TimedOut: the connection is closed.
        """
        try:
            self._start()
            self._set_due(due)
            self._send(pack_header(len(step.head), step.command, step.flags) + step.head)
            self.sent = True
            return self._answer(step.max_answer)
        except BaseException as exc:
            self._broke_off(exc)
            raise

    def send(self, step: Send, due: float, touch: Touch) -> bytes:
        """`ask` with a long body; *touch* is called when bytes were sent."""
        try:
            self._start()
            self._set_due(due)
            front = pack_header(len(step.head) + step.size, step.command) + step.head
            self._send_body(front, step.source, step.size, touch)
            self.sent = True
            return self._answer(step.max_answer)
        except BaseException as exc:
            # After a status too: a storage that had not read the whole body takes the rest of it
            # for requests, whose answers would come on this connection (wire.md trap 3).
            self._broke_off(exc)
            self.close()
            raise

    def open(self, step: Open, due: float) -> int:
        """Send a request; the length of its answer's body, which `receive` receives."""
        try:
            self._start()
            self._set_due(due)
            self._send(pack_header(len(step.head), step.command) + step.head)
            self.sent = True
            length, self._rest = self._split(self._recv(FIRST_READ, HEADER_SIZE))
            return length
        except BaseException as exc:
            self._broke_off(exc)
            raise

    def receive(self, limit: int, due: float) -> bytes:
        """1 to *limit* bytes of a body."""
        if self._rest:
            data, self._rest = self._rest[:limit], self._rest[limit:]
            return data
        try:
            self._set_due(due)
            return self._recv(limit)
        except BaseException:
            self.close()
            raise

    # --- parts of exchanges ----------------------------------------------------------------------

    def _set_due(self, due: float) -> None:
        self._due = due
        left = due - time.monotonic()
        if left < _SLICE_S or self._slice_s != _SLICE_S:
            self._set_slice(left)

    def _set_slice(self, left: float) -> None:
        """Let the kernel wait for *left* seconds, but not for more than a slice."""
        if left <= 0:
            raise TimedOut
        self._slice_s = min(left, _SLICE_S)
        seconds = int(self._slice_s)
        value = struct.pack("ll", seconds, int((self._slice_s - seconds) * 1e6) or 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _waited(self) -> None:
        """A slice is over."""
        left = self._due - time.monotonic()
        if left < _SLICE_S:
            self._set_slice(left)

    def _send(self, data: bytes | memoryview) -> None:
        sock = self.sock
        try:
            sent = sock.send(data)
            if sent == len(data):
                return
        except BlockingIOError:
            sent = 0
            self._waited()
        except OSError as exc:
            raise self.broken(exc) from exc
        view = memoryview(data)[sent:]
        while view:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                self._waited()
            except OSError as exc:
                raise self.broken(exc) from exc

    def _recv(self, limit: int, least: int = 1) -> bytes:
        """Receive *least* bytes, or up to *limit* with each call that this takes."""
        data = b""
        while len(data) < least:
            try:
                more = self.sock.recv(limit)
            except BlockingIOError:
                self._waited()
            except OSError as exc:
                raise self.broken(exc) from exc
            else:
                if not more:
                    raise self.broken(None)
                self.answered = True
                data = data + more if data else more
        return data

    def _answer(self, limit: int) -> bytes:
        """Receive a whole answer of at most *limit* bytes."""
        length, rest = self._split(self._recv(first_read(limit), HEADER_SIZE))
        if length != len(rest):
            check_length(self.address, length, limit)
            rest = self._receive_rest(rest, length - len(rest))
        elif length > limit:
            check_length(self.address, length, limit)
        return b"" if limit == SKIP else rest

    def _receive_rest(self, start: bytes, missing: int) -> bytes:
        parts = [start]
        while missing:
            parts.append(self._recv(min(missing, CHUNK_SIZE)))
            missing -= len(parts[-1])
        return b"".join(parts)

    def _send_body(self, front: bytes, source: Source, size: int, touch: Touch) -> None:
        """Send *front* and the body; an answer that comes before all is sent ends it."""
        try:
            if isinstance(source, (bytes, bytearray, memoryview)):
                self._send_buffer(front, source, size, touch)
            elif isinstance(source, FileRange):
                self._send_file(front, source, size, touch)
            else:
                self._send_chunks(front, cast("Iterable[bytes]", source), size, touch)
        except ConnectionBroken:
            # The peer may have said why before it closed (wire.md trap 3).
            self.raise_early_answer()
            raise

    def _send_buffer(
        self, front: bytes, source: bytes | bytearray | memoryview, size: int, touch: Touch
    ) -> None:
        if size <= _INLINE_SEND:
            self._send(b"".join((front, source)))
            self._due = touch(size)
            return
        view = memoryview(source).cast("B")
        chunks = [view[start : start + CHUNK_SIZE] for start in range(0, size, CHUNK_SIZE)]
        self._send_chunks(front, chunks, size, touch)

    def _send_chunks(
        self,
        front: bytes,
        chunks: Iterable[bytes] | Sequence[memoryview],
        size: int,
        touch: Touch,
    ) -> None:
        self._send(front)
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise UsageError(f"the body has more than the {size} bytes announced")
            self._send(chunk)
            self._due = touch(len(chunk))
            if left and not self.alive():
                self.raise_early_answer()
        if left:
            raise UsageError(f"the body has only {size - left} of the {size} bytes announced")

    def _send_file(self, front: bytes, source: FileRange, size: int, touch: Touch) -> None:
        """The kernel moves the bytes."""
        self._send(front)
        position, end = source.offset, source.offset + size
        while position < end:
            try:
                count = min(end - position, CHUNK_SIZE)
                sent = os.sendfile(self.sock.fileno(), source.fd, position, count)
            except BlockingIOError:
                self._waited()
                continue
            except OSError as exc:
                if exc.errno in (errno.EIO, errno.EBADF):
                    raise
                raise self.broken(exc) from exc
            if not sent:
                raise UsageError(
                    f"the file became shorter: {position - source.offset} of {size} bytes were read"
                )
            position += sent
            self._due = touch(sent)
            if position < end and not self.alive():
                self.raise_early_answer()
