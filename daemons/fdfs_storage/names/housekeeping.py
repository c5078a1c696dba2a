"""What the names engine does in the background: leases, garbage, checkpoints, trimming.

Deleting, in three steps, each of which may be the last before a crash:

1. a `Collect` record marks the rows of what is due; from then on nothing can name these objects;
2. the object files are deleted;
3. a `Forget` record removes the rows. Marked rows that are found at start go on with step 2.

What is due: rows of the garbage table that are older than the grace period (counted anew after a
restart, so that mounts can come back and say what they hold) and whose inode no session holds.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sqlite3
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final

import trio

from fdfs_storage.names.engine import Engine
from fdfs_storage.names.log import Log
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.prepare import Preparer
from fdfs_storage.names.sessions import Sessions
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names_record

logger = logging.getLogger(__name__)

RESULTS_KEPT_S: Final = 600.0
"""Outcomes of an ended session can be asked for this long."""
_TICK_S: Final = 1.0
_RETRY_S: Final = 30.0
_COLLECT_MAX: Final = 256
_TURN: Final = 16
"""Objects that are deleted before others on the loop get their turn: about a millisecond."""
_POLL_MAX: Final = 4096
_WAL_SOFT: Final = 8 << 20
_WAL_HARD: Final = 64 << 20
_SESSION_BATCH: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(path: str) -> None:
    """Write everything of the file system of *path* to the disk. Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


