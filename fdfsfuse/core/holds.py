"""What the names primary remembers of sessions that rely on its answers.

A session *holds* an inode of which an answer has told it: its attributes and xattrs, its content,
and, of a directory, its names. `Holds` knows who holds what. `Recalls` knows what was recalled and
not confirmed yet, and which changes wait for that. Both only decide; sending and answering is done
by `fdfs_storage.names.callbacks`.

A hold that is not needed costs one recall; a missing one would let a mount show outdated things. So
where it is simpler, too much is held: sessions that have ended stay in `Holds` until they are met
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_M = TypeVar("_M")


class Holds:
    """The sessions that hold each inode, in the order in which the inodes were first held.

    Args:
        limit: most inodes that should be held; `oldest` says which to give up beyond it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holders: dict[int, tuple[int, ...]] = {}
        # One tuple for each session, shared by all that it alone holds, saves half of the memory.
        self._alone: dict[int, tuple[int]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, inos: Iterable[int], session: int) -> bool:
        """Let the session hold the inodes. Returns whether another session holds one of them."""
        held, others = self._holders, False
        alone = self._alone.get(session)
        if alone is None:
            alone = self._alone[session] = (session,)
        for ino in inos:
            holders = held.get(ino)
            if holders is None:
                held[ino] = alone
            elif session not in holders:
                held[ino] = (*holders, session)
                others = True
            elif len(holders) > 1:
                others = True
        return others

    def any_others(self, inos: Iterable[int], session: int) -> bool:
        """Whether a session other than *session* holds one of the inodes."""
        find, alone = self._holders.get, self._alone.get(session)
        for ino in inos:
            holders = find(ino)
            if holders is not None and holders is not alone and holders != (session,):
                return True
        return False

    def others(self, ino: int, session: int) -> tuple[int, ...]:
        """The sessions other than *session* that hold the inode."""
        holders = self._holders.get(ino)
        if holders is None or (len(holders) == 1 and holders[0] == session):
            return ()
        return tuple(holder for holder in holders if holder != session)

    def holders(self, ino: int) -> tuple[int, ...]:
        """The sessions that hold the inode."""
        return self._holders.get(ino, ())

    def release(self, ino: int, session: int) -> None:
        """Let the session hold the inode no more."""
        holders = self._holders.get(ino, ())
        if session in holders:
            rest = tuple(holder for holder in holders if holder != session)
            if not rest:
                del self._holders[ino]
            else:
                self._holders[ino] = rest

    def forget(self, session: int) -> None:
        """Note that the session has ended. Its holds are dropped when they are met."""
        self._alone.pop(session, None)

    def oldest(self, count: int) -> list[int]:
        """The *count* inodes that are held longest. From now on they count as the youngest."""
        found = [ino for ino, _ in zip(self._holders, range(count), strict=False)]
        for ino in found:
            self._holders[ino] = self._holders.pop(ino)
        return found


class Waiting:
    """A change that is acknowledged when ``recalls``, the number of open recalls for it, is 0."""

    __slots__ = ("recalls",)

    def __init__(self) -> None:
        self.recalls = 0


@dataclass(slots=True, eq=False)
class Recall(Generic[_M]):
    """One message that a session has to confirm.

    Attributes:
        sent: when it was sent, in seconds of the clock that leases run on.
        lease_s: the session's lease.
        release: inodes that the session does not hold any more once it has confirmed.
        everything: whether it is about everything that the session may hold.
        message: what the session is sent.
        changes: the changes that wait for it.
    """

    number: int
    session: int
    sent: float
    lease_s: float
    release: set[int]
    everything: bool
    message: _M
    changes: list[Waiting] = field(default_factory=list)


