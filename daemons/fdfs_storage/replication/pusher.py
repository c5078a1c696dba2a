"""Brings the changes of this storage to one peer, for ever.

Theory of operation. Two tasks share a connection: one reads the binlog and sends requests, the
other takes the answers, which come in the order of the requests. Storages of our own kind are sent
many requests before the first is answered; stock ones one at a time.

``_unfinished`` holds the records that were read and are not known to be dealt with, in the order of
the binlog; ``acked`` is the position before the first of them, and what goes into the mark file.
``_asked`` holds what is under way, in the order of the requests. An answer may ask for more (the
whole file, a look at its size): that goes to ``_followups``, which the sender sees to first, and
the record stays unfinished until then. All of it is sent in one row on one connection, so no two
requests about one file are ever carried out at the same time.

When anything fails, the connection is closed and everything starts over at ``acked``: what was done
already is done again, which the receiver notices.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.binlog_reader import BinlogReader, find_time, usable_position
from fdfs_storage.replication.mark_files import BootNote, MarkFiles
from fdfs_storage.replication.peer_link import PeerLink
from fdfs_storage.replication.requests import Request, Requests
from fdfs_storage.tracker_link import Retry
from fdfs_storage.transfer import file_crc32
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core.config import ServerAddress
from fdfsfuse.core.replicas import Nature, subject_of
from fdfsfuse.core.sync_plan import (
    ENDED,
    PUSHED,
    Next,
    Send,
    after_answer,
    begin,
    concerns,
    may_push,
    must_ask,
)
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.cluster import Brief, SyncSource
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.storage import NO_CRC, FileRequest, StorageCommand
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.store import Store
    from fdfsfuse.core.config import StorageConfig

logger = logging.getLogger(__name__)

BATCH: Final = 16
"""Records that are sent in one go: the loop serves others about once a millisecond."""
WINDOW: Final = 512
WINDOW_BYTES: Final = 8 << 20
OLD_S: Final = 60
"""Files of records older than this may have to come from the disk: they are read in a thread."""
LATE_S: Final = 300
"""A member that joins gets changes of this many seconds before it joined from all the others:
clocks differ."""
SYNCED_S: Final = 120.0
"""What was written this long ago is on the disk: kernels write back after 35 s."""
RETRY_MAX_S: Final = 5.0
_SEND_BYTES: Final = 128 << 10
_LEVELS: Final = {1: logging.INFO, 5: logging.WARNING, 50: logging.WARNING, 500: logging.WARNING}
"""How loudly each failed attempt in a row is told."""
_COVER_BYTES: Final = 64 << 10
"""Parts of a file that was smaller when it went over whole are sent nevertheless."""
_COVERED_MAX: Final = 10_000
_PARTS: Final = frozenset("AMT")
_WHOLE: Final = frozenset({Send.CREATE, Send.UPDATE})
_KEEP_ALIVE = pack_header(0, StorageCommand.ACTIVE_TEST)


class Group(Protocol):
    """What pushing wants of the membership of the group."""

    @property
    def own_id(self) -> str:
        """Our id in the group."""

    async def sync_source(self, peer_id: str) -> SyncSource | None:
        """86. Raises one of `PROBLEMS`."""

    async def report_status(self, brief: Brief) -> None:
        """76. Raises one of `PROBLEMS`."""


class PeerRefused(FdfsError):
    """The peer could not take a record; it is sent again later."""


class _Entry:
    """A record that is not known to be dealt with."""

    __slots__ = ("again", "behind", "finished", "record")

    def __init__(self, record: BinlogRecord, behind: BinlogPosition, again: bool) -> None:
        self.record = record
        self.behind = behind
        self.again = again
        self.finished = False


class _Asked:
    """A request under way. ``entry`` is None for a keep-alive, ``send`` for a question (22).

    ``covers``: its content has what was logged before this position.
    """

    __slots__ = ("covers", "entry", "send", "size")

    def __init__(
        self, entry: _Entry | None, send: Send | None, size: int, covers: BinlogPosition
    ) -> None:
        self.entry = entry
        self.send = send
        self.size = size
        self.covers = covers


class Pusher:
    """Pushes to one peer.

    Args:
        peer: the peer as the trackers list it; `update` tells of changes.
        source_position: how far the given member has our changes, None if that is not known.
        progress: called when ``acked`` or ``in_touch`` has changed.
        at_rest: called when the peer has everything.

    Attributes:
        acked: the peer has dealt with all records before this position.
        link: the connection, None while there is none.
        problem: why the last attempt failed, '' while all is well.
        caught_up: the peer had everything at some time since it was connected.
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
    ) -> None:
        self.peer = peer
        self.link: PeerLink | None = None
        self.problem = ""
        self.caught_up = False
        self.mark: Mark | None = None
        self.acked = BinlogPosition(0, 0)
        self.rate = 0.0
        """Records per second, lately."""
        self._store = store
        self._config = config
        self._group = group
        self._marks = marks
        self._requests = Requests(store, config.group_name)
        self._source_position = source_position
        self._progress = progress
        self._at_rest = at_rest
        self._changed = trio.Event()
        self._wake = trio.Event()
        self._waiting = False
        self._reader: BinlogReader | None = None
        self._unfinished: deque[_Entry] = deque()
        self._asked: deque[_Asked] = deque()
        self._asked_bytes = 0
        self._followups: deque[tuple[_Entry, Next]] = deque()
        self._covered: dict[str, BinlogPosition] = {}
        """Files that went over whole, with all that was logged of them before the position."""
        self._saved: Mark | None = None
        self._again_until = BinlogPosition(0, 0)
        self._boot: BootNote | None = None
        self._checkpoint = (0.0, BinlogPosition(0, 0))
        self._scanned = self._sent = 0
        self._writing = trio.Lock()
        self._progress_at = 0.0
        self._counted = (0.0, 0)

    # --- what others tell and ask -------------------------------------------------------------

    def update(self, peer: Brief) -> None:
        """The trackers list the peer differently now."""
        if peer != self.peer:
            self.peer = peer
            self._changed.set()

    def wake(self) -> None:
        """There may be something to send: the binlog has grown. Cheap."""
        if self._waiting:
            self._waiting = False
            self._wake.set()

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
            now = dataclasses.replace(
                mark,
                index=self.acked.number,
                offset=self.acked.offset,
                scanned=mark.scanned + self._scanned,
                sent=mark.sent + self._sent,
            )
            if now != self._saved:
                await trio.to_thread.run_sync(self._marks.save, peer_id, now)
                self._saved = now
            if self._boot is not None and time.monotonic() - self._checkpoint[0] >= SYNCED_S:
                safe = self._checkpoint[1]
                self._checkpoint = time.monotonic(), self.acked
                if safe > self._boot.safe:
                    self._boot = BootNote(self._boot.boot_id, safe)
                    await trio.to_thread.run_sync(self._marks.save_boot, peer_id, self._boot)

    # --- the life of a pusher -----------------------------------------------------------------

    async def run(self) -> None:
        """Push until the peer is removed from the group (or cancelled)."""
        retry = Retry(RETRY_MAX_S)
        complained = 0
        while self.peer.status not in ENDED:
            self._changed = trio.Event()
            try:
                if await self._begin():
                    await self._push(retry)
            except (*PROBLEMS, PeerRefused, OSError) as exc:
                self.problem = str(exc) or repr(exc)
                complained += 1
                level = _LEVELS.get(complained, logging.DEBUG)
                logger.log(level, "pushing to %s: %s; trying again", self._name, self.problem)
                with trio.move_on_after(retry.next_delay()):
                    await self._changed.wait()
            else:
                complained = 0
                if self.peer.status not in ENDED:
                    await self._changed.wait()

    @property
    def _name(self) -> str:
        return f"{self.peer.storage_id} ({self.peer.ip}:{self.peer.port})"

    async def _begin(self) -> bool:
        """Find out where to begin; False while the peer is not to be sent anything."""
        status, peer_id = self.peer.status, self.peer.storage_id
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
        self._scanned = self._sent = 0
        self._saved = None
        await self.write_mark()

    async def _report(self, status: ServerStatus) -> None:
        peer = self.peer
        await self._group.report_status(Brief(status, peer.port, peer.storage_id, peer.ip))

    async def _push(self, retry: Retry) -> None:
        """One connection, until it fails or the peer is removed."""
        hosts = tuple(self.peer.ip.split(","))
        server = ServerAddress(hosts, self.peer.port)
        link = await PeerLink.open(server, self._config, self._group.own_id)
        failure: Exception | None = None
        try:
            await self._meet(link)
            self._reader = BinlogReader(self._store.binlog, self.acked)
            self._unfinished.clear()
            self._asked.clear()
            self._asked_bytes = 0
            self._followups.clear()
            self._covered.clear()
            self.link = link
            self.problem = ""
            retry.reset()
            logger.info("pushing to %s from %s:%s on", self._name, *self.acked)
            self._progress()
            async with trio.open_nursery() as nursery:

                async def end_with(task: Callable[[PeerLink], Awaitable[None]]) -> None:
                    nonlocal failure
                    try:
                        await task(link)
                    except (*PROBLEMS, PeerRefused, OSError) as exc:
                        failure = failure or exc
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_with, self._send_all)
                nursery.start_soon(end_with, self._receive_all)
                nursery.start_soon(end_with, self._until_removed)
                nursery.start_soon(end_with, self._until_stuck)
        finally:
            link.close()
            self.link = None
            self._progress_at = link.progress_at
            self.caught_up = False
            if self._reader is not None:
                self._reader.close()
            with trio.CancelScope(shield=True):
                await self.write_mark()
            self._progress()
        if failure is not None:
            raise failure

    async def _meet(self, link: PeerLink) -> None:
        """Look whether the peer's machine was restarted: then it gets the last stretch again."""
        if link.hello is None:
            return
        peer_id, boot_id = self.peer.storage_id, link.hello.boot_id
        if self._boot is None:
            self._boot = await trio.to_thread.run_sync(self._marks.load_boot, peer_id)
        if self._boot is not None and self._boot.boot_id != boot_id:
            safe = await trio.to_thread.run_sync(
                usable_position, self._store.binlog, self._boot.safe
            )
            if safe < self.acked:
                logger.info("the machine of %s was restarted: the last stretch again", peer_id)
                self._again_until = self.acked
                self.acked = safe
                # First the mark: a crash in between must not lose the way back.
                await self.write_mark()
        if self._boot is None or self._boot.boot_id != boot_id:
            self._boot = BootNote(boot_id, self.acked)
            await trio.to_thread.run_sync(self._marks.save_boot, peer_id, self._boot)
            self._checkpoint = time.monotonic(), self.acked

    async def _until_removed(self, link: PeerLink) -> None:
        while self.peer.status not in ENDED:
            self._changed = trio.Event()
            await self._changed.wait()

    async def _until_stuck(self, link: PeerLink) -> None:
        """End a connection on which an answer is overdue."""
        timeout_s = self._config.network_timeout_s
        while True:
            await trio.sleep(timeout_s / 4)
            if self._asked and trio.current_time() - link.progress_at > timeout_s:
                raise PeerRefused(f"no answer within {timeout_s:g} s")

    # --- sending ------------------------------------------------------------------------------

    async def _send_all(self, link: PeerLink) -> None:
        reader = self._reader
        assert reader is not None
        window = WINDOW if link.hello is not None else 1
        batch = BATCH if link.hello is not None else 1
        while True:
            if len(self._asked) >= window or self._asked_bytes >= WINDOW_BYTES:
                await self._wait_for_news()
            elif self._followups:
                await self._follow_up(link, *self._followups.popleft())
            else:
                records = reader.read(batch)
                if records:
                    await self._send_batch(link, records)
                else:
                    await self._rest(link)
            await trio.lowlevel.checkpoint()

    async def _rest(self, link: PeerLink) -> None:
        """Nothing to send now: wait, and keep the connection alive."""
        end = self._store.binlog.position
        if not self._unfinished:
            mark = self.mark
            assert mark is not None
            if mark.copies_old or (mark.need_sync_old and self.peer.status is ServerStatus.SYNCING):
                await self._finish_old(mark)
            if not self.caught_up:
                self.caught_up = True
                self._progress()
            self._at_rest(self)
            if self._store.binlog.position != end:
                return
        with trio.move_on_after(self._config.heart_beat_interval_s):
            await self._wait_for_news()
            return
        self._ask(None, None, 0, end)
        await link.send(_KEEP_ALIVE)

    async def _wait_for_news(self) -> None:
        self._wake = trio.Event()
        self._waiting = True
        await self._wake.wait()

    async def _finish_old(self, mark: Mark) -> None:
        """The initial copy is complete: first that is written down, then it is told."""
        self.mark = dataclasses.replace(mark, sync_old_done=True)
        await self.write_mark()
        await self._report(ServerStatus.OFFLINE)
        logger.info("%s has everything", self._name)

    async def _send_batch(
        self, link: PeerLink, records: list[tuple[BinlogRecord | None, BinlogPosition]]
    ) -> None:
        mark = self.mark
        assert mark is not None
        now = int(time.time())
        entries: list[_Entry] = []
        self._scanned += len(records)
        for record, behind in records:
            if record is None or not concerns(record, mark) or self._is_covered(record, behind):
                self._skip_to(behind)
            else:
                entries.append(_Entry(record, behind, behind <= self._again_until))
                self._unfinished.append(entries[-1])
        if not entries:
            return
        covers = self._store.binlog.position
        if now - entries[0].record.timestamp > OLD_S or entries[0].again:
            requests = await trio.to_thread.run_sync(self._make_all, entries)
        else:
            requests = self._make_all(entries)
        try:
            await self._send_requests(link, entries, requests, covers)
        finally:
            for request in requests:
                if request is not None:
                    request.close()

    def _make_all(self, entries: list[_Entry]) -> list[Request | None]:
        return [self._requests.make(entry.record, again=entry.again) for entry in entries]

    def _is_covered(self, record: BinlogRecord, behind: BinlogPosition) -> bool:
        """True when the peer got the change as a part of its whole file."""
        covers = self._covered.get(record.name)
        return covers is not None and behind <= covers and record.op.upper() in _PARTS

    async def _send_requests(
        self,
        link: PeerLink,
        entries: list[_Entry],
        requests: list[Request | None],
        covers: BinlogPosition,
    ) -> None:
        out = bytearray()
        for entry, request in zip(entries, requests, strict=True):
            if request is None:
                entry.finished = True
                continue
            self._sent += 1
            self._ask(entry, request.send, len(request.data) + request.count, covers)
            out += request.data
            if request.fd >= 0:
                await link.send(out, more=True)
                out = bytearray()
                await link.send_file(request.fd, request.offset, request.count)
            elif len(out) >= _SEND_BYTES:
                await link.send(out)
                out = bytearray()
        if out:
            await link.send(out)
        self._advance()

    def _skip_to(self, behind: BinlogPosition) -> None:
        if self._unfinished:
            entry = self._unfinished[-1]
            if entry.behind < behind:
                entry.behind = behind
        else:
            self.acked = behind

    def _ask(
        self, entry: _Entry | None, send: Send | None, size: int, covers: BinlogPosition
    ) -> None:
        self._asked.append(_Asked(entry, send, size, covers))
        self._asked_bytes += size
        self._store.counters.total_sync_out_bytes += size

    async def _follow_up(self, link: PeerLink, entry: _Entry, what: Next) -> None:
        """Send what the answer to a record asked for."""
        record = entry.record
        if what is Next.COMPARE_SIZE:
            body = FileRequest(self._config.group_name, record.name).encode()
            self._ask(entry, None, len(body), self._store.binlog.position)
            await link.send(pack_header(len(body), StorageCommand.FILE_INFO, NO_CRC) + body)
            return
        if what is Next.EXAMINE:
            await self._examine(entry)
            return
        send = Send.CREATE if what is Next.SEND_CREATE else Send.UPDATE
        covers = self._store.binlog.position
        request = await trio.to_thread.run_sync(self._requests.whole, record, send)
        try:
            await self._send_requests(link, [entry], [request], covers)
        finally:
            if request is not None:
                request.close()

    async def _examine(self, entry: _Entry) -> None:
        """The peer says that a file does not fit its name. If that is so here too, it is lost.

        Raises:
            PeerRefused: ours is whole, so it was damaged on its way.
        """
        name = entry.record.name
        subject = subject_of(name)
        path = self._store.path(self._store.locate(name))
        size = self._requests.own_size(entry.record)
        if size is not None and subject.nature is Nature.FIXED:
            crc = await trio.to_thread.run_sync(file_crc32, path)
            if (size, crc) == (subject.size, subject.crc32):
                raise PeerRefused(f"{name} was damaged on its way")
            logger.error("%s is damaged here: its content does not fit its name", name)
        self._finish(entry)

    # --- answers ------------------------------------------------------------------------------

    async def _receive_all(self, link: PeerLink) -> None:
        while True:
            for status, body in await link.receive():
                if not self._asked:
                    raise PeerRefused("an answer to nothing")
                asked = self._asked.popleft()
                self._asked_bytes -= asked.size
                self._take(asked, status, body)
            self._advance()
            self.wake()

    def _take(self, asked: _Asked, status: int, body: bytes) -> None:
        entry = asked.entry
        if entry is None:
            return
        if asked.send is None:
            own = self._requests.own_size(entry.record)
            theirs = int.from_bytes(body[:8], "big") if not status and len(body) >= 8 else None
            if own is None or own == theirs:
                entry.finished = True
            else:
                self._followups.append((entry, Next.SEND_UPDATE))
            return
        what = after_answer(asked.send, status)
        if what is Next.DONE:
            entry.finished = True
            self._store.counters.success_sync_out_bytes += asked.size
            if not status and asked.send in _WHOLE and asked.size > _COVER_BYTES:
                if len(self._covered) >= _COVERED_MAX:
                    self._covered.clear()
                self._covered[entry.record.name] = asked.covers
        elif what is Next.FAIL:
            problem = StatusError(status, f"{entry.record.op} {entry.record.name}")
            raise PeerRefused(f"it cannot take a change: {problem}")
        else:
            self._followups.append((entry, what))

    def _finish(self, entry: _Entry) -> None:
        entry.finished = True
        self._advance()

    def _advance(self) -> None:
        unfinished, before = self._unfinished, self.acked
        done = 0
        while unfinished and unfinished[0].finished:
            self.acked = unfinished.popleft().behind
            done += 1
        if self.acked != before:
            self._count(done)
            self._progress()

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
