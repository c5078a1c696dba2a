"""Recalling what sessions hold, before a change by another session is acknowledged.

A committed change goes through `Callbacks.committed` before it is answered. Other sessions that
hold what it has touched get one `names.Recall` each for the whole batch, and the answer waits until
they have confirmed it; `fdfsfuse.core.holds` says when else the wait ends. Requests that read do
not wait for recalls: they show the committed state.

After a restart it is not known what the sessions hold. Each is sent a recall of everything as soon
as it has connected again, and changes by others wait for that, or for one lease from the start.

Requests that read do wait for *grants* (`fdfsfuse.core.grants`). While a session has the grant of a
directory, it may have made files there of which the storage does not know. So before another
session is told anything of the directory, the grant is recalled.
"""

from __future__ import annotations

import logging
import math
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from fdfs_storage.names.granted import under_a_grant
from fdfs_storage.names.touched import Touched, touched
from fdfsfuse.core.grants import Grants, Revocation
from fdfsfuse.core.holds import Holds, Recalls, Waiting
from fdfsfuse.proto import names

if TYPE_CHECKING:
    from fdfs_storage.names.sessions import Session, Sessions
    from fdfs_storage.names.work import Applied, Reply, Work

logger = logging.getLogger(__name__)

HOLDS_MAX: Final = 400_000
"""Inodes that all sessions together may hold: about 40 MB of memory."""
_GIVE_UP: Final = 1024
"""How many of the oldest are recalled at a time if there are more."""
GRANTS_MAX: Final = 10_000
_GRANTS_GIVEN_UP: Final = 100


class Deferred(Waiting):
    """An answer that is given when all recalls that it waits for are over.

    Attributes:
        key: (session, request id).
        replies: who gets the answer: the request, and repetitions of it.
        answer: (status, encoded answer), once it is known.
    """

    __slots__ = ("answer", "key", "replies")

    def __init__(self, key: tuple[int, int], reply: Reply) -> None:
        super().__init__()
        self.key = key
        self.replies = [reply]
        self.answer: tuple[int, bytes] = (0, b"")


class _Message:
    """What one session has to drop because of a batch, and the changes that wait for it.

    The dicts are ordered sets.
    """

    __slots__ = ("attrs", "changes", "content", "names")

    def __init__(self) -> None:
        self.attrs: dict[int, None] = {}
        self.content: dict[int, None] = {}
        self.names: dict[tuple[int, bytes], None] = {}
        self.changes: dict[Deferred, None] = {}

    def make(self, number: int) -> names.Recall:
        return names.Recall(number, list(self.attrs), list(self.content), list(self.names), [])


def _unused(inos: list[int], number: int) -> names.Recall:
    return names.Recall(number, [], [], [], inos)


def _revoked(inos: list[int], number: int) -> names.Recall:
    return names.Recall(number, [], [], [], [], grants=inos)


