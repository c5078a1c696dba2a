"""What requests that changed something were answered, for clients that ask again.

An answer is recorded in the transaction of its change, but only when that transaction ends: by
then most clients have said (``done_below``) that they have got most of theirs, and these are never
written.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_PRUNE_EVERY: Final = 32
"""Answers that a session no longer needs are removed after so many of its requests."""


class _Answers:
    """The answers of one session that are not in the table yet."""

    __slots__ = ("by_id", "done_below", "prune_at")

    def __init__(self) -> None:
        self.by_id: dict[int, bytes] = {}
        self.done_below = 0
        self.prune_at = _PRUNE_EVERY

    def add(self, number: int, done_below: int, answer: bytes) -> None:
        self.by_id[number] = answer
        if done_below > self.done_below:
            self.done_below = done_below

    def follow(self, later: _Answers) -> None:
        """*later* are of batches after these."""
        self.by_id.update(later.by_id)
        self.done_below = max(self.done_below, later.done_below)
        if len(self.by_id) >= self.prune_at:
            self.prune()
            self.prune_at = len(self.by_id) + _PRUNE_EVERY

    def prune(self) -> None:
        below = self.done_below
        self.by_id = {number: answer for number, answer in self.by_id.items() if number >= below}


class Results:
    """The table ``result`` of *db*, and what will be written to it.

    *Committed* is what `commit_batch` was called for; until `written` it is kept here as well.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._batch: dict[int, _Answers] = {}
        self._committed: dict[int, _Answers] = {}
        self._removed_below: dict[int, int] = {}

    def add(self, session: int, number: int, done_below: int, answer: bytes) -> None:
        """Note an answer of the open batch."""
        answers = self._batch.get(session)
        if answers is None:
            answers = self._batch[session] = _Answers()
        answers.add(number, done_below, answer)

    def find(self, session: int, number: int) -> bytes | None:
        """What a request was answered, be it in the open batch."""
        answers = self._batch.get(session)
        if answers is not None and number in answers.by_id:
            return answers.by_id[number]
        return self.find_committed(self._db, session, number)

    def find_committed(self, db: sqlite3.Connection, session: int, number: int) -> bytes | None:
        """What a request was answered in a batch that is over; *db* sees those that are written."""
        answers = self._committed.get(session)
        if answers is not None and number in answers.by_id:
            return answers.by_id[number]
        row = db.execute(
            "SELECT answer FROM result WHERE session = ? AND id = ?", (session, number)
        ).fetchone()
        return None if row is None else row[0]

    def commit_batch(self) -> None:
        """The open batch counts."""
        for session, new in self._batch.items():
            answers = self._committed.get(session)
            if answers is None:
                self._committed[session] = new
            else:
                answers.follow(new)
        self._batch = {}

    def write(self) -> None:
        """Put what is still needed into the table; the transaction is about to end."""
        db = self._db
        for session, answers in self._committed.items():
            answers.prune()
            rows = [(session, number, answer) for number, answer in answers.by_id.items()]
            db.executemany("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", rows)
            below = answers.done_below
            if below >= self._removed_below.get(session, 0) + _PRUNE_EVERY:
                db.execute("DELETE FROM result WHERE session = ? AND id < ?", (session, below))
                self._removed_below[session] = below

    def written(self) -> None:
        """The transaction has ended."""
        self._committed.clear()

    def drop(self) -> None:
        """The whole transaction is undone."""
        self._batch.clear()
        self._committed.clear()
        self._removed_below.clear()

    def forget(self, session: int) -> None:
        """Nobody will ask for the answers of this session any more."""
        self._committed.pop(session, None)
        self._removed_below.pop(session, None)
        self._db.execute("DELETE FROM result WHERE session = ?", (session,))
