"""Grants: which session may make files in a directory without asking for each.

While only one session knows of a directory, nobody can tell whether the storage has been told of
the files in it. The *grant* of a directory makes sure that this stays so. Before another session is
told of the directory, or changes it, the grant is recalled, and the other session waits until the
first one has told the storage of all its files there, or has lost its lease (see
`fdfsfuse.core.holds.Recalls`).

Only decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fdfsfuse.core.holds import Waiting


class Revocation(Waiting):
    """The recall of grants of one session.

    Attributes:
        inos: the directories; empty for a session found after a restart, whose are not known.
        resume: to be called when the recall is over.
    """

    __slots__ = ("inos", "resume", "session")

    def __init__(self, session: int) -> None:
        super().__init__()
        self.session = session
        self.inos: list[int] = []
        self.resume: list[Callable[[], None]] = []


@dataclass(slots=True)
class _Grant:
    session: int
    revocation: Revocation | None = None


class Grants:
    """The grants by directory, oldest first.

    Args:
        limit: most grants that should be given; `give_up` recalls the oldest beyond it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._granted: dict[int, _Grant] = {}
        self._count: Counter[int] = Counter()
        self._unknown: dict[int, Revocation] = {}

    def others_have_any(self, session: int) -> bool:
        """Whether a session besides this one may have a grant."""
        if len(self._granted) > self._count[session]:
            return True
        unknown = self._unknown
        return bool(unknown) and any(holder != session for holder in unknown)

    def __len__(self) -> int:
        return len(self._granted)

    def grant(self, ino: int, session: int) -> bool:
        """Grant a directory to the only session that holds it. Returns whether that can be done."""
        found = self._granted.get(ino)
        if found is not None:
            return found.session == session and found.revocation is None
        # A session that does not confirm keeps what is given up for a lease.
        if self._unknown or len(self._granted) >= 2 * self.limit:
            return False
        self._add(ino, session)
        return True

    def made(self, ino: int, session: int) -> None:
        """Grant a directory that the session has just made, and of which it alone knows."""
        self._add(ino, session)

    def _add(self, ino: int, session: int) -> None:
        self._granted[ino] = _Grant(session)
        self._count[session] += 1

    def _remove(self, ino: int) -> None:
        session = self._granted.pop(ino).session
        self._count[session] -= 1
        if not self._count[session]:
            del self._count[session]

    def removed(self, ino: int) -> None:
        """Drop the grant of a directory that was removed. A recall under way ends by itself."""
        grant = self._granted.get(ino)
        if grant is not None and grant.revocation is None:
            self._remove(ino)

    def found(self, session: int) -> Revocation:
        """Note, after a restart, that the session may have any grant.

        Returns the recall of all its grants; when that is over it has none.
        """
        revocation = self._unknown[session] = Revocation(session)
        return revocation

    def is_unknown(self, session: int) -> bool:
        """Whether it is not known which grants the session has."""
        return session in self._unknown

    def in_the_way(
        self, session: int, inos: Iterable[int], *, known_only: bool = False
    ) -> tuple[Revocation | None, list[Revocation]]:
        """The grants of others that keep *session* from looking at, or changing, these inodes.

        Args:
            known_only: grants that a session may have from before a restart do not count.

        Returns:
            (what to wait for before looking again, revocations to be sent now).
        """
        waits: Revocation | None = None
        new: dict[int, Revocation] = {}
        if self._unknown and not known_only:
            for holder, revocation in self._unknown.items():
                if holder != session:
                    waits = revocation
        for ino in inos:
            grant = self._granted.get(ino)
            if grant is None or grant.session == session:
                continue
            waits = self._revoke(ino, grant, new)
        return waits, list(new.values())

    def _revoke(self, ino: int, grant: _Grant, new: dict[int, Revocation]) -> Revocation:
        if grant.revocation is None:
            revocation = new.get(grant.session)
            if revocation is None:
                revocation = new[grant.session] = Revocation(grant.session)
            revocation.inos.append(ino)
            grant.revocation = revocation
        return grant.revocation

    def give_up(self, count: int) -> list[Revocation]:
        """Begin to recall up to *count* of the oldest grants, if there are too many."""
        new: dict[int, Revocation] = {}
        if len(self._granted) > self.limit:
            for (ino, grant), _ in zip(self._granted.items(), range(count), strict=False):
                self._revoke(ino, grant, new)
        return list(new.values())

    def ended(self, revocation: Revocation) -> None:
        """End a recall: the session has confirmed it, or has lost its lease."""
        for ino in revocation.inos:
            self._remove(ino)
        if self._unknown.get(revocation.session) is revocation:
            del self._unknown[revocation.session]

    def drop(self, session: int) -> None:
        """Drop the grants of a session that has ended. Recalls under way end by themselves."""
        gone = [
            ino
            for ino, grant in self._granted.items()
            if grant.session == session and grant.revocation is None
        ]
        for ino in gone:
            self._remove(ino)
