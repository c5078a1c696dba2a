"""Connections kept open between requests, per address.

The pool is used from one trio task or many, in one event loop. A borrowed connection belongs to
the borrower; giving it back never blocks. What was closed meanwhile is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import CONNECT_TIMEOUT_S, Connection, connect
from fdfsfuse.errors import ConnectionBroken, UsageError

T = TypeVar("T")


class _Host:
    """Connections to one address: ``idle`` ones, newest last, and how many exist in all."""

    __slots__ = ("idle", "total", "waiters")

    def __init__(self) -> None:
        self.idle: deque[Connection] = deque()
        self.total = 0
        self.waiters = trio.lowlevel.ParkingLot()


class Pool:
    """Idle connections and limits.

    Args:
        limit: most connections to one address; borrowers wait beyond it.
        max_idle_s: an idle connection older than this is closed instead of being used.
        max_idle: most idle connections that are kept to one address.
    """

    def __init__(
        self,
        *,
        limit: int = 64,
        max_idle: int = 16,
        max_idle_s: float = 60.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._limit = limit
        self._max_idle = max_idle
        self._max_idle_s = max_idle_s
        self._connect_timeout_s = connect_timeout_s
        self._hosts: dict[Address, _Host] = {}
        self._closed = False

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; borrowed ones are closed when they are given back."""
        self._closed = True
        for host in self._hosts.values():
            self._shrink(host, 0)

    def connection(self, address: Address) -> _Borrowed:
        """``async with pool.connection(address) as connection:``"""
        return _Borrowed(self, address)

    async def borrow(self, address: Address, *, fresh: bool = False) -> Connection:
        """A live connection to *address*; `give_back` it, whatever happens.

        Args:
            fresh: make a new connection, and drop the idle ones: they have proved stale.

        Raises:
            ConnectFailed: see `connect`.
        """
        if self._closed:
            raise UsageError("the connection pool is closed")
        host = self._hosts.get(address)
        if host is None:
            host = self._hosts[address] = _Host()
        if fresh:
            self._shrink(host, 0)
        while True:
            connection = self._idle_connection(host)
            if connection is not None:
                return connection
            if host.total < self._limit:
                break
            await host.waiters.park()
        host.total += 1
        try:
            return await connect(address, self._connect_timeout_s)
        except BaseException:
            host.total -= 1
            host.waiters.unpark()
            raise

    def give_back(self, connection: Connection) -> None:
        """End a loan. A connection that is no longer usable is dropped."""
        host = self._hosts[connection.address]
        if connection.usable and not self._closed:
            connection.idle_since = trio.current_time()
            connection.reused = True
            host.idle.append(connection)
            self._shrink(host, self._max_idle)
            oldest = connection.idle_since - self._max_idle_s
            while host.idle[0].idle_since < oldest:
                self._drop(host, host.idle.popleft())
        else:
            self._drop(host, connection)
        host.waiters.unpark()

    async def call(
        self,
        address: Address,
        exchange: Callable[[Connection], Awaitable[T]],
        *,
        repeatable: bool,
    ) -> T:
        """Borrow a connection for one *exchange*.

        When a kept connection breaks before any byte of the answer has come, it was most likely
        closed while idle: a *repeatable* exchange (one that may be carried out twice) is then
        tried again, once, on a new connection.
        """
        connection = await self.borrow(address)
        try:
            return await exchange(connection)
        except ConnectionBroken:
            if not (repeatable and connection.reused) or connection.answered:
                raise
        finally:
            self.give_back(connection)
        connection = await self.borrow(address, fresh=True)
        try:
            return await exchange(connection)
        finally:
            self.give_back(connection)

    def _idle_connection(self, host: _Host) -> Connection | None:
        oldest = trio.current_time() - self._max_idle_s
        while host.idle:
            connection = host.idle.pop()
            if connection.idle_since >= oldest and connection.alive():
                return connection
            self._drop(host, connection)
        return None

    def _shrink(self, host: _Host, size: int) -> None:
        while len(host.idle) > size:
            self._drop(host, host.idle.popleft())

    def _drop(self, host: _Host, connection: Connection) -> None:
        connection.close()
        host.total -= 1


class _Borrowed:
    """A loan as an async context manager; cheaper than a decorated generator."""

    __slots__ = ("_address", "_connection", "_pool")

    def __init__(self, pool: Pool, address: Address) -> None:
        self._pool = pool
        self._address = address
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.borrow(self._address)
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._pool.give_back(self._connection)
