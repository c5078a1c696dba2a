"""A lock that costs nothing while nobody else wants it: no checkpoint, unlike trio.Lock."""

from __future__ import annotations

from types import TracebackType

import trio


class Lock:
    """A lock for ``async with lock:``. Tasks get it in the order in which they have asked."""

    __slots__ = ("_held", "_waiters")

    def __init__(self) -> None:
        self._held = False
        self._waiters = trio.lowlevel.ParkingLot()

    def locked(self) -> bool:
        """Whether somebody holds the lock."""
        return self._held

    async def __aenter__(self) -> None:
        if self._held:
            await self._waiters.park()
        self._held = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._waiters:
            # The lock stays held: it belongs to the task that is woken.
            self._waiters.unpark()
        else:
            self._held = False
