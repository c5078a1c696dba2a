"""Connections between servers, which know each other by the address that one comes from.

They start at an address of one's own choice, and every exchange ends within a timeout.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    DeadlineExceeded,
    ProtocolError,
    StatusError,
)

PROBLEMS = (ConnectionProblem, StatusError, ProtocolError)
"""What an exchange with another server may raise."""


class Link:
    """A connection to a server whose every exchange has the same timeout."""

    def __init__(
        self, sock: socket.socket, server: ServerAddress, host: str, timeout_s: float
    ) -> None:
        peer = sock.getpeername()
        self.host = host
        self.peer_ip = str(peer[0])
        self.sock = sock
        self._connection = Connection(sock, Address(self.peer_ip, peer[1]))
        self.server = server
        self._timeout_s = timeout_s

    async def request(self, command: int, body: bytes = b"") -> bytes:
        """One exchange; the body of the answer.

        Raises:
            StatusError: the answer is an error.
            DeadlineExceeded, ConnectionBroken, ProtocolError: there was none; the link is of no
                use any more.
        """
        with trio.move_on_after(self._timeout_s):
            return await self._connection.request(command, body)
        raise DeadlineExceeded(f"no answer within {self._timeout_s:g} s")

    async def watch_until(self, deadline: float) -> None:
        """Wait until the trio time *deadline*.

        Raises:
            ConnectionBroken: the tracker closed the connection, or sent something unasked.
        """
        with trio.move_on_at(deadline):
            await trio.lowlevel.wait_readable(self.sock)
            raise ConnectionBroken("the tracker closed the connection")

    def close(self) -> None:
        """Close the connection; may be called again."""
        self._connection.close()


async def resolve(host: str, port: int) -> tuple[int, str]:
    """Family and ip of *host*. Raises ConnectFailed."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectFailed(f"cannot find the host {host}: {exc.strerror or exc}") from exc
    family, _, _, _, address = found[0]
    return int(family), str(address[0])


async def connect_link(
    server: ServerAddress, *, bind: Sequence[str], connect_timeout_s: float, timeout_s: float
) -> Link:
    """Connect to *server* from the address of *bind* that is of its family.

    Raises:
        ConnectFailed: none of its addresses answered within *connect_timeout_s*.
    """
    problem = f"no answer within {connect_timeout_s:g} s"
    with trio.move_on_after(connect_timeout_s):
        for host in server.hosts:
            try:
                family, ip = await resolve(host, server.port)
                sock = await _connect_socket(family, ip, server.port, bind)
            except ConnectFailed as exc:
                problem = str(exc)
            except OSError as exc:
                # Not strerror: trio puts the address there, in the form that Python has it.
                problem = os.strerror(exc.errno) if exc.errno else str(exc)
            else:
                return Link(sock, server, host, timeout_s)
    raise ConnectFailed(f"cannot connect: {problem}")


async def _connect_socket(family: int, ip: str, port: int, bind: Sequence[str]) -> socket.socket:
    with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for address in bind:
            if (":" in address) == (family == socket.AF_INET6):
                await sock.bind((address, 0))
        await sock.connect((ip, port))
        if sock.getsockname() == sock.getpeername():
            # A connection to a free local port can meet itself.
            raise ConnectFailed("nobody listens there")
        raw = socket.socket(fileno=sock.detach())
    raw.setblocking(False)
    return raw
