"""A network between the servers of a test that can be cut, stalled and slowed, without root.

Each server listens at a private address, and the `Network` at its public one: the address that
trackers, peers and clients know. What connects from a server's private address goes on from its
public one, so a server that looks at who calls sees what it would without us::

    with Cluster(tmp_path, groups=("group1", "group1"), network=True) as cluster:
        first, second = cluster.storages
        cluster.network.cut(first, second)
        ...
        cluster.network.heal()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import trio

_CHUNK = 64 << 10
_LOOK_AGAIN_S = 0.01
_RESET = struct.pack("ii", 1, 0)


class Host(Protocol):
    """A server with its public address; `tests.common.cluster.Daemon` is one."""

    address: str


@dataclass(frozen=True)
class Condition:
    """How the way between two servers is, in both directions.

    ``cut`` refuses connections and resets those that are there. ``stalled`` accepts them and
    lets no byte through. ``bytes_per_s`` (0: no limit) and ``delay_s`` make it slow.
    """

    cut: bool = False
    stalled: bool = False
    bytes_per_s: float = 0.0
    delay_s: float = 0.0


GOOD = Condition()


@dataclass(eq=False)
class _Link:
    pair: frozenset[str]
    socks: list[trio.socket.SocketType] = field(default_factory=list)

    def reset(self) -> None:
        for sock in self.socks:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


class Network:
    """The ways between servers. Runs in a thread of its own until `stop`."""

    def __init__(self) -> None:
        self._public_of: dict[str, str] = {}
        self._conditions: dict[frozenset[str], Condition] = {}
        self._links: set[_Link] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="network")
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
            self._thread.join()

    def add(self, public: str, private: str, port: int) -> None:
        """Serve *public*:*port* for the server that listens at *private*:*port*."""
        trio.from_thread.run(self._add, public, private, port, trio_token=self._token)

    def cut(self, one: Host, other: Host) -> None:
        """Refuse and reset connections between two servers."""
        self.set(one, other, Condition(cut=True))

    def stall(self, one: Host, other: Host) -> None:
        """Let nothing through between two servers; connections stay."""
        self.set(one, other, Condition(stalled=True))

    def slow(self, one: Host, other: Host, bytes_per_s: float, delay_s: float = 0.0) -> None:
        """Make the way between two servers slow."""
        self.set(one, other, Condition(bytes_per_s=bytes_per_s, delay_s=delay_s))

    def heal(self) -> None:
        """Make every way good again."""
        trio.from_thread.run_sync(self._conditions.clear, trio_token=self._token)

    def set(self, one: Host, other: Host, condition: Condition) -> None:
        """Make the way between two servers as *condition* says."""
        pair = frozenset((one.address, other.address))
        trio.from_thread.run_sync(self._set, pair, condition, trio_token=self._token)

    # --- in the thread --------------------------------------------------------------------------

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await trio.sleep_forever()

    def _set(self, pair: frozenset[str], condition: Condition) -> None:
        self._conditions[pair] = condition
        if condition.cut:
            for link in [link for link in self._links if link.pair == pair]:
                link.reset()

    async def _add(self, public: str, private: str, port: int) -> None:
        self._public_of[private] = public
        (listener,) = await trio.open_tcp_listeners(port, host=public)

        async def serve(stream: trio.SocketStream) -> None:
            await self._serve(stream.socket, public, private, port)

        self._nursery.start_soon(trio.serve_listeners, serve, [listener])

    async def _serve(
        self, caller: trio.socket.SocketType, public: str, private: str, port: int
    ) -> None:
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            source = caller.getpeername()[0]
            source = self._public_of.get(source, source)
            with self._link(frozenset((source, public)), caller) as link:
                if self._conditions.get(link.pair, GOOD).cut:
                    link.reset()
                    return
                callee = trio.socket.socket()
                link.socks.append(callee)
                if source in self._public_of.values():
                    await callee.bind((source, 0))
                try:
                    await callee.connect((private, port))
                except OSError:
                    link.reset()  # the nearest to "connection refused"
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, link, caller, callee)
                    nursery.start_soon(self._pump, link, callee, caller)

    @contextlib.contextmanager
    def _link(self, pair: frozenset[str], caller: trio.socket.SocketType) -> Iterator[_Link]:
        link = _Link(pair, [caller])
        self._links.add(link)
        try:
            yield link
        finally:
            self._links.discard(link)
            for sock in link.socks:
                sock.close()

    async def _pump(
        self, link: _Link, source: trio.socket.SocketType, target: trio.socket.SocketType
    ) -> None:
        """Pass on what comes from *source* until its end; a broken end breaks the other one."""
        try:
            while data := await source.recv(_CHUNK):
                await self._pass_time(link, len(data))
                view = memoryview(data)
                while view:
                    view = view[await target.send(view) :]
            target.shutdown(socket.SHUT_WR)
        except (OSError, trio.ClosedResourceError):
            link.reset()

    async def _pass_time(self, link: _Link, count: int) -> None:
        condition = self._conditions.get(link.pair, GOOD)
        while condition.stalled:
            await trio.sleep(_LOOK_AGAIN_S)
            condition = self._conditions.get(link.pair, GOOD)
        if condition.bytes_per_s or condition.delay_s:
            pace_s = count / condition.bytes_per_s if condition.bytes_per_s else 0.0
            await trio.sleep(condition.delay_s + pace_s)
