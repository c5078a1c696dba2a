"""Answers that wait until the other storages of the volume have the content, too.

They wait for the storages that are in sync, which the replication knows
(`fdfs_storage.replication.in_sync`). In a volume of one nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fdfs_storage.binlog import Binlog, BinlogPosition
    from fdfs_storage.names.work import Reply


class Copies(Protocol):
    """What the tree needs from the replication.

    Attributes:
        members: ids of the storages in sync: they have all content that was acknowledged.
        changed: called when these have changed, before an answer is released that does not wait
            for one of them any more.
    """

    members: frozenset[str]
    changed: Callable[[], None]

    @property
    def counts(self) -> bool:
        """Whether there is any other storage to wait for."""

    def look(self) -> None:
        """Take the acknowledgements that have arrived by now."""

    def hold(self, position: BinlogPosition, release: Callable[[], None]) -> bool:
        """Call *release* once all storages in sync have everything before *position*.

        False: they have it already, and *release* will not be called.
        """

    async def wait(self, position: BinlogPosition) -> None:
        """Wait until all storages in sync have everything before *position*."""

    def gathered(self) -> AbstractContextManager[None]:
        """What is logged inside the block is sent to the other storages together, at its end."""


class Alone:
    """`Copies` for a storage that has no others."""

    counts = False

    def __init__(self) -> None:
        self.members: frozenset[str] = frozenset()
        self.changed: Callable[[], None] = lambda: None

    def look(self) -> None:
        """See `Copies`."""

    def hold(self, position: BinlogPosition, release: Callable[[], None]) -> bool:
        """See `Copies`."""
        return False

    def gathered(self) -> AbstractContextManager[None]:
        """See `Copies`."""
        return nullcontext()

    async def wait(self, position: BinlogPosition) -> None:
        """See `Copies`."""


class CopyGate:
    """Lets answers through once the copies are there.

    Attributes:
        answered: called after an answer that was held has been given.
        gathered, look: see `Copies`.
    """

    def __init__(self, copies: Copies, binlog: Binlog) -> None:
        self.answered: Callable[[], None] = lambda: None
        self.gathered = copies.gathered
        self.look = copies.look
        self._copies = copies
        self._binlog = binlog

    @property
    def counts(self) -> bool:
        """Whether anything has to wait."""
        return self._copies.counts

    def held(self, reply: Reply) -> Reply:
        """A reply that waits until the copies of what is in the binlog now are there.

        Errors do not wait.
        """
        position = self._binlog.position

        def hold(status: int, answer: bytes) -> None:
            def release() -> None:
                reply(status, answer)
                self.answered()

            if status or not self._copies.hold(position, release):
                reply(status, answer)

        return hold

    async def wait(self) -> None:
        """Wait until the copies of everything that is in the binlog now are there."""
        if self._copies.counts:
            await self._copies.wait(self._binlog.position)
