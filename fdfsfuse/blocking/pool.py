"""Connections kept open between requests, per address, for any number of threads.

All of the bookkeeping happens under one lock, which is never held while the network is waited for.
A process that was forked starts with an empty pool: two processes must not share a connection.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from fdfsfuse.blocking.connection import Connection, connect
from fdfsfuse.client.address import Address
from fdfsfuse.client.shelf import Shelf
from fdfsfuse.errors import ConnectFailed, UsageError


class Pool:
    """Idle connections and limits; the arguments are those of `fdfsfuse.client.pool.Pool`."""

    def __init__(
        self, *, limit: int, max_idle: int, max_idle_s: float, connect_timeout_s: float
    ) -> None:
        self._limit = limit
        self._max_idle = max_idle
        self._max_idle_s = max_idle_s
        self._connect_timeout_s = connect_timeout_s
        self._closed = False
        self._shelves: dict[Address, Shelf[Connection]] = {}
        self.reset()
        _pools.add(self)

    def reset(self) -> None:
        """Start anew, as after a fork."""
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting = 0
        shelves, self._shelves = self._shelves, {}
        for shelf in shelves.values():
            shelf.clear()

    def close(self) -> None:
        """Close the idle connections; borrowed ones are closed when they are given back."""
        with self._lock:
            self._closed = True
            for shelf in self._shelves.values():
                shelf.clear()

    def borrow(
        self, address: Address, now: float, due: float, *, fresh: bool = False, probe: bool = True
    ) -> Connection:
        """A live connection to *address*; `give_back` it, whatever happens.

        Args:
            now: time.monotonic().
            due: when waiting for one ends with ConnectFailed.
            fresh: make a new connection, and drop the idle ones: they have proved stale.
            probe: False for a request that may be repeated; the connection may be stale then.
        """
        with self._lock:
            if self._closed:
                raise UsageError("the client is closed")
            shelf = self._shelves.get(address)
            if shelf is None:
                shelf = self._shelves[address] = Shelf(self._max_idle, self._max_idle_s)
            if fresh:
                shelf.clear()
            while True:
                connection = shelf.take(now, probe)
                if connection is not None:
                    return connection
                if shelf.total < self._limit:
                    break
                if now >= due:
                    raise ConnectFailed(f"all {self._limit} connections to {address} are in use")
                self._waiting += 1
                try:
                    self._room.wait(min(due - now, threading.TIMEOUT_MAX))
                finally:
                    self._waiting -= 1
                now = time.monotonic()
            timeout_s = shelf.connect_timeout(now, self._connect_timeout_s)
            if not timeout_s:
                self._wake()
                raise ConnectFailed(f"nobody answered at {address} just now")
            shelf.total += 1
        try:
            connection = connect(address, min(timeout_s, due - now))
        except BaseException:
            with self._lock:
                shelf.not_connected(now, time.monotonic())
                shelf.total -= 1
                self._wake()
            raise
        with self._lock:
            shelf.connected(time.monotonic())
        return connection

    def give_back(self, connection: Connection) -> None:
        """End a loan. A connection that is no longer usable is dropped."""
        with self._lock:
            if self._closed:
                connection.close()
            shelf = self._shelves.get(connection.address)
            if shelf is None:  # borrowed before a fork
                connection.close()
                return
            shelf.put(connection, time.monotonic())
            self._wake()

    def _wake(self) -> None:
        """There is room. All look: they wait for different addresses."""
        if self._waiting:
            self._room.notify_all()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.reset()


os.register_at_fork(after_in_child=_after_fork)
