"""A bound on memory that many writers share."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fdfsfuse.errors import DeadlineExceeded


class Budget:
    """A budget of *limit* bytes.

    A taker who finds no room calls *relieve*, which makes others give bytes back, and waits, for
    at most *timeout_s*. While nothing is taken anybody may exceed the limit, so that no request is
    too large to be served.
    """

    def __init__(self, limit: int, relieve: Callable[[], None], timeout_s: float) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._relieve = relieve
        self._waiters = trio.lowlevel.ParkingLot()
        self.used = 0

    def take_nowait(self, count: int) -> bool:
        """Take *count* bytes if there is room and nobody waits. Returns whether they were taken."""
        if self.used and (self.used + count > self._limit or self._waiters):
            return False
        self.used += count
        return True

    async def take(self, count: int) -> None:
        """Take *count* bytes, waiting until there is room.

        Raises:
            DeadlineExceeded: there was none for *timeout_s*.
        """
        with trio.move_on_after(self._timeout_s):
            while self.used and self.used + count > self._limit:
                self._relieve()
                await self._waiters.park()
            self.used += count
            return
        raise DeadlineExceeded("no memory for content: what is there could not be stored")

    def overdraw(self, count: int) -> None:
        """Take bytes even if there is no room: for a taker who could not give any before."""
        self.used += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.used -= count
        if self._waiters:
            self._waiters.unpark_all()
