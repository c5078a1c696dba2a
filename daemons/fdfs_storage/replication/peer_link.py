"""The connection on which one peer is sent our changes: requests out, statuses in, in order."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from typing import TYPE_CHECKING

import trio

from fdfs_storage.cluster.tracker_link import connect
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import ConnectionBroken, DeadlineExceeded, ProtocolError, StatusError
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.header import HEADER_SIZE, RESPONSE, pack_response, unpack_header_from
from fdfsfuse.proto.sync import Hello, HelloAnswer, SyncCommand
from fdfsfuse.server.connection import in_page_cache

if TYPE_CHECKING:
    from fdfsfuse.client.link import Link
    from fdfsfuse.core.config import StorageConfig

_BODY_MAX = 1 << 16
_RECEIVE = 64 << 10
_SENDFILE = 1 << 20
_LARGE = 2 << 20
_TURN_S = 0.05
_OK = pack_response()
_DONE = (0, b"")
_KERNEL_TAKES = 8 << 20
"""More than the kernel buffers for one connection."""


class PeerLink:
    """A connection over which we have introduced ourselves.

    One task sends and one receives.

    Attributes:
        hello: what a storage of our own kind answered, None for a stock one: that takes one
            request at a time.
        progress_at: trio time at which the peer last took or sent bytes. That the kernel took
            some says nothing: it also does when the peer's machine is gone.
    """

    def __init__(self, link: Link, hello: HelloAnswer | None, timeout_s: float) -> None:
        self.hello = hello
        self.progress_at = trio.current_time()
        self._link = link
        self._sock = link.sock
        self._timeout_s = timeout_s
        self._data = b""
        self._drained = False

    @classmethod
    async def open(cls, server: ServerAddress, config: StorageConfig, own_id: str) -> PeerLink:
        """Connect to a peer. Raises one of `fdfsfuse.client.link.PROBLEMS`."""
        link = await connect(server, config)
        try:
            answer: HelloAnswer | None = None
            try:
                hello = Hello(sync.VERSION, config.group_name, own_id)
                body = await link.request(SyncCommand.HELLO, structs.encode(hello))
                answer = structs.decode(HelloAnswer, body)
            except StatusError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                link.close()
                link = await connect(server, config)
                await link.request(SyncCommand.REPORT_SERVER_ID, sync.encode_server_id(own_id))
            return cls(link, answer, config.network_timeout_s)
        except BaseException:
            link.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    # --- sending ------------------------------------------------------------------------------

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of *data* as the kernel takes now. Raises ConnectionBroken."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._broken(exc) from exc

    async def send(self, data: bytes | bytearray | memoryview, *, more: bool = False) -> None:
        """Send all of *data*; *more* follows at once. Raises ConnectionBroken."""
        view = memoryview(data)
        flags = socket.MSG_MORE if more else 0
        while view:
            try:
                view = view[self._sock.send(view, flags) :]
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as exc:
                raise self._broken(exc) from exc

    async def send_file(self, fd: int, offset: int, count: int, *, before: int = 0) -> None:
        """Send bytes of a file; what is much, or has to come from the disk, is sent in a thread.

        Args:
            before: bytes of the same request that were sent before these.

        Raises:
            ConnectionBroken: also when the file ends early, as what was announced cannot follow.
            OSError: EIO, the file cannot be read; the connection cannot be used on.
        """
        taken, end = offset - before + _KERNEL_TAKES, offset + count
        while end - offset > _LARGE:
            try:
                sent = await trio.to_thread.run_sync(self._send_for_a_while, fd, offset, end)
            except OSError as exc:
                if exc.errno == errno.EIO:
                    raise
                raise self._broken(exc) from exc
            if not sent:
                await self._wait_writable()
            offset += sent
            if offset > taken:
                self.progress_at = trio.current_time()
        probe = [bytearray(1)]
        out = self._sock.fileno()
        while offset < end:
            piece = min(_SENDFILE, end - offset)
            try:
                if in_page_cache(fd, offset, piece, probe):
                    sent = os.sendfile(out, fd, offset, piece)
                else:
                    sent = await trio.to_thread.run_sync(os.sendfile, out, fd, offset, piece)
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as exc:
                if exc.errno == errno.EIO:
                    raise
                raise self._broken(exc) from exc
            if not sent:
                raise ConnectionBroken("a file became shorter while it was sent")
            offset += sent
            if offset > taken:
                self.progress_at = trio.current_time()
            # It took as long as some requests of clients do.
            await trio.lowlevel.checkpoint()

    def _send_for_a_while(self, fd: int, offset: int, end: int) -> int:
        """Send bytes of a file, for a moment if the peer takes them; how many. In a thread.

        A turn of the loop each time that the kernel takes more would cost as much as the sending.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        start, now = offset, time.monotonic()
        until = now + _TURN_S
        while offset < end and now < until:
            try:
                sent = os.sendfile(self._sock.fileno(), fd, offset, end - offset)
            except BlockingIOError:
                poll.poll((until - now) * 1000)
            else:
                if not sent:
                    raise ConnectionBroken("a file became shorter while it was sent")
                offset += sent
            now = time.monotonic()
        return offset - start

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self._timeout_s):
            await trio.lowlevel.wait_writable(self._sock)
            self.progress_at = trio.current_time()
            return
        raise DeadlineExceeded(f"took nothing for {self._timeout_s:g} s")

    # --- receiving ----------------------------------------------------------------------------

    async def receive(self) -> list[tuple[int, bytes]]:
        """Wait for answers; each is (status, body).

        Raises:
            ConnectionBroken: the peer closed.
            ProtocolError: it sent something else than answers.
        """
        while True:
            if self._drained:
                self._drained = False
                await trio.lowlevel.wait_readable(self._sock)
            answers = self.receive_nowait()
            if answers:
                return answers

    def receive_nowait(self) -> list[tuple[int, bytes]]:
        """The answers that have arrived. Raises as `receive`."""
        try:
            data = self._sock.recv(_RECEIVE)
        except BlockingIOError:
            self._drained = True
            return []
        except OSError as exc:
            raise self._broken(exc) from exc
        self._drained = len(data) < _RECEIVE
        if not data:
            raise ConnectionBroken("the peer closed the connection")
        self.progress_at = trio.current_time()
        self._data += data
        return self._take_answers()

    def _take_answers(self) -> list[tuple[int, bytes]]:
        data, pos = self._data, 0
        answers: list[tuple[int, bytes]] = []
        while len(data) - pos >= HEADER_SIZE:
            if data.startswith(_OK, pos):  # what nearly all are
                answers.append(_DONE)
                pos += HEADER_SIZE
                continue
            header = unpack_header_from(data, pos)
            if header.command != RESPONSE or header.length > _BODY_MAX:
                raise ProtocolError(f"not an answer: {header}")
            end = pos + HEADER_SIZE + header.length
            if end > len(data):
                break
            answers.append((header.status, data[pos + HEADER_SIZE : end]))
            pos = end
        self._data = data[pos:]
        return answers

    def _broken(self, exc: OSError) -> ConnectionBroken:
        return ConnectionBroken(f"the connection broke: {exc.strerror or exc}")
