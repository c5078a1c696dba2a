"""Connections kept open between requests, per address.

The pool is used from one trio task or many, in one event loop. A borrowed connection belongs to
the borrower; giving it back never blocks. What was closed meanwhile is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection, connect
from fdfsfuse.client.shelf import CONNECTIONS_MAX, IDLE_MAX, IDLE_MAX_S, Shelf
from fdfsfuse.client.sockets import CONNECT_TIMEOUT_S
from fdfsfuse.errors import ConnectFailed, ConnectionBroken, DeadlineExceeded, UsageError

T = TypeVar("T")


class _Host:
    """The connections to one address, and who waits for one."""

    __slots__ = ("shelf", "waiters", "waiting")

    def __init__(self, shelf: Shelf[Connection]) -> None:
        self.shelf = shelf
        self.waiters = trio.lowlevel.ParkingLot()
        self.waiting = 0


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
        limit: int = CONNECTIONS_MAX,
        max_idle: int = IDLE_MAX,
        max_idle_s: float = IDLE_MAX_S,
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
            host.shelf.clear()

    def connection(self, address: Address) -> _Borrowed:
        """``async with pool.connection(address) as connection:``"""
        return _Borrowed(self, address)

    def borrow_nowait(self, address: Address, *, probe: bool = True) -> Connection | None:
        """`borrow` if that takes no waiting, else None."""
        host = self._hosts.get(address)
        if host is None or self._closed:
            return None
        return host.shelf.take(trio.current_time(), probe)

    async def borrow(
        self, address: Address, *, fresh: bool = False, probe: bool = True
    ) -> Connection:
        """A live connection to *address*; `give_back` it, whatever happens.

        Args:
            fresh: make a new connection, and drop the idle ones: they have proved stale.
            probe: False for a request that may be repeated; the connection may be stale then.

        Raises:
            ConnectFailed: see `connect`; or nobody answered there just now.
        """
        if self._closed:
            raise UsageError("the connection pool is closed")
        host = self._hosts.get(address)
        if host is None:
            host = self._hosts[address] = _Host(Shelf(self._max_idle, self._max_idle_s))
        shelf = host.shelf
        if fresh:
            shelf.clear()
        while True:
            connection = shelf.take(trio.current_time(), probe)
            if connection is not None:
                return connection
            if shelf.total < self._limit:
                break
            host.waiting += 1
            try:
                await host.waiters.park()
            finally:
                host.waiting -= 1
        began = trio.current_time()
        timeout_s = shelf.connect_timeout(began, self._connect_timeout_s)
        if not timeout_s:
            host.waiters.unpark()
            raise ConnectFailed(f"nobody answered at {address} just now")
        shelf.total += 1
        try:
            connection = await connect(address, timeout_s)
        except BaseException:
            shelf.not_connected(began, trio.current_time())
            shelf.total -= 1
            host.waiters.unpark()
            raise
        shelf.connected(trio.current_time())
        return connection

    def give_back(self, connection: Connection) -> None:
        """End a loan. A connection that is no longer usable is dropped."""
        host = self._hosts[connection.address]
        connection.deadline = math.inf
        if self._closed:
            connection.close()
        host.shelf.put(connection, trio.current_time())
        if host.waiting:
            host.waiters.unpark()

    async def call(
        self,
        address: Address,
        exchange: Callable[[Connection], Awaitable[T]],
        *,
        repeatable: bool,
        deadline: float = math.inf,
    ) -> T:
        """Borrow a connection for one *exchange*.

        A *repeatable* exchange (one that may be carried out twice), or one that the peer cannot
        have got whole, is tried again, once, on a new connection when a kept one proves stale.

        Args:
            deadline: trio time until which all that may take.

        Raises:
            DeadlineExceeded: it took longer.
        """
        connection = self.borrow_nowait(address, probe=not repeatable)
        if connection is None:
            connection = await self._borrow_by(deadline, address)
        try:
            connection.deadline = deadline
            return await exchange(connection)
        except ConnectionBroken as exc:
            if not (exc.stale and (repeatable or exc.unsent)):
                raise
        finally:
            self.give_back(connection)
        connection = await self._borrow_by(deadline, address, fresh=True)
        try:
            connection.deadline = deadline
            return await exchange(connection)
        finally:
            self.give_back(connection)

    async def _borrow_by(
        self, deadline: float, address: Address, *, fresh: bool = False
    ) -> Connection:
        with trio.move_on_at(deadline):
            return await self.borrow(address, fresh=fresh)
        raise DeadlineExceeded(f"{address} did not answer in time")


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
