"""Brings the changes of this storage to one peer, for ever: where to begin, and when.

When anything fails, the connection is closed and everything starts over at ``acked``: what was done
already is done again, which the receiver notices. What goes over a connection: `stream`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.binlog_reader import find_time, usable_position
from fdfs_storage.cluster.tracker_link import Retry
from fdfs_storage.replication.mark_files import BootNote, MarkFiles
from fdfs_storage.replication.peer_link import PeerLink
from fdfs_storage.replication.stream import FAILURES, Stream
from fdfs_storage.replication.unreadable import Unreadable
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.sync_plan import (
    ENDED,
    NEW,
    PUSHED,
    begin,
    concerns,
    may_push,
    must_ask,
    received_until,
)
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.cluster import Brief, SyncSource
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.store import Store
    from fdfsfuse.core.config import StorageConfig

logger = logging.getLogger(__name__)

LATE_S: Final = 300
"""A member that joins gets changes of this many seconds before it joined from all the others:
clocks differ."""
SYNCED_S: Final = 60.0
"""What a machine wrote this long ago is on its disk: kernels write back after 35 s."""
RETRY_MAX_S: Final = 5.0
_LEVELS: Final = {1: logging.INFO, 5: logging.WARNING, 50: logging.WARNING, 500: logging.WARNING}
"""How loudly each failed attempt in a row is told."""


class Group(Protocol):
    """What pushing wants of the membership of the group."""

    @property
    def own_id(self) -> str:
        """Our id in the group."""

    async def sync_source(self, peer_id: str) -> SyncSource | None:
        """86. Raises one of `PROBLEMS`."""

    async def report_status(self, brief: Brief) -> None:
        """76. Raises one of `PROBLEMS`."""


class Pusher:
    """Pushes to one peer.

    Args:
        peer: the peer as the trackers list it; `update` tells of changes.
        source_position: how far the given member has our changes, None if that is not known.
        progress: called when ``acked``, ``link`` or ``caught_up`` may have changed.
        at_rest: called when the peer has everything.
        restarted: called when the peer may have lost some of what it had acknowledged.

    Attributes:
        acked: the peer has dealt with all records before this position.
        link: the connection, None while there is none.
        problem: why the last attempt failed, '' while all is well.
        caught_up: the peer had everything at some time since it was connected.
        unreadable: files that could not be brought to it; None before the list was read.
    """

    def __init__(
        self,
        peer: Brief,
        store: Store,
        config: StorageConfig,
        group: Group,
        marks: MarkFiles,
        *,
        source_position: Callable[[str], BinlogPosition | None],
        progress: Callable[[], None],
        at_rest: Callable[[Pusher], None],
        restarted: Callable[[Pusher], None],
    ) -> None:
        self.peer = peer
        self.link: PeerLink | None = None
        self.problem = ""
        self.caught_up = False
        self.mark: Mark | None = None
        self.unreadable: Unreadable | None = None
        self.acked = BinlogPosition(0, 0)
        self.rate = 0.0
        """Records per second, lately."""
        self._store = store
        self._config = config
        self._group = group
        self._marks = marks
        self._source_position = source_position
        self._progress = progress
        self._at_rest = at_rest
        self._restarted = restarted
        self._changed = trio.Event()
        self._stream: Stream | None = None
        self._retry = Retry(RETRY_MAX_S)
        self._failures = 0
        self._saved: Mark | None = None
        self._boot: BootNote | None = None
        self._checkpoint = (0.0, BinlogPosition(0, 0))
        self._writing = trio.Lock()
        self._progress_at = 0.0
        self._counted = (0.0, 0)

    # --- what others tell and ask -------------------------------------------------------------

    def update(self, peer: Brief) -> None:
        """The trackers list the peer differently now."""
        if peer != self.peer:
            self.peer = peer
            self._changed.set()
            if self._stream is not None:
                self._stream.wake()

    def appended(self, lines: bytes, start: BinlogPosition, *, wake: bool) -> None:
        """The binlog has grown by *lines*. Without *wake*, `push_nowait` follows. Cheap."""
        if self._stream is not None:
            self._stream.appended(lines, start, wake=wake)

    def push_nowait(self) -> None:
        """Send what was logged, as far as that needs no waiting. Does not raise."""
        if self._stream is not None:
            self._stream.push_nowait()

    def receive_nowait(self) -> None:
        """Take the answers that have arrived. Does not raise."""
        if self._stream is not None:
            self._stream.receive_nowait()

    @property
    def is_own_kind(self) -> bool:
        """True while connected to a storage of our own kind."""
        return self.link is not None and self.link.hello is not None

    @property
    def progress_at(self) -> float:
        """trio time at which the peer last took or sent bytes, 0.0 if it never did."""
        return self._progress_at if self.link is None else self.link.progress_at

    async def write_mark(self) -> None:
        """Write the mark, if it has changed. Raises OSError."""
        peer_id = self.peer.storage_id
        async with self._writing:
            mark = self.mark
            if mark is None:
                return
            number, offset = self.acked
            unreadable = self.unreadable
            if unreadable is not None and unreadable.changed:
                unreadable.changed = False
                try:
                    text = unreadable.encode()
                    await trio.to_thread.run_sync(self._marks.save_unreadable, peer_id, text)
                except BaseException:
                    unreadable.changed = True
                    raise
            now = dataclasses.replace(mark, index=number, offset=offset)
            if self._stream is not None:
                scanned, sent = self._stream.scanned, self._stream.sent
                now = dataclasses.replace(
                    now, scanned=mark.scanned + scanned, sent=mark.sent + sent
                )
            if now != self._saved:
                await trio.to_thread.run_sync(self._sync_and_save, peer_id, now)
                self._saved = now
            await self._note_synced()

    def _sync_and_save(self, peer_id: str, mark: Mark) -> None:
        """Save a mark whose lines survive the loss of power.

        One behind the end of the binlog would lie in what is logged next, and what is before it
        there would never be sent.
        """
        self._store.binlog.sync()
        self._marks.save(peer_id, mark)

    async def _note_synced(self) -> None:
        """Move the position that survives it when the peer's machine loses its power.

        Only while the peer is connected: otherwise its machine may have stopped long ago. That
        may go unnoticed for a heartbeat and the time that an answer may take.
        """
        now = time.monotonic()
        unnoticed_s = self._config.heart_beat_interval_s + self._config.network_timeout_s
        if self._boot is None or not self.is_own_kind:
            return
        since, safe = self._checkpoint
        if now - since < SYNCED_S + unnoticed_s:
            return
        self._checkpoint = now, self.acked
        if safe > self._boot.safe:
            await self._save_boot(dataclasses.replace(self._boot, safe=safe))

    async def _save_boot(self, note: BootNote) -> None:
        self._boot = note
        await trio.to_thread.run_sync(self._marks.save_boot, self.peer.storage_id, note)

    # --- the life of a pusher -----------------------------------------------------------------

    async def run(self) -> None:
        """Push until the peer is removed from the group (or cancelled)."""
        while self.peer.status not in ENDED:
            self._changed = trio.Event()
            try:
                if await self._begin():
                    await self._push()
            except FAILURES as exc:
                self.problem = str(exc) or repr(exc)
                self._failures += 1
                level = _LEVELS.get(self._failures, logging.DEBUG)
                logger.log(level, "pushing to %s: %s; trying again", self._name, self.problem)
                with trio.move_on_after(self._retry.next_delay()):
                    await self._changed.wait()
            else:
                if self.peer.status not in ENDED:
                    await self._changed.wait()

    @property
    def _name(self) -> str:
        return f"{self.peer.storage_id} ({self.peer.ip}:{self.peer.port})"

    async def _begin(self) -> bool:
        """Find out where to begin; False while the peer is not to be sent anything."""
        status, peer_id = self.peer.status, self.peer.storage_id
        if self.unreadable is None:
            load = self._marks.load_unreadable
            self.unreadable = await trio.to_thread.run_sync(load, peer_id)
        if self.mark is None:
            mark = await trio.to_thread.run_sync(self._marks.load, peer_id, self.peer.ip)
            if mark is not None:
                position = BinlogPosition(mark.index, mark.offset)
                self.acked = await trio.to_thread.run_sync(
                    usable_position, self._store.binlog, position
                )
                self.mark = mark
        if status not in PUSHED:
            return False
        if must_ask(self.mark, status):
            source = await self._group.sync_source(peer_id)
            mark = begin(self.mark, status, self._group.own_id, source)
            if mark is not self.mark:
                await self._start_at(mark, source)
        assert self.mark is not None
        if not may_push(self.mark, self.peer.status):
            return False
        if self.mark.copies_old and self.peer.status is ServerStatus.WAIT_SYNC:
            logger.info("copying everything to %s", self._name)
            await self._report(ServerStatus.SYNCING)
        return True

    async def _start_at(self, mark: Mark, source: SyncSource | None) -> None:
        """Begin with *mark*, at the record of its time."""
        position = BinlogPosition(0, 0)
        if source is not None and not mark.need_sync_old:
            # What its source had of us when it began is in the copy; what it lacked is not.
            binlog = self._store.binlog
            position = await trio.to_thread.run_sync(find_time, binlog, mark.until - LATE_S)
            known = self._source_position(source.source_id)
            position = BinlogPosition(0, 0) if known is None else min(position, known)
        self.mark = Mark(position.number, position.offset, mark.need_sync_old, False, mark.until)
        self.acked = position
        self._saved = None
        await self.write_mark()

    async def _report(self, status: ServerStatus) -> None:
        peer = self.peer
        await self._group.report_status(Brief(status, peer.port, peer.storage_id, peer.ip))

    async def _push(self) -> None:
        """One connection, until it fails or the peer is removed."""
        hosts = tuple(self.peer.ip.split(","))
        server = ServerAddress(hosts, self.peer.port)
        link = await PeerLink.open(server, self._config, self._group.own_id)
        try:
            again_until = await self._meet(link)
            mark = self.mark
            assert mark is not None
            assert self.unreadable is not None
            stream = Stream(
                link,
                self._store,
                self._config,
                self.acked,
                again_until,
                self.unreadable,
                concerns=self._concerns,
                received_until=received_until(mark),
                advanced=self._advanced,
                at_rest=self._rest,
            )
            self.link, self._stream, self.problem = link, stream, ""
            logger.info("pushing to %s from %s:%s on", self._name, *self.acked)
            self._progress()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_gone_or_new, nursery.cancel_scope)
                failure: Exception | None = None
                try:
                    await stream.run()
                except FAILURES as exc:
                    failure = exc
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            link.close()
            self._progress_at = link.progress_at
            self.caught_up = False
            with trio.CancelScope(shield=True):
                await self._end_stream()
            self._progress()

    async def _end_stream(self) -> None:
        """Write down how far it came."""
        stream = self._stream
        try:
            await self.write_mark()
        finally:
            self.link = self._stream = None
            if stream is not None and self.mark is not None:
                self.mark = dataclasses.replace(
                    self.mark,
                    scanned=self.mark.scanned + stream.scanned,
                    sent=self.mark.sent + stream.sent,
                )

    async def _end_when_gone_or_new(self, scope: trio.CancelScope) -> None:
        """End the stream when the peer was removed, or has come back without its data."""
        while self.peer.status not in ENDED | NEW:
            self._changed = trio.Event()
            await self._changed.wait()
        scope.cancel()

    def _concerns(self, record: BinlogRecord) -> bool:
        assert self.mark is not None
        return concerns(record, self.mark)

    async def _finish_old(self, mark: Mark) -> None:
        """The initial copy is complete: first that is written down, then it is told."""
        self.mark = dataclasses.replace(mark, sync_old_done=True)
        await self.write_mark()
        await self._report(ServerStatus.OFFLINE)
        logger.info("%s has everything", self._name)

    def _advanced(self, done: int) -> None:
        """The peer has dealt with *done* more records."""
        assert self._stream is not None
        self.acked = self._stream.acked
        if done:
            # Not earlier: one that takes connections and refuses changes is asked less and less.
            self._retry.reset()
            self._failures = 0
            self._count(done)
        self._progress()
        if done and self.caught_up and self._stream.is_idle:
            self._at_rest(self)

    async def _rest(self) -> None:
        """The peer has everything."""
        mark = self.mark
        assert mark is not None
        if mark.copies_old or (mark.need_sync_old and self.peer.status is ServerStatus.SYNCING):
            await self._finish_old(mark)
        if not self.caught_up:
            self.caught_up = True
            self._retry.reset()
            self._failures = 0
            self._progress()
        self._at_rest(self)

    async def _meet(self, link: PeerLink) -> BinlogPosition:
        """Look whether the peer's machine was restarted: then it gets the last stretch again.

        Returns the position up to which it has to be.
        """
        if link.hello is None:
            return BinlogPosition(0, 0)
        peer_id, boot_id = self.peer.storage_id, link.hello.boot_id
        note = self._boot or await trio.to_thread.run_sync(self._marks.load_boot, peer_id)
        if note is None or note.boot_id != boot_id:
            again_until = BinlogPosition(0, 0)
            if note is not None:
                binlog = self._store.binlog
                safe = await trio.to_thread.run_sync(usable_position, binlog, note.safe)
                again_until = max(note.again_until, self.acked)
                if safe < self.acked:
                    logger.info("the machine of %s was restarted: the last stretch again", peer_id)
                    # In this order: the mark must not forget what is to come again, nor the new
                    # boot id the way back.
                    await self._save_boot(BootNote(note.boot_id, safe, again_until))
                    self.acked = safe
                    self._restarted(self)
                    await self.write_mark()
            note = BootNote(boot_id, self.acked, again_until)
            await self._save_boot(note)
            self._checkpoint = time.monotonic(), self.acked
        self._boot = note
        return note.again_until

    def _count(self, done: int) -> None:
        since, count = self._counted
        now = time.monotonic()
        count += done
        if now - since >= 1.0:
            rate = count / (now - since)
            self.rate = rate if not self.rate else 0.7 * self.rate + 0.3 * rate
            self._counted = now, 0
        else:
            self._counted = since, count
