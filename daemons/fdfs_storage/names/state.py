"""The state of a volume's tree: what the records of the log, applied in order, have made of it.

`State.apply` is a function of the state and the record alone: no clock, no chance, no file. A
change that the state does not allow raises StatusError *before* anything is written, so a batch
can go on with the next one. What a change does to object files is not done here but by
`fdfs_storage.names.effects`.

One thread uses it. Ids that count up (inodes, garbage rows) are kept in memory while a
transaction is open and written once, with the position, when it ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from fdfs_storage.names import content, granted, namespace, schema
from fdfs_storage.names.parents import Parents
from fdfs_storage.names.results import Results
from fdfsfuse.core.names_log import Position
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names import Attr
from fdfsfuse.proto.names_record import Change

_UNSETTLED_MAX = 256
_DROPPED = "the transaction is gone"
"""SQLite ends one by itself on some errors of the disk."""

Handler = Callable[["State", int, Change, Any], Any]
HANDLERS: dict[type, Handler] = {
    names.Create: namespace.create,
    names.Remove: namespace.remove,
    names.Rename: namespace.rename,
    names.Link: namespace.link,
    names.SetAttr: namespace.set_attr,
    names_record.AdoptObject: namespace.adopt,
    names_record.PutXattr: content.put_xattr,
    names_record.PutContent: content.put_content,
    names_record.MakePending: content.make_pending,
    names_record.DropPending: content.drop_pending,
    names_record.Resize: content.resize,
    names_record.StartSession: content.start_session,
    names_record.EndSession: content.end_session,
    names_record.ForgetSessions: content.forget_sessions,
    names_record.Collect: content.collect,
    names_record.Forget: content.forget,
    names_record.ObjectDeleted: content.object_deleted,
    names_record.ObjectChanged: content.object_changed,
    names_record.ObjectRenamed: content.object_renamed,
    names.ReserveInodes: granted.reserve_inodes,
    names_record.MakeFile: granted.make_file,
}

_IN_PARENTS = frozenset((names.Create, names_record.MakeFile, names.Remove, names.Rename))
"""Changes that read and change directories by way of `Parents` alone."""


class StateDamaged(FdfsError):
    """The database does not hold what it must; the text says what."""


class State:
    """The tree as the writing connection sees it.

    Attributes:
        db: the writing connection.
        position: of the last record applied (in the open transaction, if there is one).
        next_ino: the inode number that `new_ino` will return.
        inodes: how many there are.
        volume_id: 32 hex digits, the same for every storage of the volume.
        in_batch: a batch is open, so `db` shows more than is committed.
        unsettled: batches that other connections do not see yet.
        results: the stored answers of requests.
        parents: the directories in which the open batch changes entries.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        """Take over *db*, which `schema.create` has filled. Raises StateDamaged."""
        self.db = db
        db.execute(schema.INODE_BLOCKS)
        row = db.execute(
            "SELECT version, volume_id, view, applied, next_ino, next_garbage FROM meta"
        ).fetchone()
        if row is None or row[0] != schema.SCHEMA_VERSION:
            raise StateDamaged("the names database has no or another version")
        self.volume_id: str = row[1]
        self.position = Position(row[2], row[3])
        self.next_ino: int = row[4]
        self._next_garbage: int = row[5]
        self.inodes: int = db.execute("SELECT count(*) FROM inode").fetchone()[0]
        self.results = Results(db)
        self.parents = Parents(db)
        self._read: Attr | None = None
        self._settled = self._counters()
        self.in_batch = False
        self.unsettled = 0

    # --- transactions -----------------------------------------------------------------------

    def _counters(self) -> tuple[Position, int, int, int]:
        return self.position, self.next_ino, self._next_garbage, self.inodes

    def begin(self) -> None:
        """Open a batch; what is applied from now on is seen by nobody else yet.

        Raises:
            sqlite3.Error: it cannot be done, or the batches before were dropped: see `rollback`.
        """
        if not self.db.in_transaction:
            if self.unsettled:
                raise sqlite3.OperationalError(_DROPPED)
            self.db.execute("BEGIN IMMEDIATE")
        self.in_batch = True

    def commit(self, *, lazily: bool = False) -> None:
        """End the batch: what was applied counts.

        Args:
            lazily: leave the transaction open, as writing the pages of every small change costs
                more than the change itself. Until `settle` ends it, other connections do not see
                the changes, and a restart has to replay them.
        """
        self.parents.settle()
        self.results.commit_batch()
        if lazily and self.unsettled < _UNSETTLED_MAX:
            self.unsettled += 1
        else:
            self._end_transaction()
        self.in_batch = False

    def settle(self) -> None:
        """Show all connections what was applied. Not while a batch is open.

        Raises:
            sqlite3.Error: it could not be done now; nothing is lost.
        """
        if self.unsettled:
            self._end_transaction()

    def _end_transaction(self) -> None:
        if not self.db.in_transaction:
            # The position alone must never reach the database.
            raise sqlite3.OperationalError(_DROPPED)
        self.results.write()
        self.db.execute(
            "UPDATE meta SET view = ?, applied = ?, next_ino = ?, next_garbage = ?",
            (self.position.view, self.position.index, self.next_ino, self._next_garbage),
        )
        self.db.execute("COMMIT")
        self.results.written()
        self._settled = self._counters()
        self.unsettled = 0

    def end_unchanged(self) -> None:
        """End a batch in which nothing was applied."""
        self.in_batch = False
        self.parents.drop()
        if not self.unsettled:
            self.db.execute("ROLLBACK")

    def rollback(self) -> bool:
        """Undo what was applied since `begin`.

        Returns:
            False if earlier batches, which were not settled, are undone as well: they have to be
            applied again, from the log. (A savepoint per batch would cost more than its changes.)
        """
        whole = not self.unsettled
        self._read = None
        self.in_batch = False
        self.unsettled = 0
        self.results.drop()
        self.parents.drop()
        self.position, self.next_ino, self._next_garbage, self.inodes = self._settled
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        return whole

    # --- applying ---------------------------------------------------------------------------

    def apply(self, position: Position, change: Change) -> tuple[bytes, Any]:
        """Carry out the record at *position*: (the encoded answer, what was encoded).

        Raises:
            StatusError: the state does not allow it; nothing has changed, the position neither.
        """
        kind = type(change.op)
        if kind not in _IN_PARENTS:
            self.parents.settle()
        before, self.position = self.position, position
        try:
            outcome = HANDLERS[kind](self, position.index, change, change.op)
        except StatusError:
            self.position = before
            raise
        finally:
            self._read = None
        answer = names.encode(outcome)
        if change.id:
            self.results.add(change.session, change.id, change.done_below, answer)
        return answer, outcome

    def get_attr(self, ino: int) -> Attr:
        """The attributes of an inode. Raises ESTALE.

        What a change was decided by is not read again to apply it.
        """
        if self._read is None or self._read.ino != ino:
            self._read = namespace.get_attr(self.db, ino)
        return self._read

    def has_ended(self, session: int) -> bool:
        """Whether the end of the session was recorded."""
        row = self.db.execute("SELECT ended FROM session WHERE session = ?", (session,)).fetchone()
        return row is None or bool(row[0])

    def new_ino(self) -> int:
        """An inode number never used before."""
        ino = self.next_ino
        self.next_ino = ino + 1
        self.inodes += 1
        return ino

    def add_garbage(self, ino: int, file_id: str | None) -> None:
        """Note an object (or, with None, the orphan *ino*) that may be deleted some time."""
        self.db.execute(
            "INSERT INTO garbage VALUES (?, ?, ?, 0)", (self._next_garbage, ino, file_id)
        )
        self._next_garbage += 1
