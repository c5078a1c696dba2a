"""Content counts when the other storages of the volume have it, as far as they are in sync.

Who is in sync is known to the replication (`fdfs_storage.replication.in_sync`). Here answers to
changes that gave an inode content wait for it; in a volume of one nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fdfs_storage.binlog import Binlog, BinlogPosition

Reply = Callable[[int, bytes], None]


class Copies(Protocol):
    """What the tree wants of the replication.

    Attributes:
        members: the storages that have everything for which nobody waits any more.
        changed: called when these have changed, before anything is released without one of them.
    """

    members: frozenset[str]
    changed: Callable[[], None]

    @property
    def counts(self) -> bool:
        """False while there is nobody to wait for."""

    def look(self) -> None:
        """Take what the others have acknowledged by now."""

    def hold(self, position: BinlogPosition, release: Callable[[], None]) -> bool:
        """Call *release* when all in sync have everything before *position*; False: they do."""

    async def wait(self, position: BinlogPosition) -> None:
        """Wait until all in sync have everything before *position*."""

    def gathered(self) -> AbstractContextManager[None]:
        """What is logged inside is sent to the others at the end, at once."""


class Alone:
    """The copies of a storage that replicates nothing."""

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
    """Lets answers through when the copies are there.

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
        """False while nothing has to wait."""
        return self._copies.counts

    def held(self, reply: Reply) -> Reply:
        """*reply*, which waits for what is in the binlog now; an error does not wait."""
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
