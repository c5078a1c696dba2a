"""One connection to a tracker or storage: a request, then its answer, over a non-blocking socket.

Framing: protocol/wire.md section 1. Nothing is pipelined: a C storage answers only the first of two
requests written back to back (wire.md section 5, trap 2).

Each send and receive is tried on the socket first and waits for the kernel only when it would
block; a small request costs one send and its answer one or two receives.

A `Connection` is used by one task at a time; how exchanges end: `fdfsfuse.client.base`.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import trio
from trio.lowlevel import wait_readable, wait_writable

from fdfsfuse.client import directwait
from fdfsfuse.client.address import Address
from fdfsfuse.client.answers import answer_length, check_length, sent_too_much
from fdfsfuse.client.base import BaseConnection
from fdfsfuse.client.bodies import send_body
from fdfsfuse.client.directwait import DIRECT_S, Watch
from fdfsfuse.client.plans.steps import ANSWER_MAX, SKIP
from fdfsfuse.client.sockets import (
    CONNECT_TIMEOUT_S,
    FIRST_READ,
    first_read,
    set_options,
)
from fdfsfuse.client.sources import CHUNK_SIZE, Progress, Source
from fdfsfuse.errors import ConnectFailed, DeadlineExceeded
from fdfsfuse.proto.header import HEADER_SIZE, pack_header

_T = TypeVar("_T")

_YIELD_EVERY = 4 << 20


async def connect(address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> Connection:
    """Connect to *address*; each of the host's addresses is tried in turn within *timeout_s*.

    Raises:
        ConnectFailed: nobody answered there in time, or the name is unknown.
    """
    problem: str = f"no answer within {timeout_s:g} s"
    with trio.move_on_after(timeout_s):
        for family, target in await _resolve(address):
            try:
                sock = await _connect_socket(family, target)
                return Connection(sock, address, directwait.watch(sock.fileno()))
            except OSError as exc:
                problem = exc.strerror or str(exc)
    raise ConnectFailed(f"cannot connect to {address}: {problem}")


_Target: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]"


async def _resolve(address: Address) -> list[tuple[int, _Target]]:
    """Socket families and addresses of *address*; no thread when the host is a number."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address.host)
        except OSError:
            continue
        return [(family, (address.host, address.port))]
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectFailed(f"cannot find the host {address.host}: {exc.strerror or exc}") from exc
    return [(family, target) for family, _, _, _, target in found]


