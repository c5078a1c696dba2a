"""Changes that plain FastDFS clients make to named objects by their file ids.

The store reports each change after it was made. A change of an object that belongs to the tree
becomes a record in the log. Deleting an object removes its names. Other changes, of metadata too,
give the inode the new size and time; they are gathered for a moment, as a client that appends often
would otherwise cause a record each time. An appender that becomes a normal file stays the object of
its inode, under its new file id. If the storage dies before it has recorded a change, that is found
at the next start: deletions at the end of the binlog, other sizes by looking at the files
(`Housekeeping.reconcile`).
"""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage.names.checks import fail
from fdfs_storage.names.engine import Engine
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.prepare import Preparer
from fdfs_storage.names.reads import Reads
from fdfs_storage.names.work import Work
from fdfs_storage.paths import master_location
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto import names_record
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location

if TYPE_CHECKING:
    import sqlite3

    from fdfsfuse.proto.names_record import Op

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.05
_CHANGES: Final = (ops.APPEND, ops.MODIFY, ops.TRUNCATE, ops.UPDATE)


class ByIdChanges:
    """Turns changes by plain clients into records."""

    def __init__(self, engine: Engine, reads: Reads, objects: Objects, preparer: Preparer) -> None:
        self._engine = engine
        self._reads = reads
        self._objects = objects
        self._preparer = preparer
        self._changed: set[str] = set()
        self._wake = trio.Event()

    def observe(self, op: str, location: Location, other: Location | None) -> None:
        """A change in the store (see `fdfs_storage.store.Observer`)."""
        if self._objects.own:
            return
        # Replaying metadata of ours over that of the client would undo what it was told is done.
        self._engine.settle()
        kind = op.upper()  # in lower case: made on another storage of the group
        if location.base.endswith(METADATA_SUFFIX):
            # Mounts keep xattrs until they are told of a change, as they keep content.
            location, kind = master_location(location), ops.MODIFY
            self._objects.metadata_changed(location.name)
        if kind == ops.RENAME and other is not None:
            if self._engine.is_busy or self._reads.knows_object(other.name):
                self._rename(other.name, location.name)
            return
        # What is being applied right now may be giving the object its name.
        if not (self._engine.is_busy or self._reads.knows_object(location.name)):
            return
        if kind == ops.DELETE:
            self._delete(location.name)
        elif kind in _CHANGES:
            self._changed.add(location.name)
            self._wake.set()

    def _delete(self, file_id: str) -> None:
        self._submit(file_id, names_record.ObjectDeleted(file_id))

    def _rename(self, old: str, new: str) -> None:
        self._submit(old, names_record.ObjectRenamed(old, new))

    def _submit(self, file_id: str, op: Op) -> None:
        def make() -> Op:
            _require_known(self._engine.state.db, file_id)
            return op

        def reply(status: int, answer: bytes) -> None:
            if status and status != errno.ENOENT:
                logger.error("%s was not noted of the object %s: %d", op, file_id, status)

        self._engine.submit(Work(make, reply))

    async def run(self) -> None:
        """Record changes of size and time until cancelled."""
        self._find_missed()
        while True:
            await self._wake.wait()
            await trio.sleep(GATHER_S)
            self._wake = trio.Event()
            changed, self._changed = self._changed, set()
            for file_id in changed:
                try:
                    await self._engine.change(partial(self._preparer.object_changed, file_id))
                except StatusError as exc:
                    logger.error("a change of %s by its id was not noted: %s", file_id, exc)

    def _find_missed(self) -> None:
        """Deletions and renames at the end of the binlog that no record has noted."""
        for record in self._objects.store.binlog.tail():
            if record.name.endswith(METADATA_SUFFIX):
                continue
            kind = record.op.upper()
            if kind == ops.DELETE and self._is_gone(record.name):
                logger.info("%s was deleted by its id", record.name)
                self._delete(record.name)
            elif kind == ops.RENAME and self._is_gone(record.other_name):
                logger.info("%s was renamed to %s", record.other_name, record.name)
                self._rename(record.other_name, record.name)

    def _is_gone(self, file_id: str) -> bool:
        return self._reads.has_inode(file_id) and not self._objects.exists(file_id)


def _require_known(db: sqlite3.Connection, file_id: str) -> None:
    """ENOENT when the object is none of ours, so that no record is written for it."""
    for table in ("inode", "pending", "garbage"):
        if db.execute(f"SELECT 1 FROM {table} WHERE file_id = ?", (file_id,)).fetchone():
            return
    raise fail(errno.ENOENT)
