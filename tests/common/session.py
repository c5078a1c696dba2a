"""A blocking names session for tests: one socket, no retries, every frame under control."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from fdfsfuse.proto import names, structs
from tests.common.plain import Address, exchange, recv_exactly

_HEADER = struct.Struct(">qBB")
_IDS = struct.Struct(">QQ")
_ID = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")

_T = TypeVar("_T")


def query_view(address: Address) -> names.View:
    """The view of the storage at *address*."""
    with socket.create_connection(address, 20) as sock:
        return structs.decode(names.View, exchange(sock, names.QUERY_VIEW))


class BlockingSession:
    """Opens a session, or with *session* and *token* takes one up again.

    It keeps nothing that it was told, and says so (version 1), so that nothing waits for it.

    Raises:
        PlainError: the storage refused. OSError, EOFError: the connection broke.
    """

    def __init__(
        self,
        address: Address,
        *,
        session: int = 0,
        token: bytes = b"",
        timeout_s: float = 60.0,
    ) -> None:
        self.address = address
        self.token = token or os.urandom(16)
        self.sock = socket.create_connection(address, timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = names.OpenSession(1, session, self.token, "test:/mnt:1")
        try:
            body = exchange(self.sock, names.OPEN_SESSION, names.encode(request))
        except BaseException:
            self.sock.close()
            raise
        self.opened = structs.decode(names.SessionOpened, body)
        self.next_id = 1
        self.waiting: dict[int, names.Request] = {}
        self.pushes: list[names.Push] = []

    def __enter__(self) -> BlockingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.sock.close()

    @property
    def number(self) -> int:
        return self.opened.session

    def take_up(self) -> None:
        """Connect again, to the same session, and send again what has no answer."""
        self.sock.close()
        again = BlockingSession(self.address, session=self.number, token=self.token)
        self.sock, self.opened = again.sock, again.opened
        for number, request in sorted(self.waiting.items()):
            self._send_frame(number, request)

    def send(self, request: names.Request) -> int:
        """Send a request and return its id."""
        number = self.next_id
        self.next_id += 1
        self.waiting[number] = request
        self._send_frame(number, request)
        return number

    def _send_frame(self, number: int, request: names.Request) -> None:
        done_below = min(self.waiting, default=number)
        body = _IDS.pack(number, done_below) + names.encode(request)
        self.sock.sendall(_HEADER.pack(len(body), names.REQUEST, 0) + body)

    def receive(self) -> tuple[int, names.Request, object]:
        """The next answer: id, request and the answer struct or an OSError. Keeps pushes aside."""
        while True:
            length, command, status = _HEADER.unpack(recv_exactly(self.sock, _HEADER.size))
            body = recv_exactly(self.sock, length)
            number = _ID.unpack_from(body)[0]
            if command == names.PUSH:
                self.pushes.append(names.decode_push(body[_ID.size :]))
                continue
            assert command == names.ANSWER, command
            request = self.waiting.pop(number)
            if status:
                return number, request, OSError(status, f"{os.strerror(status)}: {request}")
            return number, request, names.decode_answer(type(request), body[_ID.size :])

    def call(self, request: names.Request, answer: type[_T]) -> _T:
        """Send a request and wait for its answer. Raises OSError with the status."""
        number = self.send(request)
        while True:
            got, _, result = self.receive()
            if got == number:
                break
        if isinstance(result, OSError):
            raise result
        assert isinstance(result, answer), result
        return result

    def call_many(
        self, requests: Iterable[names.Request], window: int = 256
    ) -> Iterator[tuple[names.Request, object]]:
        """Keep *window* requests in flight; yields (request, answer or OSError) as they come."""
        pending = 0
        for request in requests:
            self.send(request)
            pending += 1
            if pending >= window:
                yield self.receive()[1:]
                pending -= 1
        for _ in range(pending):
            yield self.receive()[1:]

    # --- shorthands -----------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, *, kind: int = stat.S_IFREG, mode: int = 0o644
    ) -> names.Attr:
        """Create a file, or another *kind* of inode."""
        request = names.Create(parent, name, kind | mode, 0, 0, time.time_ns())
        return self.call(request, names.Attr)

    def mkdir(self, parent: int, name: bytes) -> names.Attr:
        return self.create(parent, name, kind=stat.S_IFDIR, mode=0o755)

    def store(self, ino: int, data: bytes) -> names.Attr:
        """Make *data* the content of a file."""
        return self.call(names.StoreContent(ino, data, time.time_ns()), names.Attr)

    def lookup(self, parent: int, name: bytes) -> names.Attr:
        return self.call(names.Lookup(parent, name), names.Attr)

    def remove(self, parent: int, name: bytes, *, directory: bool = False) -> names.Attr:
        return self.call(names.Remove(parent, name, directory, time.time_ns()), names.Attr)

    def read_dir(self, ino: int) -> list[names.DirEntry]:
        """All entries of a directory."""
        entries: list[names.DirEntry] = []
        while True:
            cookie = entries[-1].cookie if entries else 0
            listing = self.call(names.ReadDir(ino, cookie, names.LIST_MAX), names.Listing)
            entries += listing.entries
            if listing.end:
                return entries
            assert listing.entries, "a listing that is not at its end has entries"

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return self.call(names.ListXattrs(ino), names.Xattrs).xattrs

    def read(self, ino: int) -> bytes:
        """The content of a file of at most SMALL_CONTENT_MAX bytes."""
        opened = self.call(names.Open(ino, names.SMALL_CONTENT_MAX), names.Opened)
        if opened.data is None:
            assert opened.attr.size == 0, opened
            return b""
        return opened.data


def write_object(address: Address, file_id: str, view: int, offset: int, data: bytes) -> None:
    """WRITE_OBJECT on a connection of its own. Raises PlainError."""
    head = names.encode(names.WriteObject(file_id, view, offset, len(data)))
    with socket.create_connection(address, 20) as sock:
        exchange(sock, names.WRITE_OBJECT, _LENGTH.pack(len(head)) + head + data)


def truncate_object(address: Address, file_id: str, view: int, size: int) -> None:
    """TRUNCATE_OBJECT on a connection of its own. Raises PlainError."""
    body = names.encode(names.TruncateObject(file_id, view, size))
    with socket.create_connection(address, 20) as sock:
        exchange(sock, names.TRUNCATE_OBJECT, body)
