"""The tree of a volume, open: the engine, what it works on, and what goes on beside it."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage import boot
from fdfs_storage.names import (
    founding,
    granted,
    housekeeping,
    lease_file,
    power_loss,
    schema,
    view_file,
)
from fdfs_storage.names.by_id import ByIdChanges
from fdfs_storage.names.callbacks import Callbacks
from fdfs_storage.names.copies import Copies, CopyGate
from fdfs_storage.names.engine import Engine, EngineBroken
from fdfs_storage.names.former import FormerSessions
from fdfs_storage.names.listing import Listing
from fdfs_storage.names.log import Log
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.operations import Operations
from fdfs_storage.names.outbox import Outbox
from fdfs_storage.names.prepare import Preparer
from fdfs_storage.names.reads import Reads
from fdfs_storage.names.sessions import Session, Sessions
from fdfs_storage.names.state import State, StateDamaged
from fdfs_storage.names.work import Answer, Applied, Work
from fdfs_storage.names.writes import ObjectWriter
from fdfsfuse.core.names_log import Replica
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.fileid import parse_location

if TYPE_CHECKING:
    from fdfs_storage.store import Store

logger = logging.getLogger(__name__)

_TOKEN_SIZE: Final = 16
_CLIENT_MAX: Final = 1024
_SESSIONS_MAX: Final = 10_000
_VERSION_CACHES: Final = 2
_VERSION_IN_SYNC: Final = 6
_VERSION_MADE: Final = 7
_LEASE_MIN_S: Final = 0.1
_RESTART_S: Final = 1.0
_IN_MEMORY: Final = frozenset(
    (
        names_record.StartSession,
        names_record.EndSession,
        names_record.ForgetSessions,
        names_record.AdoptObject,
    )
)
"""Changes that concern what is kept in memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times of the names service, in seconds."""

    lease_s: float = 10.0
    grace_s: float = 30.0


class Tree:
    """A volume's tree, open. Everything that belongs to it hangs here."""

    def __init__(
        self, directory: Path, store: Store, own_id: str, limits: Limits, copies: Copies
    ) -> None:
        """Open *directory*, bringing the state up to the end of the log. Blocks.

        Raises:
            LogDamaged, StateDamaged, ViewFileDamaged, EngineBroken: see there.
            OSError: a file cannot be used.
        """
        self.stored_view = view_file.read(directory)
        view = self.stored_view.view
        if own_id not in view.members:
            # The id of a storage may be its address, and that may change; the tree stays ours.
            logger.warning("the tree was kept by %s, this storage is %s now", view.primary, own_id)
            own_id = view.primary
        if not (directory / founding.DATABASE).exists():
            raise StateDamaged(f"{directory} has no {founding.DATABASE}")
        with ExitStack() as files:
            self._files = files
            path = str(directory / founding.DATABASE)
            self.objects = Objects(store)
            state = State(self._connect(path))
            if state.volume_id != self.stored_view.volume_id:
                raise StateDamaged(f"{directory}: view and state are of different volumes")
            self.state = state
            self.log = Log(directory)
            files.callback(self.log.close)
            replica = Replica(own_id, view, state.position, state.position.index)
            self._copies = copies
            copies.changed = self._tell_in_sync
            gate = CopyGate(copies, store.binlog)
            gate.answered = self._flush
            self.engine = Engine(state, self.log, replica, self.objects, gate)
            applied = state.position.index
            self._replay(own_id)
            self._restore(directory, applied)
            self.engine.on_commit = self._committed
            self.engine.on_answered = self._flush
            self.reads = Reads(self._connect(path), self.objects, state)
            self.sessions = Sessions(limits.lease_s)
            self.callbacks = Callbacks(self.sessions, self._flush)
            self.engine.on_repeat = self.callbacks.repeat
            self.engine.on_apply = self._has_to_wait
            self.engine.is_live = self.sessions.is_live
            self.former = FormerSessions(self.engine, self.sessions, self.reads)
            longest_lease_s = self._load_sessions(directory)
            self.preparer = Preparer(state, self.objects)
            self.operations = Operations(self.engine, self.preparer, self.objects, self.reads)
            listing_reads = Reads(self._connect(path), self.objects)
            self.listing = Listing(
                self._connect(path), listing_reads, self.objects, self.engine.visible
            )
            self.writer = ObjectWriter(self.reads, self.objects, view.number)
            self.housekeeping = housekeeping.Housekeeping(
                self._connect(path),
                self._connect(path),
                directory,
                self.engine,
                self.log,
                self.sessions,
                self.objects,
                self.preparer,
                max(limits.grace_s, longest_lease_s),
            )
            self.by_id = ByIdChanges(self.engine, self.reads, self.objects, self.preparer)
            self.unflushed: set[Outbox] = set()
            self._nursery: trio.Nursery | None = None
            store.changes.observers += [self.listing.observe, self.by_id.observe]
            self._files = files.pop_all()

    def _connect(self, path: str) -> sqlite3.Connection:
        db = schema.connect(path)
        self._files.callback(db.close)
        return db

    def _replay(self, own_id: str) -> None:
        state, count = self.state, 0
        before = state.position.index
        state.begin()
        try:
            for record in self.log.open(state.position):
                self.engine.replay(record)
                count += 1
        except BaseException:
            state.rollback()
            raise
        state.commit()
        self.engine.committed = state.position.index
        if count:
            logger.info("replayed %d records of the names log behind %d", count, before)
        view = self.stored_view.view
        self.engine.replica = Replica(own_id, view, self.log.last, state.position.index)

    def _restore(self, directory: Path, applied: int) -> None:
        """After a boot, look after the objects of records that were applied before it."""
        boot_id = boot.boot_id()
        if power_loss.may_have_lost(directory, boot_id):
            power_loss.restore(self.state.db, self.objects, self.log.retained(applied))
        power_loss.note(directory, boot_id)

    def _load_sessions(self, directory: Path) -> float:
        """Take over the sessions of the state; return the longest lease that one may have."""
        rows = self.state.db.execute(
            "SELECT session, token, client, ended,"
            " (SELECT ifnull(max(id), 0) FROM result WHERE result.session = session.session),"
            " EXISTS (SELECT 1 FROM inode_block WHERE inode_block.session = session.session)"
            " FROM session"
        ).fetchall()
        live = any(not ended for _, _, _, ended, _, _ in rows)
        lease_s = lease_file.longest(directory, self.sessions.lease_s, live=live)
        for number, token, client, ended, high, has_inodes in rows:
            if ended:
                self.sessions.note_ended(number)
            else:
                session = self.sessions.add(number, token, client, high)
                session.lease_s = lease_s
                self.callbacks.found(session, has_inodes=bool(has_inodes))
        return lease_s

    # --- running ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Run engine and background work until cancelled. Raises EngineBroken."""
        failure: EngineBroken | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for service in (
                self.housekeeping.run,
                self.housekeeping.reconcile,
                self.housekeeping.maintain_files,
                self.by_id.run,
                self.listing.run,
                self.callbacks.run,
            ):
                nursery.start_soon(_keep_running, service)
            try:
                await self.engine.run()
            except EngineBroken as exc:
                failure = exc
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the files. The state is brought up to date on the disk as far as that goes."""
        self.engine.settle()
        self._files.close()

    def start_operation(self, work: Work, request: names.ChangeRequest) -> None:
        """Carry out a change that takes steps before it is recorded."""
        if self._nursery is None or self.engine.broken:
            work.reply(names.NOT_PRIMARY, b"")
        else:
            self._nursery.start_soon(self._perform, work, request)

    async def _perform(self, work: Work, request: names.ChangeRequest) -> None:
        try:
            await self.operations.perform(work, request)
        except Exception:
            logger.exception("a change failed: %r", request)
            work.reply(errno.EIO, b"")
        self._flush()

    def _committed(self, applied: Sequence[Applied]) -> Mapping[Work, Answer]:
        """Bring what is kept in memory in line with a committed batch.

        Returns the changes whose answers wait for recalls.
        """
        for position, change, _, _ in applied:
            op = change.op
            if type(op) not in _IN_MEMORY:
                continue
            if isinstance(op, names_record.StartSession):
                self.sessions.add(position.index, op.token, op.client)
            elif isinstance(op, names_record.EndSession):
                self.sessions.end(op.session)
                self.callbacks.ended(op.session)
            elif isinstance(op, names_record.ForgetSessions):
                self.sessions.forget(op.sessions)
            elif isinstance(op, names_record.AdoptObject):
                self.listing.forget(parse_location(op.file_id, self.objects.store.path_count))
        return self.callbacks.committed(applied)

    def _has_to_wait(self, work: Work, op: names_record.Op) -> bool:
        """Whether another session makes files on its own where *op* changes something.

        Not so for the storage's own changes: they concern no names that the session makes.
        """
        if not work.session or not self.callbacks.grants.others_have_any(work.session):
            return False
        inos = granted.changes_in(self.state.db, op)
        # What is from before a restart is told before it is known that there is nothing of others:
        # in the order of sending, and without waiting for those who tell, too.
        known_only = granted.under_a_grant(op)
        submit = partial(self.engine.submit, work)
        return bool(inos) and self.callbacks.wait_for_grants(
            work.session, inos, submit, known_only=known_only
        )

    def check_grantable(self, request: names.Grant) -> None:
        """May a session make files in the directory on its own? StatusError: see `names.Grant`."""
        granted.check_grantable(self.state.db, request.ino)

    def end_turn(self) -> None:
        """All that has arrived was looked at: answer it, the changes together. Never raises."""
        try:
            self._flush()
            self.engine.kick()
        except Exception:
            logger.exception("carrying out changes failed")

    def _flush(self) -> None:
        """Send what the engine's answers have left in the connections."""
        while self.unflushed:
            self.unflushed.pop().flush()

    # --- sessions ---------------------------------------------------------------------------

    async def open_session(self, request: names.OpenSession) -> Session:
        """A new session, or one that is taken up. StatusError SESSION_ENDED, EINVAL, EPERM."""
        if request.version < 1:
            raise StatusError(errno.EINVAL, "version")
        if len(request.token) != _TOKEN_SIZE or len(request.client) > _CLIENT_MAX:
            raise StatusError(errno.EINVAL, "token or client")
        if request.session:
            session = self.sessions.get(request.session)
            if session is None or session.ending:
                raise StatusError(names.SESSION_ENDED)
            if session.token != request.token:
                raise StatusError(errno.EPERM, "token")
            if session.connection is not None:
                session.connection.shutdown()
            session.seen = self.sessions.clock()
            self._settle_terms(session, request)
            return session
        if len(self.sessions) >= _SESSIONS_MAX:
            raise StatusError(errno.EUSERS, "sessions")
        token, client = request.token, request.client
        await self.engine.change(names_record.StartSession(token, client))
        for session in self.sessions:
            if session.token == token and session.client == client:
                self._settle_terms(session, request)
                return session
        raise StatusError(names.SESSION_ENDED)

    def _settle_terms(self, session: Session, request: names.OpenSession) -> None:
        session.caches = request.version >= _VERSION_CACHES
        session.hears_in_sync = request.version >= _VERSION_IN_SYNC
        session.hears_made = request.version >= _VERSION_MADE
        if _LEASE_MIN_S <= request.lease_s < self.sessions.lease_s:
            session.lease_s = request.lease_s

    def space(self, request: names.StatFs) -> names.Space:
        """See `names.StatFs`."""
        space = self.objects.store.total_space()
        return names.Space(
            space.total_bytes, space.free_bytes, space.available_bytes, self.state.inodes
        )

    def in_sync(self) -> names.InSync:
        """Who has all content that sessions are told of now."""
        return names.InSync(sorted(self._copies.members))

    def _tell_in_sync(self) -> None:
        for session in self.sessions:
            if session.connection is not None and session.hears_in_sync:
                session.connection.push(self.in_sync())

    def give_up(self) -> None:
        """Tell all mounts that nothing can be changed here any more."""
        for session in self.sessions:
            if session.connection is not None:
                session.connection.push(names.NotPrimaryAnyMore())


async def _keep_running(service: Callable[[], Awaitable[None]]) -> None:
    """Run a background service; a mistake in it is logged, and it starts over a second later."""
    while True:
        try:
            await service()
            return
        except Exception:
            logger.exception("a background service of the tree failed")
            await trio.sleep(_RESTART_S)
