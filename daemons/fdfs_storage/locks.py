"""One lock per object, made when wanted and dropped when nobody holds or wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fdfsfuse.proto.fileid import Location


class PathLocks:
    """Keeps changes of one object apart that last over an await."""

    def __init__(self) -> None:
        self._locks: dict[Location, trio.Lock] = {}

    def is_free(self, location: Location) -> bool:
        """True when nobody holds the lock: what does not await need not take it."""
        return location not in self._locks

    @asynccontextmanager
    async def hold(self, location: Location) -> AsyncIterator[None]:
        """Hold the object's lock."""
        lock = self._locks.setdefault(location, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(location, None)
