"""The sessions of mounts: what is kept of them in memory. Leases, open inodes and connections.

Which sessions exist, and which have ended, is in the state and survives a restart. A lease does
not: after a restart every session gets a fresh one, in which its mount can come back. Leases run
on CLOCK_BOOTTIME, which goes on while a machine sleeps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names, names_record

if TYPE_CHECKING:
    from fdfs_storage.names.engine import Engine

HOLDS_MAX = 1 << 20
"""Most inodes that one session may hold."""


def boottime() -> float:
    """Seconds since the machine started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Connection(Protocol):
    """Where a session is connected."""

    @property
    def waiting(self) -> int:
        """Requests that have no answer yet."""

    def push(self, message: names.Push) -> None:
        """Send a push."""

    def shutdown(self) -> None:
        """End it; `Session.connection` is None soon."""


@dataclass(slots=True)
class Session:
    """One mount.

    Attributes:
        number, token, client: see `fdfsfuse.proto.names.OpenSession`.
        seen: boottime of its last request.
        lease_s: how long it may be silent.
        ending: its end is on the way to the log; its requests are refused from now on.
        high: largest request id that may have been carried out; only ids up to it can be repeats.
        holds: inodes that it has open.
        caches: it relies on answers until they are recalled (`fdfsfuse.core.holds`).
        hears_in_sync: it understands `names.InSync`.
        hears_made: it understands the answer to several changes at once.
        connection: where it is connected now.
    """

    number: int
    token: bytes
    client: str
    seen: float
    lease_s: float
    ending: bool = False
    high: int = 0
    holds: set[int] = field(default_factory=set)
    caches: bool = False
    hears_in_sync: bool = False
    hears_made: bool = False
    connection: Connection | None = None

    def end(self) -> names_record.EndSession:
        """The record of its end. From now on none of its changes is carried out."""
        self.ending = True
        return names_record.EndSession(self.number)

    async def commit_end(self, engine: Engine) -> None:
        """End the session. Raises StatusError if that could not be recorded: it goes on then."""
        self.ending = True
        try:
            await engine.change(self.end)
        except StatusError:
            self.ending = False
            raise


class Sessions:
    """All sessions that have not ended, and when those that did may be forgotten."""

    def __init__(self, lease_s: float, clock: Callable[[], float] = boottime) -> None:
        self.lease_s = lease_s
        self.clock = clock
        self._live: dict[int, Session] = {}
        self._held: Counter[int] = Counter()
        self._ended: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._live.values()))

    def add(self, number: int, token: bytes, client: str, high: int = 0) -> Session:
        """Add a session that was opened, or found in the state at start."""
        session = Session(number, token, client, self.clock(), self.lease_s, high=high)
        self._live[number] = session
        return session

    def get(self, number: int) -> Session | None:
        """The session if it has not ended."""
        return self._live.get(number)

    def is_live(self, number: int) -> bool:
        """True for a session that has not ended and is not about to."""
        session = self._live.get(number)
        return session is not None and not session.ending

    def is_held(self, ino: int) -> bool:
        """True while any session has the inode open."""
        return ino in self._held

    def change_holds(self, session: Session, added: list[int], removed: list[int]) -> bool:
        """Note inodes that were opened and closed. Returns False if it would hold too many."""
        new = set(added) - session.holds
        if len(session.holds) + len(new) > HOLDS_MAX:
            return False
        session.holds |= new
        for ino in new:
            self._held[ino] += 1
        self._release(session, session.holds.intersection(removed))
        return True

    def _release(self, session: Session, inos: set[int]) -> None:
        session.holds -= inos
        for ino in inos:
            self._held[ino] -= 1
            if not self._held[ino]:
                del self._held[ino]

    def expired(self) -> list[Session]:
        """Sessions whose lease has run out and that are not ending yet."""
        now = self.clock()
        return [s for s in self._live.values() if s.seen + s.lease_s < now and not s.ending]

    def excuse(self, seconds: float) -> None:
        """Let all leases end later, as this storage could hear nothing for so many seconds."""
        for session in self._live.values():
            session.seen += seconds

    def end(self, number: int) -> None:
        """Drop a session whose end is committed."""
        session = self._live.pop(number, None)
        if session is not None:
            session.ending = True
            self._release(session, set(session.holds))
        self.note_ended(number)

    def note_ended(self, number: int) -> None:
        """Note that a session has ended; how long its results are kept counts from now."""
        self._ended[number] = self.clock()

    def forgettable(self, keep_s: float) -> list[int]:
        """Sessions that ended at least *keep_s* ago."""
        limit = self.clock() - keep_s
        return [number for number, ended in self._ended.items() if ended <= limit]

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop ended sessions, of which the state has nothing left."""
        for number in numbers:
            self._ended.pop(number, None)