class Callbacks:
    """See the module.

    Args:
        flush: sends the answers that were queued in the connections.
    """

    def __init__(
        self, sessions: Sessions, flush: Callable[[], None], holds_max: int = HOLDS_MAX
    ) -> None:
        self._sessions = sessions
        self._flush = flush
        self._holds = Holds(holds_max)
        self._recalls: Recalls[names.Recall] = Recalls()
        self.grants = Grants(GRANTS_MAX)
        self._deferred: dict[tuple[int, int], Deferred] = {}
        self._given_up: list[tuple[Waiting, int]] = []
        self._wake = trio.Event()
        self._next_end = math.inf

    # --- holding ----------------------------------------------------------------------------

    def hold(self, session: Session, inos: Collection[int]) -> bool:
        """Note that an answer tells the session of these inodes.

        Returns whether other sessions may hold one of them.
        """
        if not session.caches:
            return self._holds.any_others(inos, session.number)
        others = self._holds.add(inos, session.number)
        if self._recalls:
            for ino in inos:
                self._recalls.held_again(session.number, ino)
        if len(self._holds) > self._holds.limit:
            self._give_up_oldest()
        return others

    def _give_up_oldest(self) -> None:
        """Recall the oldest inodes, unless enough recalls of that kind are under way.

        Sessions that do not answer keep theirs for a lease. Recalling more and more meanwhile would
        take more memory than what is held.
        """
        self._given_up = [(waiting, n) for waiting, n in self._given_up if waiting.recalls]
        if len(self._holds) - sum(n for _, n in self._given_up) <= self._holds.limit:
            return
        unused: dict[int, list[int]] = {}
        for ino in self._holds.oldest(_GIVE_UP):
            for number in self._holds.holders(ino):
                session = self._sessions.get(number)
                if session is None:
                    self._holds.release(ino, number)
                else:
                    unused.setdefault(number, []).append(ino)
        waiting = Waiting()
        for number, inos in unused.items():
            self._send(number, partial(_unused, inos), inos, (waiting,))
        self._given_up.append((waiting, len(set().union(*unused.values()))))

    # --- grants -----------------------------------------------------------------------------

    def grant(self, session: Session, ino: int) -> bool:
        """Grant a directory to the session, unless another session may know of it.

        To be called in order with the changes, when those before it are committed: only then is it
        known who holds the directory because of them.

        Returns whether the grant is given.
        """
        number = session.number
        if self._sessions.get(number) is None:
            return False  # its end was among those changes
        for other in self._holds.others(ino, number):
            if self._sessions.get(other) is not None:
                return False
            self._holds.release(ino, other)
        if self._recalls.anything_unknown(number) or not self.grants.grant(ino, number):
            return False
        self._revoke(self.grants.give_up(_GRANTS_GIVEN_UP))
        return True

    def wait_for_grants(
        self,
        session: int,
        inos: Iterable[int],
        resume: Callable[[], None],
        *,
        known_only: bool = False,
    ) -> bool:
        """Recall the grants that other sessions have of these directories.

        Args:
            session: whose request needs the directories.
            inos: inodes, directories or not.
            resume: called when the recalls are over, to try again; must not raise.
            known_only: see `Grants.in_the_way`.

        Returns:
            Whether there are such grants, so that *resume* will be called.
        """
        if not self.grants.others_have_any(session):
            return False
        waits, new = self.grants.in_the_way(session, inos, known_only=known_only)
        self._revoke(new)
        if waits is None:
            return False
        waits.resume.append(resume)
        return True

    def _revoke(self, revocations: Iterable[Revocation]) -> None:
        for revocation in revocations:
            make = partial(_revoked, revocation.inos)
            self._send(revocation.session, make, (), (revocation,))

    # --- changes ----------------------------------------------------------------------------

    def committed(self, applied: Sequence[Applied]) -> dict[Work, Deferred]:
        """Recall what a batch, which was just committed, has touched.

        To be called before anything else happens on the loop.

        Returns:
            The changes whose answers have to wait.
        """
        messages: dict[int, _Message] = {}
        deferred: dict[Work, Deferred] = {}
        for item in applied:
            found = touched(item.change.op, item.outcome)
            if found is None:
                continue
            op, work = item.change.op, item.work
            session = self._sessions.get(work.session)
            if session is not None:
                known = self.hold(session, found.attrs)
                self._follow(op, item.outcome, session.number)
            else:
                known = self._holds.any_others(found.attrs, work.session)
            if known or self._recalls.anything_unknown(work.session):
                change = deferred[work] = Deferred((work.session, work.id), work.reply)
                self._collect(op, found, change, messages)
        self._revoke(self.grants.give_up(_GRANTS_GIVEN_UP))
        for number, message in messages.items():
            # The storage's own changes (by clients of objects) wait for nobody.
            waiting = [change for change in message.changes if change.key[0]]
            self._send(number, message.make, message.attrs, waiting)
        waits = {work: change for work, change in deferred.items() if change.recalls}
        for change in waits.values():
            self._deferred[change.key] = change
        return waits

    def _follow(self, op: Any, outcome: Any, session: int) -> None:
        """Let grants follow a directory that was made or removed."""
        if type(op) is names.Create:
            if op.ino and stat.S_ISDIR(op.mode):
                self.grants.made(op.ino, session)
        elif type(op) is names.Remove and op.directory:
            self.grants.removed(outcome.ino)

    def _collect(
        self, op: Any, found: Touched, change: Deferred, messages: dict[int, _Message]
    ) -> None:
        own = change.key[0]
        # Nobody else can know of what was made under a grant. If its answer waited for others, and
        # these needed the directory before they can confirm, nothing would ever go on.
        made = self.grants.is_unknown(own) and under_a_grant(op)
        if own and not made:
            self._recalls.attach_to_everything(own, change)
        for ino in found.attrs:
            for number in self._holds.others(ino, own):
                if self._sessions.get(number) is None:
                    self._holds.release(ino, number)
                    continue
                message = messages.get(number)
                if message is None:
                    message = messages[number] = _Message()
                message.changes[change] = None
                message.attrs[ino] = None
                if ino in found.content:
                    message.content[ino] = None
                for name in found.names:
                    if name[0] == ino:
                        message.names[name] = None

    def _send(
        self,
        number: int,
        make: Callable[[int], names.Recall],
        release: Iterable[int],
        changes: Iterable[Waiting],
    ) -> None:
        session = self._sessions.get(number)
        assert session is not None
        now = self._sessions.clock()
        recall = self._recalls.add(
            number, now, session.lease_s, make, release=release, changes=changes
        )
        self._note_end(min(now, session.seen) + session.lease_s)
        if session.connection is not None:
            session.connection.push(recall.message)

    def repeat(self, session: int, number: int, reply: Reply) -> bool:
        """A change is asked for again: *reply*, too, gets the answer that waits. False: none."""
        change = self._deferred.get((session, number))
        if change is None:
            return False
        change.replies.append(reply)
        return True

    def _finish(self, done: Iterable[Waiting]) -> None:
        replied = False
        resumed: list[Callable[[], None]] = []
        for change in done:
            if isinstance(change, Revocation):
                self.grants.ended(change)
                resumed += change.resume
            if not isinstance(change, Deferred):
                continue  # inodes that were given up: `_give_up_oldest` looks by itself
            if self._deferred.pop(change.key, None) is change:
                if (session := self._sessions.get(change.key[0])) is not None:
                    # It was us who kept it waiting, perhaps for as long as its lease.
                    session.seen = self._sessions.clock()
                for reply in change.replies:
                    reply(*change.answer)
                replied = True
        if replied:
            self._flush()
        for resume in resumed:
            resume()

    # --- sessions ---------------------------------------------------------------------------

    def found(self, session: Session, *, has_inodes: bool) -> None:
        """A session was found in the state at the start. *has_inodes*: some are reserved for it."""
        if has_inodes:
            self._recalls.add(
                session.number,
                session.seen,
                session.lease_s,
                lambda number: names.Recall(number, [], [], [], [], all_grants=True),
                changes=(self.grants.found(session.number),),
            )
        self._recalls.add(
            session.number,
            session.seen,
            session.lease_s,
            lambda number: names.Recall(number, [], [], [], [], everything=True),
            everything=True,
        )
        self._note_end(session.seen + session.lease_s)

    def connected(self, session: Session) -> list[names.Recall]:
        """The session was taken up: the recalls that it has to get before all answers."""
        if session.caches:
            return self._recalls.of(session.number)
        self._finish(self._recalls.drop(session.number))
        return []

    def recalled(self, session: Session, message: names.Recalled) -> None:
        """The session has confirmed a recall."""
        released, done = self._recalls.confirm(session.number, message.number)
        for ino in released.difference(message.kept):
            self._holds.release(ino, session.number)
        self._finish(done)

    def ended(self, number: int) -> None:
        """The session has ended."""
        self._holds.forget(number)
        self.grants.drop(number)
        self._finish(self._recalls.drop(number))

    # --- time -------------------------------------------------------------------------------

    def _note_end(self, end: float) -> None:
        """A recall ends at *end* unless it is confirmed: `run` must not sleep for longer."""
        if end < self._next_end:
            self._wake.set()

    async def run(self) -> None:
        """End the waiting for sessions that do not answer, until cancelled."""
        while True:
            self._wake = trio.Event()
            self._next_end = self._recalls.next_end(self._seen) if self._recalls else math.inf
            with trio.move_on_after(max(0.0, self._next_end - self._sessions.clock())):
                await self._wake.wait()
            released, done = self._recalls.expire(self._sessions.clock(), self._seen)
            for number, inos in released:
                for ino in inos:
                    self._holds.release(ino, number)
            self._finish(done)

    def _seen(self, number: int) -> float:
        session = self._sessions.get(number)
        return session.seen if session is not None else float("-inf")
