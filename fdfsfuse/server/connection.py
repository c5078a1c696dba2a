"""One client's connection, as a daemon sees it: packets in, packets out.

Cost is what shapes this module: a request takes one ``recv`` for header and body together, one
``send``, and a wait in between. There is no cancel scope, task or log line per request; timeouts
are kept by the server's watchdog (see `fdfsfuse.server.tcp`), which looks at the ``waiting since``
stamps here once a second and shuts a stuck socket down.

Theory of operation: bytes arrive in ``_data`` and are used up to ``_pos``; what arrived behind a
request is the start of the next one, so pipelined requests are answered in order. Reading and
sending are independent: one task may read while another sends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
from typing import TYPE_CHECKING

import trio

from fdfsfuse.errors import ConnectionBroken
from fdfsfuse.proto.header import HEADER_SIZE, Header, unpack_header_from

if TYPE_CHECKING:
    from fdfsfuse.server.hub import Hub

RECV_SIZE = 16 * 1024
"""Bytes asked for by one recv: small requests (a 4 KiB upload) arrive whole."""
SENDFILE_CHUNK = 1 << 20
_PROBE = getattr(os, "RWF_NOWAIT", 0)
_MAX_EAGER = 16
_LOW_WATER_MIN = 32 * 1024


class FramedConnection:
    """A non-blocking socket that carries packets.

    The server makes and closes it. At most one task reads and at most one sends at a time.

    Attributes:
        sock: the raw socket (non-blocking).
        peer_ip: the client's address as text, without a zone and never IPv4-mapped.
        requests: packet headers received so far.
        storage_id: the storage that sends its changes here, as it said (9, 150); '' for clients.
        is_own_kind: that storage is one of ours (150).
        hub: can watch the connection for a task that keeps it; set by the server.
    """

    __slots__ = (
        "_data",
        "_eager",
        "_fd",
        "_pos",
        "_used",
        "hub",
        "idle",
        "is_own_kind",
        "last_pending",
        "parked",
        "peer_ip",
        "reading_since",
        "recv_size",
        "requests",
        "sending_since",
        "sock",
        "storage_id",
    )

    hub: Hub

    def __init__(self, sock: socket.socket, peer_ip: str = "") -> None:
        sock.setblocking(False)
        self.sock = sock
        self.peer_ip = peer_ip
        self.requests = 0
        self.storage_id = ""
        self.is_own_kind = False
        self.recv_size = RECV_SIZE
        """Bytes asked for when a packet is to begin."""
        self.idle = False
        """True while the connection waits for a request and none has begun."""
        self.parked = False
        """True when `recv_header` left the waiting to the server."""
        self.reading_since = 0.0
        """trio time since when bytes are overdue; 0.0 while none are."""
        self.last_pending = 0
        """For the watchdog: what `pending` said when it last looked."""
        self.sending_since = 0.0
        """trio time since when the peer has taken no bytes of an answer; 0.0 while it does."""
        self._fd = sock.fileno()
        self._data = b""
        self._pos = 0
        self._used = 0
        self._eager = 0

    # --- receiving --------------------------------------------------------------------------

    async def recv_header(self, *, wait: bool = True) -> Header | None:
        """The next packet's header, or None when the peer closed between packets.

        Waits without limit, except for the first packet of a connection and for the rest of a
        header that has begun: there the server's network timeout ends the connection. With *wait*
        False it is None as well when nothing of a header is there yet; the handler is to return
        then, and is called again when there is.

        Raises:
            ConnectionBroken: the connection ended inside a header.
            ProtocolError: the length field is negative.
        """
        pos = self._pos
        if len(self._data) - pos < HEADER_SIZE:
            if not await self._fill_header(wait):
                return None
            pos = self._pos
        self._pos = pos + HEADER_SIZE
        self.requests += 1
        return unpack_header_from(self._data, pos)

    def next_whole(self) -> Header | None:
        """The next packet's header if the packet has arrived whole already; it stays the next.

        Raises ProtocolError: the length field is negative.
        """
        data, pos = self._data, self._pos
        if len(data) - pos < HEADER_SIZE:
            return None
        header = unpack_header_from(data, pos)
        return header if header.length <= len(data) - pos - HEADER_SIZE else None

    async def recv_exactly(self, count: int) -> bytes:
        """Exactly *count* bytes. The caller has checked that *count* is not too much.

        Raises:
            ConnectionBroken: the connection ended before, or the network timeout passed.
        """
        pos = self._pos
        end = pos + count
        if end <= len(self._data):
            self._pos = end
            return self._data[pos:end]
        body = bytearray(count)
        await self.recv_into_exactly(memoryview(body))
        return bytes(body)

    async def recv_into_exactly(self, view: memoryview) -> None:
        """Fill *view*. Raises ConnectionBroken as `recv_exactly` does.

        For a large view the kernel is asked to wake us only when much has arrived: a wake-up
        costs as much as copying 100 KiB. The watchdog notices if bytes trickle in meanwhile.
        """
        filled = await self.recv_into(view)
        if len(view) - filled < _LOW_WATER_MIN:
            while filled < len(view):
                filled += await self.recv_into(view[filled:])
            return
        try:
            while filled < len(view):
                self._set_low_water(len(view) - filled)
                filled += await self.recv_into(view[filled:])
        finally:
            self._set_low_water(1)

    def _set_low_water(self, count: int) -> None:
        """Count as readable only when *count* bytes (or the end) have arrived."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        except OSError:
            pass  # the peer is gone, which the next recv tells better

    def pending(self) -> int:
        """Bytes in the kernel's receive buffer."""
        answer = fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    async def recv_into(self, view: memoryview) -> int:
        """Put 1 or more bytes of a body into *view* (not empty) and return how many.

        Raises:
            ConnectionBroken: the connection ended, or the network timeout passed.
        """
        pos = self._pos
        buffered = len(self._data) - pos
        if buffered:
            count = min(buffered, len(view))
            view[:count] = self._data[pos : pos + count]
            self._pos = pos + count
            return count
        while True:
            try:
                count = self.sock.recv_into(view)
            except BlockingIOError:
                await self._wait_for_bytes()
            except OSError as exc:
                raise ConnectionBroken(f"{self.peer_ip}: {exc.strerror}") from exc
            else:
                if not count:
                    raise ConnectionBroken(f"{self.peer_ip} closed in the middle of a request")
                # A fast sender must not keep the loop from serving others.
                self._eager += 1
                if self._eager > _MAX_EAGER:
                    self._eager = 0
                    await trio.lowlevel.checkpoint()
                self._used += count
                return count

    def received(self) -> int:
        """Bytes used so far: tells how much of a body a handler has read."""
        return self._used + self._pos

    def buffered(self) -> int:
        """Bytes received and not used yet."""
        return len(self._data) - self._pos

    async def discard(self, count: int) -> None:
        """Read *count* bytes and forget them."""
        scratch = memoryview(bytearray(min(count, 1 << 16)))
        while count:
            count -= await self.recv_into(scratch[:count])

    async def _fill_header(self, wait: bool) -> bool:
        """Receive until a whole header is buffered; False when none has begun."""
        rest = self._data[self._pos :]
        self._used += self._pos
        self._data, self._pos = rest, 0
        while len(rest) < HEADER_SIZE:
            # Give way now and then even if requests keep coming without a wait.
            self._eager += 1
            if self._eager > _MAX_EAGER:
                self._eager = 0
                await trio.lowlevel.checkpoint()
            try:
                chunk = self.sock.recv(self.recv_size)
            except BlockingIOError:
                self._eager = 0
                if not rest and not wait:
                    self.parked = True
                    return False
                if rest or not self.requests:
                    self.idle = not rest
                    await self._wait_for_bytes()
                else:
                    self.idle = True
                    await trio.lowlevel.wait_readable(self._fd)
                self.idle = False
                continue
            except OSError as exc:
                raise ConnectionBroken(f"{self.peer_ip}: {exc.strerror}") from exc
            if not chunk:
                if rest:
                    raise ConnectionBroken(f"{self.peer_ip} closed in the middle of a header")
                return False
            self._data = rest = rest + chunk if rest else chunk
        return True

    def put_back(self, data: bytes) -> None:
        """Make *data* the next bytes to be received; nothing else may be buffered."""
        self._used += self._pos
        self._data, self._pos = data, 0

    def take_buffered(self) -> bytes:
        """What has been received and not used, for a caller that goes on by itself."""
        data = self._data[self._pos :]
        self._used += len(self._data)
        self._data, self._pos = b"", 0
        return data

    async def _wait_for_bytes(self) -> None:
        self.reading_since = trio.current_time()
        try:
            await trio.lowlevel.wait_readable(self._fd)
        finally:
            self.reading_since = 0.0

    # --- sending ----------------------------------------------------------------------------

    async def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """Send all of *data*; returns when the kernel has it. *flags* as for send(2).

        Raises:
            ConnectionBroken: the peer is gone, or took nothing for the network timeout.
        """
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise ConnectionBroken(f"{self.peer_ip}: {exc.strerror}") from exc
        if sent != len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            await self.wait_writable()
            try:
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                raise ConnectionBroken(f"{self.peer_ip}: {exc.strerror}") from exc

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send *count* bytes of the file *fd* from *offset* without copying them to Python.

        What the page cache holds is sent from here; what the disk has to fetch, in a thread.

        Raises:
            ConnectionBroken: the peer is gone, or the file ended early (then the connection is
                of no use either: the announced length cannot be kept).
        """
        probe = [bytearray(1)]
        while count:
            chunk = min(count, SENDFILE_CHUNK)
            try:
                if in_page_cache(fd, offset, chunk, probe):
                    sent = os.sendfile(self._fd, fd, offset, chunk)
                else:
                    sent = await trio.to_thread.run_sync(os.sendfile, self._fd, fd, offset, chunk)
            except BlockingIOError:
                await self.wait_writable()
                continue
            except OSError as exc:
                raise ConnectionBroken(f"sending to {self.peer_ip}: {exc.strerror}") from exc
            if not sent:
                raise ConnectionBroken("a file became shorter while it was sent")
            offset += sent
            count -= sent
            self._eager += 1
            if self._eager > _MAX_EAGER:
                self._eager = 0
                await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        """Wait until the peer takes bytes; the network timeout applies."""
        self.sending_since = trio.current_time()
        try:
            await trio.lowlevel.wait_writable(self._fd)
        finally:
            self.sending_since = 0.0

    # --- ending -----------------------------------------------------------------------------

    async def linger(self, timeout_s: float = 1.0, limit: int = 64 << 20) -> None:
        """End the connection so that an answer already sent arrives.

        Closing a socket with unread bytes resets it, and a reset destroys the answer on its way.
        So: say that we are done, then read and forget, for *timeout_s* or *limit* bytes.
        """
        self._data, self._pos = b"", 0
        with trio.move_on_after(timeout_s):
            try:
                self.sock.shutdown(socket.SHUT_WR)
                scratch = memoryview(bytearray(1 << 16))
                while limit > 0:
                    limit -= await self.recv_into(scratch)
            except (ConnectionBroken, OSError):
                pass

    def shutdown(self) -> None:
        """End both directions at once; whoever waits on the connection sees it end."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket. Only the server calls this, when no task uses it any more."""
        self.sock.close()


def in_page_cache(fd: int, offset: int, count: int, probe: list[bytearray]) -> bool:
    """True when reading these bytes will (most likely) not wait for the disk.

    Looks at the first and the last page; the kernel's read-ahead fills what is between.
    """
    if not _PROBE:
        return True
    try:
        os.preadv(fd, probe, offset, _PROBE)
        if count > 4096:
            os.preadv(fd, probe, offset + count - 1, _PROBE)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the file system cannot tell (EOPNOTSUPP)
    return True
