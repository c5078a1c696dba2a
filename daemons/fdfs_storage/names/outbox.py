"""What is sent on a session's connection: answers and pushes, gathered and handed over together."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import trio

from fdfsfuse.proto import names
from fdfsfuse.proto.header import HEADER_SIZE, pack_header, pack_response

if TYPE_CHECKING:
    from fdfsfuse.server.connection import FramedConnection

_ANSWER_HEAD: Final = struct.Struct(">qBBQ")
"""A header and the id of the request."""


class Outbox:
    """Sends for one connection: what is queued waits for `flush`, and what that left for `run`.

    Attributes:
        closed: the connection has ended: nothing is sent any more.
        mute: the mount is gone: nobody hears what is sent.
        size: bytes that are queued.
    """

    def __init__(self, connection: FramedConnection) -> None:
        self.closed = False
        self.mute = False
        self.size = 0
        self._connection = connection
        self._queue: list[bytes] = []
        self._made: list[tuple[int, int]] = []
        self._unsent = b""
        self._writable_wanted = trio.Event()
        self._room = trio.Event()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.size + len(self._unsent)

    async def wait_for_room(self) -> None:
        """Wait until the kernel has taken something, or what waited was dropped."""
        self._room = trio.Event()
        await self._room.wait()

    def opened(self, opened: names.SessionOpened) -> None:
        """Queue the answer to OPEN_SESSION."""
        self._queue.append(pack_response(names.encode(opened)))

    def answer(self, number: int, status: int, body: bytes = b"") -> None:
        """Queue the answer to request *number*."""
        if self.closed or self.mute:
            return
        if self._made:
            self._tell_made()
        size = names.ANSWER_ID.size + len(body)
        self._queue.append(_ANSWER_HEAD.pack(size, names.ANSWER, status, number) + body)
        self.size += HEADER_SIZE + size

    def note_made(self, number: int) -> None:
        """In place of an answer: one frame tells of all that follow each other."""
        made = self._made
        if made and made[-1][1] == number - 1:
            made[-1] = (made[-1][0], number)
        else:
            made.append((number, number))

    def _tell_made(self) -> None:
        body = b"".join(names.ID_RANGE.pack(*ids) for ids in self._made)
        self._made.clear()
        if not self.mute:
            self._queue.append(pack_header(len(body), names.MADE) + body)
            self.size += HEADER_SIZE + len(body)

    def push(self, message: names.Push) -> None:
        """Send a push."""
        if self._made:
            self._tell_made()
        body = names.ANSWER_ID.pack(0) + names.encode(message)
        self._queue.append(pack_header(len(body), names.PUSH) + body)
        self.size += HEADER_SIZE + len(body)
        self.flush()

    def flush(self) -> None:
        """Hand what is queued to the kernel, as far as it takes it; the rest follows by itself."""
        if self._made:
            self._tell_made()
        if not self._queue or self._unsent or self.closed or self.mute:
            return
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        self._queue.clear()
        self.size = 0
        try:
            sent = self._connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.nobody_listens()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._writable_wanted.set()
        self._room.set()

    async def run(self) -> None:
        """Send what the kernel did not take at once, until nobody listens."""
        while True:
            await self._writable_wanted.wait()
            self._writable_wanted = trio.Event()
            while self._unsent:
                rest, self._unsent = memoryview(self._unsent), b"\0"
                try:
                    while rest:
                        await self._connection.wait_writable()
                        try:
                            rest = rest[self._connection.sock.send(rest) :]
                        except BlockingIOError:
                            continue
                except OSError:
                    self.nobody_listens()
                    return
                self._unsent = b""
                self.flush()
                self._room.set()

    def nobody_listens(self) -> None:
        """The mount is gone. What it had sent is carried out all the same, up to the end.

        It may have told its programs that it will be (changes answered ahead of the storage).
        """
        self.mute = True
        self._queue.clear()
        self.size, self._unsent = 0, b""
        self._room.set()
