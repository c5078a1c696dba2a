"""A C storage for tests, played from protocol/cluster.md alone.

It shares no code with fdfsfuse, so that a mistake in our codec cannot hide in the tests. What it
sends has garbage behind the NUL of each text field, as C servers do.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from types import TracebackType

from tests.common.plain import PlainError, exchange, recv_exactly

_HEADER = struct.Struct(">qBB")
_JOIN = struct.Struct(">17s6q8sbb16s46sq")
Address = tuple[str, int]


def field(text: str, size: int) -> bytes:
    """A text field as C servers send it."""
    return (text.encode() + b"\0" + b"\xa5garbage" * size)[:size]


def brief(status: int, address: Address) -> bytes:
    """67 bytes about the storage at *address*."""
    ip, port = address
    return struct.pack(">bi", status, port) + field(ip, 16) + field(ip, 46)


def listed(answer: bytes) -> dict[str, int]:
    """Status by storage id, of an answer to 83 or 84 that has a list."""
    if not answer or not answer[0] & 4:
        return {}
    start = 1 + 67 * bool(answer[0] & 1) + 67 * bool(answer[0] & 2)
    records = [answer[at : at + 67] for at in range(start, len(answer), 67)]
    return {record[5:21].split(b"\0")[0].decode(): record[0] for record in records}


class StockStorage:
    """A member of group1 with one store path of 8 x 8 sub directories.

    Attributes:
        requests: (command, status, body) of all that peers sent, in order.
        files: what they sent, by name.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.requests: list[tuple[int, int, bytes]] = []
        self.files: dict[str, bytes] = {}
        self._listener = socket.create_server(address)
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> StockStorage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def connect(self, address: Address) -> socket.socket:
        """A connection from this storage's address."""
        sock = socket.create_connection(address, 60, (self.address[0], 0))
        self._sockets.append(sock)
        return sock

    def join(self, tracker: Address, *, new: bool) -> socket.socket:
        """JOIN; the connection that reports are to be sent on."""
        sock = self.connect(tracker)
        now = int(time.time())
        ip, port = tracker
        head = _JOIN.pack(
            field("group1", 17),
            *(self.address[1], 1, 8, 10, now, now),
            b"6.16.1\0\0",
            int(new),
            0 if new else 5,
            bytes(16),
            field(ip, 46),
            1,
        )
        exchange(sock, 81, head + f"{ip}:{port}\n".encode())
        return sock

    # --- as a server --------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), sock:
            while True:
                length, command, flags = _HEADER.unpack(recv_exactly(sock, _HEADER.size))
                body = recv_exactly(sock, length)
                self.requests.append((command, flags, body))
                try:
                    answer, status = self._answer(command, body), 0
                except PlainError as exc:
                    answer, status = b"", exc.status
                sock.sendall(_HEADER.pack(len(answer), 100, status) + answer)
                if status == errno.EINVAL:
                    return

    def _answer(self, command: int, body: bytes) -> bytes:
        if command in (9, 19, 111):
            return b""
        if command in (16, 18):
            (length,) = struct.unpack_from(">q", body)
            self.files[body[36 : 36 + length].decode()] = body[36 + length :]
            return b""
        if command == 17:
            if self.files.pop(body[20:].decode(), None) is None:
                raise PlainError(command, errno.ENOENT)
            return b""
        raise PlainError(command, errno.EINVAL)
