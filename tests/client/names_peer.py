"""A scripted names primary."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import trio

from fdfsfuse.client.views import Candidate
from fdfsfuse.proto import names, structs
from fdfsfuse.proto.header import pack_header
from tests.client.peers import Peer, PeerConnection

ATTR = names.Attr(5, 0o100644, 1, 0, 0, 0, 3, 1, 2, 3, 1)


class Received(NamedTuple):
    """A REQUEST frame."""

    session: int
    number: int
    done_below: int
    request: names.Request
    status: int


class NamesPeer:
    """Keeps sessions as the tests say and answers every request; see the attributes.

    Attributes:
        received: all requests, in order.
        padded: how many had been received at each padding.
        opened: all OPEN_SESSION requests.
        respond: gives the answer struct or an errno, or None to answer nothing.
        break_on: types of requests on which the connection is closed, once each.
        ended: session numbers that are refused.
        stock: behave as a storage without names.
    """

    def __init__(self, storage_id: str = "s1", lease_s: float = 10.0) -> None:
        self.storage_id = storage_id
        self.primary = storage_id
        self.view_number = 1
        self.lease_s = lease_s
        self.received: list[Received] = []
        self.padded: list[int] = []
        self.opened: list[names.OpenSession] = []
        self.respond: Callable[[Received], Any] = lambda received: answer_to(received.request)
        self.break_on: list[type] = []
        self.ended: set[int] = set()
        self.stock = False
        self.treeless = False
        self.connections: list[PeerConnection] = []
        self._sessions = 0

    @property
    def view(self) -> names.View:
        return names.View(self.view_number, self.primary, [self.primary], "0" * 32)

    @property
    def requests(self) -> list[names.Request]:
        return [received.request for received in self.received]

    async def handle(self, connection: PeerConnection) -> None:
        """The handler of a `Peer`."""
        request = await connection.receive()
        if self.stock:
            await connection.answer(status=errno.EINVAL)
        elif request.command == names.QUERY_VIEW:
            if self.treeless:
                await connection.answer(status=errno.ENOENT)
            else:
                await connection.answer(names.encode(self.view))
        elif request.command == names.OPEN_SESSION:
            await self._open(connection, structs.decode(names.OpenSession, request.body))

    async def _open(self, connection: PeerConnection, request: names.OpenSession) -> None:
        self.opened.append(request)
        if self.primary != self.storage_id:
            await connection.answer(status=names.NOT_PRIMARY)
            return
        if request.session in self.ended:
            await connection.answer(status=names.SESSION_ENDED)
            return
        session = request.session
        if not session:
            self._sessions += 1
            session = self._sessions
        opened = names.SessionOpened(names.VERSION, session, self.lease_s, self.view)
        await connection.answer(names.encode(opened))
        self.connections.append(connection)
        while True:
            frame = await connection.receive()
            if frame.command == names.PADDING:
                self.padded.append(len(self.received))
                continue
            number, done_below = names.FRAME_IDS.unpack(frame.body[:16])
            request_struct = names.decode_request(frame.body[16:])
            received = Received(session, number, done_below, request_struct, frame.status)
            self.received.append(received)
            if type(received.request) in self.break_on:
                self.break_on.remove(type(received.request))
                return
            if session in self.ended:
                await self.answer(connection, number, names.SESSION_ENDED)
                continue
            answer = self.respond(received)
            if answer is not None:
                await self.answer(connection, number, answer)

    async def answer(self, connection: PeerConnection, number: int, answer: Any) -> None:
        status, body = (answer, b"") if isinstance(answer, int) else (0, names.encode(answer))
        head = pack_header(8 + len(body), names.ANSWER, status) + names.ANSWER_ID.pack(number)
        await connection.send(head + body)

    async def tell_made(self, *ranges: tuple[int, int]) -> None:
        body = b"".join(names.ID_RANGE.pack(*ids) for ids in ranges)
        await self.connections[-1].send(pack_header(len(body), names.MADE) + body)

    async def push(self, push: names.Push) -> None:
        body = names.ANSWER_ID.pack(0) + names.encode(push)
        await self.connections[-1].send(pack_header(len(body), names.PUSH) + body)

    async def disconnect(self) -> None:
        """Break the newest session connection."""
        await self.connections[-1].stream.aclose()


def answer_to(request: names.Request) -> Any:
    """Some valid answer."""
    answer = names.ANSWERS[type(request)]
    if answer is names.Attr:
        return ATTR
    if answer is names.Done:
        return names.Done()
    if answer is names.Opened:
        return names.Opened(ATTR, b"x" * getattr(request, "max_data", 0))
    if answer is names.Outcome:
        return names.Outcome(None)
    if answer is names.PathList:
        return names.PathList([b"/a"])
    raise NotImplementedError(answer)


def finder(*peers: tuple[str, Peer]) -> Callable[[], Any]:
    """A finder that names these storages."""

    async def find() -> Sequence[Candidate]:
        await trio.lowlevel.checkpoint()
        return [Candidate(storage_id, peer.address) for storage_id, peer in peers]

    return find