async def _connect_socket(family: int, target: _Target) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError:
            await wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
        set_options(sock)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection(BaseConnection):
    """See the module.

    Attributes:
        deadline: trio time at which exchanges end with DeadlineExceeded. A cancel scope would cost
            each of them as much as a system call; this costs only those that have to wait.
    """

    __slots__ = ("_watch", "deadline")

    def __init__(self, sock: socket.socket, address: Address, watch: Watch | None = None) -> None:
        super().__init__(sock, address)
        self.deadline = math.inf
        self._watch = watch

    def close(self) -> None:
        """Close the connection; may be called again."""
        self._close_watch()
        super().close()

    # --- whole exchanges -------------------------------------------------------------------------

    async def request(
        self, command: int, body: bytes = b"", *, max_answer: int = ANSWER_MAX, status: int = 0
    ) -> bytes:
        """Send a request and return the body of its answer.

        Args:
            max_answer: longest acceptable body; a longer one is a ProtocolError. `SKIP`: there
                should be none, an unexpected one (wire.md section 5, trap 5) is skipped.
            status: the header's last byte (flags of command 22).

        Raises:
            StatusError: the peer answered with a status.
            ConnectionBroken, ProtocolError: the connection is closed.
        """
        self._start()
        try:
            packet = pack_header(len(body), command, status) + body
            sent = self._send_nowait(packet)
            if sent != len(packet):
                await self._send_rest(memoryview(packet)[sent:])
            self.sent = True
            return await self._answer(max_answer)
        except BaseException as exc:
            self._broke_off(exc)
            raise

    async def command(self, command: int, body: bytes = b"") -> None:
        """`request` whose answer has no body."""
        await self.request(command, body, max_answer=SKIP)

    async def send_stream(
        self,
        command: int,
        head: bytes,
        source: Source,
        size: int,
        *,
        max_answer: int = ANSWER_MAX,
        progress: Progress | None = None,
    ) -> bytes:
        """Send a request of *head* and *size* bytes of *source*; return the answer's body.

        An answer that arrives while the body is being sent ends the sending.

        Raises:
            UsageError: *source* holds more or less than *size* bytes.
        """
        self._start()
        try:
            front = pack_header(len(head) + size, command) + head
            await send_body(self, front, source, size, progress)
            self.sent = True
            return await self._answer(max_answer)
        except BaseException as exc:
            # After a status too: a storage that had not read the whole body takes the rest of it
            # for requests, whose answers would come on this connection (wire.md trap 3).
            self._broke_off(exc)
            self.close()
            raise

    async def command_stream(self, command: int, head: bytes, source: Source, size: int) -> None:
        """`send_stream` whose answer has no body."""
        await self.send_stream(command, head, source, size, max_answer=SKIP)

    async def request_into(self, command: int, body: bytes, buffer: memoryview) -> int:
        """Send a request and receive its answer's body into *buffer*; return the body's length.

        A body longer than *buffer* is a ProtocolError.
        """
        self._start()
        try:
            await self.send_all(pack_header(len(body), command) + body)
            self.sent = True
            header = bytearray(HEADER_SIZE)
            await self._wait_readable()  # nothing can be there yet
            got = await self._recvmsg_into([header, buffer])
            self.answered = True
            while got < HEADER_SIZE:
                got += await self._recv_into(memoryview(header)[got:])
            length = answer_length(self.address, header)
            check_length(self.address, length, len(buffer))
            got -= HEADER_SIZE
            if got > length:
                raise sent_too_much(self.address)
            if got < length:
                await self._by_deadline(self._fill, buffer[got:length])
            return length
        except BaseException as exc:
            self._broke_off(exc)
            raise

    async def start_stream(
        self, command: int, body: bytes, end: Callable[[Connection], None] | None = None
    ) -> AnswerStream:
        """Send a request whose answer's body is read bit by bit.

        `AnswerStream.end` ends it, and calls *end* with this connection.
        """
        self._start()
        try:
            await self.send_all(pack_header(len(body), command) + body)
            self.sent = True
            await self._wait_readable()
            length, rest = self._split(await self._recv(FIRST_READ, HEADER_SIZE))
            return AnswerStream(self, length, rest, end)
        except BaseException as exc:
            self._broke_off(exc)
            raise

    # --- parts of exchanges ----------------------------------------------------------------------

    def detach(self) -> socket.socket:
        """Hand the non-blocking socket over to the caller; this object is unusable afterwards."""
        self.usable = False
        self._close_watch()
        sock = socket.socket(fileno=self.sock.detach())
        sock.setblocking(False)
        return sock

    def _send_nowait(self, data: bytes | memoryview) -> int:
        """Send as much as the kernel takes now; how many bytes."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self.broken(exc) from exc

    async def _send_rest(self, view: memoryview) -> None:
        while view:
            await self._by_deadline(wait_writable, self.sock)
            view = view[self._send_nowait(view) :]

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all of *data*. Raises ConnectionBroken, DeadlineExceeded."""
        sent = self._send_nowait(data)
        if sent != len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _answer(self, limit: int) -> bytes:
        """Receive a whole answer of at most *limit* bytes."""
        await self._wait_readable()  # nothing can be there yet
        length, rest = self._split(await self._recv(first_read(limit), HEADER_SIZE))
        if length > limit:
            check_length(self.address, length, limit)
        if len(rest) != length:
            buffer = bytearray(length)
            buffer[: len(rest)] = rest
            await self._fill(memoryview(buffer)[len(rest) :])
            rest = bytes(buffer)
        return b"" if limit == SKIP else rest

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def _wait_readable(self) -> None:
        if self._watch is None or not self._watch.wait(DIRECT_S):
            await self._by_deadline(wait_readable, self.sock)

    async def _by_deadline(self, wait: Callable[[_T], Awaitable[None]], what: _T) -> None:
        """Call *wait*. Raises DeadlineExceeded."""
        deadline = self.deadline
        if deadline == math.inf:
            await wait(what)
            return
        self.deadline = math.inf
        try:
            with trio.move_on_at(deadline):
                await wait(what)
                return
            raise DeadlineExceeded(f"{self.address} did not answer in time")
        finally:
            self.deadline = deadline

    async def _fill(self, view: memoryview) -> None:
        unyielded = 0
        while view:
            got = await self._recv_into(view)
            view = view[got:]
            unyielded += got
            if unyielded >= _YIELD_EVERY:
                unyielded = 0
                await trio.lowlevel.checkpoint()

    async def _recv(self, limit: int, least: int = 1) -> bytes:
        """Receive *least* bytes, or up to *limit* with each call that this takes."""
        data = b""
        while len(data) < least:
            try:
                more = self.sock.recv(limit)
            except BlockingIOError:
                await self._wait_readable()
            except OSError as exc:
                raise self.broken(exc) from exc
            else:
                if not more:
                    raise self.broken(None)
                self.answered = True
                data = data + more if data else more
        return data

    async def _recv_into(self, view: memoryview) -> int:
        while True:
            try:
                got = self.sock.recv_into(view)
            except BlockingIOError:
                await self._wait_readable()
            except OSError as exc:
                raise self.broken(exc) from exc
            else:
                if not got:
                    raise self.broken(None)
                return got

    async def _recvmsg_into(self, buffers: list[bytearray | memoryview]) -> int:
        while True:
            try:
                got = self.sock.recvmsg_into(buffers)[0]
            except BlockingIOError:
                await self._wait_readable()
            except OSError as exc:
                raise self.broken(exc) from exc
            else:
                if not got:
                    raise self.broken(None)
                return got


class AnswerStream:
    """The body of an answer, read bit by bit; ``remaining`` bytes of it are still unread."""

    __slots__ = ("_connection", "_end", "_start", "remaining")

    def __init__(
        self,
        connection: Connection,
        length: int,
        start: bytes,
        end: Callable[[Connection], None] | None = None,
    ) -> None:
        self._connection = connection
        self._start = start
        self._end = end
        self.remaining = length

    def end(self) -> None:
        """Stop reading; the connection is closed when the body was not read to its end."""
        if self.remaining:
            self._connection.close()
        if self._end is not None:
            end, self._end = self._end, None
            end(self._connection)

    async def receive_some(
        self, max_bytes: int = CHUNK_SIZE, deadline: float | None = None
    ) -> bytes:
        """1 to *max_bytes* further bytes, or b"" at the end.

        *deadline* is that of the connection from now on. Raises DeadlineExceeded.
        """
        if not self.remaining:
            return b""
        connection = self._connection
        if deadline is not None:
            connection.deadline = deadline
        limit = min(max_bytes, self.remaining)
        if self._start:
            data, self._start = self._start[:limit], self._start[limit:]
        else:
            try:
                data = await connection._recv(limit)
            except BaseException:
                connection.close()
                raise
        self.remaining -= len(data)
        return data