class Housekeeping:
    """The background service of a tree.

    Args:
        db: a connection of its own, for the loop's thread.
        checkpoint_db: another one, for checkpoints in a thread: they would block its users.
        directory: the names directory.
        grace_s: how long garbage is kept; at least the lease.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        checkpoint_db: sqlite3.Connection,
        directory: Path,
        engine: Engine,
        log: Log,
        sessions: Sessions,
        objects: Objects,
        preparer: Preparer,
        grace_s: float,
    ) -> None:
        self._db = db
        self._checkpoint_db = checkpoint_db
        self._wal = directory / "state.db-wal"
        self._database = directory / "state.db"
        self._engine = engine
        self._log = log
        self._sessions = sessions
        self._objects = objects
        self._preparer = preparer
        self._grace_s = max(grace_s, sessions.lease_s)
        self._due: deque[tuple[float, int, int]] = deque()
        self._seen = 0
        self._tick_s = min(_TICK_S, self._grace_s / 4, sessions.lease_s / 4)

    async def run(self) -> None:
        """End sessions and collect garbage until cancelled."""
        await self._drop_pending()
        while True:
            due = self._sessions.clock() + self._tick_s
            await trio.sleep(self._tick_s)
            late_s = self._sessions.clock() - due
            if late_s > self._tick_s:
                # This process did not run: what the mounts have sent meanwhile is still unread.
                self._sessions.excuse(late_s)
            try:
                await self._end_sessions()
                await self.collect()
            except (StatusError, OSError) as exc:
                if self._engine.broken:
                    return
                logger.warning("cleaning up has to wait: %s", exc)

    async def _drop_pending(self) -> None:
        """Let go of objects that the storage made for operations which ended with its last run."""
        if not self._db.execute("SELECT 1 FROM pending WHERE session = 0 LIMIT 1").fetchone():
            return
        try:
            await self._engine.change(names_record.EndSession(0))
        except StatusError as exc:
            # Not tried again: by then operations of this run may have made such objects.
            logger.warning("objects of unfinished operations stay until the next start: %s", exc)

    async def reconcile(self) -> None:
        """Bring the sizes of inodes in line with objects that were changed in place; once.

        A change that was not committed before a crash, or one by a plain client that the engine
        did not see, is in the file already. Tried again while it cannot be recorded, for example
        because the disk of the log is full.
        """
        while not self._engine.broken:
            try:
                await self._record_sizes()
                return
            except (StatusError, OSError) as exc:
                logger.warning(
                    "sizes that have changed are recorded in %g s at the earliest: %s",
                    _RETRY_S,
                    exc,
                )
            await trio.sleep(_RETRY_S)

    async def _record_sizes(self) -> None:
        self._engine.settle()
        rows = self._db.execute(
            "SELECT file_id, size FROM inode WHERE in_place = 1 ORDER BY ino"
        ).fetchall()
        for file_id in await trio.to_thread.run_sync(self._find_changed, rows):
            self._engine.settle()
            if self._objects.exists(file_id):
                logger.info("%s has another size on the disk than was recorded", file_id)
                # Recorded is what it has then: a mount may be writing to it.
                await self._engine.change(partial(self._preparer.object_changed, file_id))
            elif self._db.execute("SELECT 1 FROM inode WHERE file_id = ?", (file_id,)).fetchone():
                logger.error(
                    "the object %s is missing, so its file cannot be read (fdfs path tells its "
                    "name): restore it from another storage, or remove the file",
                    file_id,
                )

    def _find_changed(self, rows: list[tuple[str, int]]) -> list[str]:
        """Objects whose files cannot be found, or have not the size in *rows*. For a thread."""
        changed: list[str] = []
        for file_id, size in rows:
            try:
                same = self._objects.stat(file_id).st_size == size
            except StatusError:
                same = False
            if not same:
                changed.append(file_id)
        return changed

    # --- sessions ---------------------------------------------------------------------------

    async def _end_sessions(self) -> None:
        for session in self._sessions.expired():
            connection = session.connection
            if connection is not None and connection.waiting:
                continue  # it waits for answers of ours, so it need not have sent anything
            logger.info("session %d of %s ended: not heard of", session.number, session.client)
            await session.commit_end(self._engine)
        old = self._sessions.forgettable(RESULTS_KEPT_S)[:_SESSION_BATCH]
        if old:
            await self._engine.change(names_record.ForgetSessions(old))

    # --- garbage ----------------------------------------------------------------------------

    async def collect(self) -> None:
        """Look for new garbage and delete what is due."""
        self._engine.settle()
        now = self._sessions.clock()
        rows = self._db.execute(
            "SELECT id, ino FROM garbage WHERE id > ? ORDER BY id LIMIT ?", (self._seen, _POLL_MAX)
        ).fetchall()
        for row_id, ino in rows:
            self._seen = row_id
            self._due.append((now + self._grace_s, row_id, ino))
        due: list[int] = []
        held: list[tuple[float, int, int]] = []
        while self._due and self._due[0][0] <= now and len(due) < _COLLECT_MAX:
            entry = self._due.popleft()
            if self._sessions.is_held(entry[2]):
                held.append((now + self._grace_s, entry[1], entry[2]))
            else:
                due.append(entry[1])
        self._due.extend(held)
        if due:
            try:
                await self._delete(due)
            except (StatusError, OSError):
                self._due.extend((now + self._grace_s, row_id, 0) for row_id in due)
                raise

    async def _delete(self, rows: list[int]) -> None:
        await self._engine.change(names_record.Collect(rows))
        marks = ",".join("?" * len(rows))
        found = self._db.execute(
            f"SELECT id, file_id FROM garbage WHERE collected = 1 AND id IN ({marks})", rows
        ).fetchall()
        deleted: list[tuple[int, str]] = []
        for number, (row_id, file_id) in enumerate(found):
            if number % _TURN == _TURN - 1:
                await trio.lowlevel.checkpoint()
            try:
                self._objects.delete(file_id)
            except StatusError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                logger.error("garbage %s cannot be deleted: %s", file_id, exc)
            deleted.append((row_id, file_id))
        if deleted:
            await self._engine.change(
                names_record.Forget([r for r, _ in deleted], [f for _, f in deleted])
            )

    # --- files ------------------------------------------------------------------------------

    async def maintain_files(self) -> None:
        """Keep WAL and log short until cancelled."""
        while True:
            await trio.sleep(_TICK_S)
            try:
                await self.checkpoint()
                await self.trim()
            except (OSError, sqlite3.Error) as exc:
                logger.warning("the names log cannot be trimmed now: %s", exc)

    async def checkpoint(self, soft: int = _WAL_SOFT, hard: int = _WAL_HARD) -> None:
        """Copy the WAL into the database when it has grown."""
        size = self._wal_size()
        if size < soft:
            return
        await trio.to_thread.run_sync(self._checkpoint, "PASSIVE")
        if size >= hard:
            # Under a steady load the WAL never starts anew by itself; between two batches it can.
            async with self._engine.paused():
                await trio.to_thread.run_sync(self._checkpoint, "TRUNCATE")

    def _wal_size(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self, mode: str) -> None:
        self._checkpoint_db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()

    async def trim(self) -> None:
        """Remove segments of the log whose records are all in a synced state."""
        self._engine.settle()
        if self._engine.state.unsettled:
            return
        applied = self._engine.committed
        old = self._log.trimmable(applied)
        if not old:
            return
        await trio.to_thread.run_sync(self._sync_state)
        await trio.to_thread.run_sync(self._log.trim, old)
        logger.debug("trimmed the names log up to record %d", applied)

    def _sync_state(self) -> None:
        """Make the committed state and the objects of its records durable. Runs in a thread."""
        for path in (self._wal, self._database):
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        store = self._objects.store
        for index in range(store.path_count):
            sync_file_system(store.data_directory(index))
        store.binlog.sync()
