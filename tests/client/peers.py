"""Scripted peers on loopback: each does exactly what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.proto.header import HEADER_SIZE, pack_response, unpack_header
from tests.common.addresses import loopback_network


class Request(NamedTuple):
    """What a peer received."""

    command: int
    status: int
    body: bytes


class PeerConnection:
    """A peer's side of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""
        self._sending = trio.Lock()

    async def receive_exactly(self, count: int) -> bytes:
        """*count* bytes; raises EOFError when the connection ends before."""
        while len(self._rest) < count:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise EOFError
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    async def receive(self) -> Request:
        """The next request."""
        header = unpack_header(await self.receive_exactly(HEADER_SIZE))
        body = await self.receive_exactly(header.length)
        return Request(header.command, header.status, body)

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self.stream.send_all(data)

    async def answer(self, body: bytes = b"", status: int = 0) -> None:
        await self.send(pack_response(body, status))


Handler = Callable[[PeerConnection], Awaitable[None]]


class Peer:
    """A listening peer. ``connections`` counts the accepted ones."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.address = Address("", 0)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            await self.handler(PeerConnection(stream))
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await stream.aclose()


@asynccontextmanager
async def running_peer(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """A peer that runs *handler* for each connection and closes the connection after it."""
    peer = Peer(handler)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        peer.address = Address(host, listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        yield peer
        nursery.cancel_scope.cancel()


async def unused_address() -> Address:
    """An address where nobody listens: no port that the kernel would give to somebody else."""
    return Address(f"{loopback_network()}.1", 1)
