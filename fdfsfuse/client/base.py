"""What the connections of both clients have in common: a request, then its answer.

Framing: protocol/wire.md section 1. When an exchange ends in anything but a complete answer (an
error, a cancellation, an unread body), the stream's position is unknown and the connection is
closed. A status other than 0 is a complete answer, except 22, after which storages close.
"""

from __future__ import annotations

import errno
import socket

from fdfsfuse.client.address import Address
from fdfsfuse.client.answers import answer_length, sent_too_much
from fdfsfuse.client.sockets import readable
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto.header import HEADER_SIZE


class BaseConnection:
    """See the module. Everything that waits is in the classes of the two clients.

    Attributes:
        sock: the socket; of this package's use only.
        address: where it leads.
        answered: whether any byte of the last answer has arrived.
        sent: whether the whole last request was handed to the network.
        reused: whether it was kept idle before.
        idle_since: since when it has been idle, on the clock of who keeps it.
        usable: False once it was closed, by `close` or because an exchange broke off.
    """

    __slots__ = (
        "_readable",
        "address",
        "answered",
        "idle_since",
        "reused",
        "sent",
        "sock",
        "usable",
    )

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self._readable = readable(sock)
        self.address = address
        self.answered = False
        self.sent = False
        self.reused = False
        self.usable = True
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection to {self.address}{'' if self.usable else ', closed'}>"

    def close(self) -> None:
        """Close the connection; may be called again."""
        self.usable = False
        self.sock.close()

    def alive(self) -> bool:
        """True when the peer has neither closed nor sent anything unasked; no round trip."""
        return not self._readable.poll(0)

    def _start(self) -> None:
        """An exchange begins."""
        if not self.usable:
            raise ConnectionBroken(f"the connection to {self.address} is closed")
        self.answered = self.sent = False

    def _broke_off(self, exc: BaseException) -> None:
        """An exchange has ended with *exc*."""
        if not isinstance(exc, StatusError) or exc.errno == errno.EINVAL:
            self.close()
        if isinstance(exc, ConnectionBroken):
            exc.stale = self.reused and not self.answered
            exc.unsent = not self.sent

    def _split(self, data: bytes) -> tuple[int, bytes]:
        """The length of an answer's body, and as much of it as came with its header."""
        length = answer_length(self.address, data)
        if len(data) > HEADER_SIZE + length:
            raise sent_too_much(self.address)
        return length, data[HEADER_SIZE:]

    def raise_early_answer(self) -> None:
        """Raise the status that the peer sent before it had the whole request, if it did."""
        try:
            data = self.sock.recv(HEADER_SIZE, socket.MSG_DONTWAIT)
        except OSError:
            return
        if len(data) < HEADER_SIZE:
            raise ConnectionBroken(f"{self.address} closed the connection during a request")
        self.answered = True
        try:
            answer_length(self.address, data)
        except StatusError:
            # What is left of the request would be taken for new requests.
            self.close()
            raise
        raise ProtocolError(f"{self.address} answered before it had the whole request")

    def broken(self, exc: OSError | None) -> ConnectionBroken:
        """The error to raise after *exc*; None: the peer has closed the connection."""
        why = exc.strerror or str(exc) if exc else "the peer closed it"
        return ConnectionBroken(f"the connection to {self.address} broke: {why}")
