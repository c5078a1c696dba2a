"""Making a connection ready for a names session: the socket, and the exchange OPEN_SESSION."""

from __future__ import annotations

import errno
import logging
import socket

from trio.lowlevel import wait_readable

from fdfsfuse.errors import (
    ConnectionBroken,
    ConnectionProblem,
    NoNamesError,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto import names, structs
from fdfsfuse.proto.header import HEADER_SIZE, RESPONSE, pack_header

logger = logging.getLogger(__name__)

OPENED_MAX = 64 << 10


class SessionEnded(ConnectionProblem):
    """The server has ended the session."""


def send_small_at_once(sock: socket.socket) -> None:
    """Choose a congestion control that lets small packets leave at once.

    BBR, the default of some machines, paces: of small frames sent in a row it held back one in
    eight. CUBIC's HyStart takes it for a queue in the network when the storage lets frames gather,
    and stops at 16 packets under way. Reno widens its window until a packet is lost; the kernel
    allows it to everybody, unless an administrator says otherwise.
    """
    for algorithm in (b"reno", b"cubic"):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm)
            return
        except OSError as exc:
            logger.debug("no congestion control by %s: %s", algorithm.decode(), exc)


async def exchange_open(
    sock: socket.socket, session: int, token: bytes, client: str, lease_s: float
) -> names.SessionOpened:
    """Open a session (*session* 0) or take one up on a fresh connection.

    Frames may follow the answer at once, so not a byte more than it is received.

    Raises:
        SessionEnded: the session to be taken up is no more.
        NoNamesError: the storage knows no names.
        ConnectionProblem: it is not the primary, or the connection broke.
        ProtocolError, StatusError: it answered something else.
    """
    body = names.encode(names.OpenSession(names.VERSION, session, token, client, lease_s))
    sock.send(pack_header(len(body), names.OPEN_SESSION) + body)
    head = await _receive_exactly(sock, HEADER_SIZE)
    length, command, status = int.from_bytes(head[:8], "big"), head[8], head[9]
    if command != RESPONSE or length > OPENED_MAX or (status and length):
        raise ProtocolError("the names primary answered OPEN_SESSION with garbage")
    if status == names.SESSION_ENDED:
        raise SessionEnded("the session ended while there was no connection")
    if status == names.NOT_PRIMARY:
        raise ConnectionProblem("the volume's names primary is changing")
    if status == errno.EINVAL:
        raise NoNamesError("the storage has no names")
    if status:
        raise StatusError(status, "opening a names session")
    opened = structs.decode(names.SessionOpened, await _receive_exactly(sock, length))
    if opened.version < names.VERSION:
        raise ConnectionProblem("the names primary runs an older release than this mount")
    if not opened.session or not 0 < opened.lease_s < 86400:
        raise ProtocolError("the names primary opened a session that makes no sense")
    return opened


async def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        try:
            got = sock.recv_into(view)
        except BlockingIOError:
            await wait_readable(sock)
            continue
        except OSError as exc:
            raise ConnectionBroken(f"the connection broke: {exc.strerror}") from exc
        if not got:
            raise ConnectionBroken("the names primary closed the connection")
        view = view[got:]
    return bytes(buffer)