class Recalls(Generic[_M]):
    """The recalls that are not confirmed yet.

    A recall is over when the session has confirmed it, when the session has ended, or after one
    lease, as the session may not rely any longer on what it was told before. For a session that was
    silent before the recall, the lease counts from when it was heard of last.
    """

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, dict[int, Recall[_M]]] = {}
        self._everything: list[Recall[_M]] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(
        self,
        session: int,
        now: float,
        lease_s: float,
        make: Callable[[int], _M],
        *,
        release: Iterable[int] = (),
        changes: Iterable[Waiting] = (),
        everything: bool = False,
    ) -> Recall[_M]:
        """Begin a recall.

        Args:
            now: when it is sent.
            make: makes the message, given the number of the recall.
            release, changes, everything: see `Recall`.
        """
        self._number += 1
        number = self._number
        recall = Recall(number, session, now, lease_s, set(release), everything, make(number))
        self._open.setdefault(session, {})[number] = recall
        if everything:
            self._everything.append(recall)
        for change in changes:
            self._attach(recall, change)
        return recall

    def attach_to_everything(self, session: int, change: Waiting) -> None:
        """Let a change by *session* wait for all others of whom it is unknown what they hold."""
        for recall in self._everything:
            if recall.session != session:
                self._attach(recall, change)

    def anything_unknown(self, session: int) -> bool:
        """Whether it is unknown what any session but this one holds."""
        everything = self._everything
        return bool(everything) and any(recall.session != session for recall in everything)

    def _attach(self, recall: Recall[_M], change: Waiting) -> None:
        recall.changes.append(change)
        change.recalls += 1

    def of(self, session: int) -> list[_M]:
        """The messages that the session has not confirmed, oldest first."""
        return [recall.message for recall in self._open.get(session, {}).values()]

    def held_again(self, session: int, ino: int) -> None:
        """An answer told the session of a recalled inode again: confirming will not release it."""
        for recall in self._open.get(session, {}).values():
            recall.release.discard(ino)

    def confirm(self, session: int, number: int) -> tuple[set[int], list[Waiting]]:
        """The session has confirmed a recall.

        Returns:
            (inodes that it does not hold any more, changes that may be acknowledged now).
        """
        recall = self._open.get(session, {}).get(number)
        if recall is None:
            return set(), []
        return recall.release, self._close(recall)

    def drop(self, session: int) -> list[Waiting]:
        """The session has ended. Returns the changes that may be acknowledged now."""
        done: list[Waiting] = []
        for recall in list(self._open.get(session, {}).values()):
            done += self._close(recall)
        return done

    def expire(
        self, now: float, seen: Callable[[int], float]
    ) -> tuple[list[tuple[int, set[int]]], list[Waiting]]:
        """End the recalls whose lease is over.

        Args:
            seen: tells when a session was heard of last.

        Returns:
            ((session, inodes that it does not hold any more) of each, changes that may be
            acknowledged now).
        """
        released: list[tuple[int, set[int]]] = []
        done: list[Waiting] = []
        for recalls in list(self._open.values()):
            for recall in list(recalls.values()):
                if self._ends(recall, seen) <= now:
                    released.append((recall.session, recall.release))
                    done += self._close(recall)
        return released, done

    def next_end(self, seen: Callable[[int], float]) -> float:
        """When `expire` is due if nothing more is heard; there must be a recall."""
        ends = (self._ends(r, seen) for recalls in self._open.values() for r in recalls.values())
        return min(ends)

    def _ends(self, recall: Recall[_M], seen: Callable[[int], float]) -> float:
        if recall.everything:
            return recall.sent + recall.lease_s
        return min(recall.sent, seen(recall.session)) + recall.lease_s

    def _close(self, recall: Recall[_M]) -> list[Waiting]:
        recalls = self._open[recall.session]
        del recalls[recall.number]
        if not recalls:
            del self._open[recall.session]
        if recall.everything:
            self._everything.remove(recall)
        done: list[Waiting] = []
        for change in recall.changes:
            change.recalls -= 1
            if not change.recalls:
                done.append(change)
        return done
