"""One lock per key, made when it is wanted and dropped when nobody holds or wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

_K = TypeVar("_K", bound=Hashable)


class Locks(Generic[_K]):
    """Keeps apart what is done to one thing (an object, an inode) over several awaits."""

    def __init__(self) -> None:
        self._locks: dict[_K, trio.Lock] = {}

    def is_free(self, key: _K) -> bool:
        """Whether nobody holds the lock: what does not await need not take it."""
        return key not in self._locks

    @asynccontextmanager
    async def hold(self, key: _K) -> AsyncIterator[None]:
        """Hold the lock of *key* inside the block."""
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)
