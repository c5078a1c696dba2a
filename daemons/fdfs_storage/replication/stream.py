"""What goes over one connection to a peer: requests out of the binlog, and what answers ask for.

Theory of operation. Two tasks share a connection: one reads the binlog and sends requests, the
other takes the answers, which come in the order of the requests. Storages of our own kind are sent
many requests before the first is answered; stock ones one at a time.

``_unfinished`` holds the records that were read and are not known to be dealt with. ``_asked``
holds what is under way, in the order of the requests. An answer may ask for more (the whole file, a
look at its size): that goes to ``_followups``, which the sender sees to first, and the record stays
unfinished until then. All of it is sent in one row on one connection, so no two requests about one
file are ever carried out at the same time.

What has just been logged does not take that way if the peer has nothing else to do: lines and
contents are still in memory then (`BinlogReader.feed`, `recent`), and who logged them sends them
itself (`Stream.push_nowait`). That is what mounts wait for. ``_waiting`` tells that the sending
task sleeps, so that nobody sends into the middle of its request. The task takes what is left.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.binlog_reader import BinlogReader
from fdfs_storage.replication.in_sync import SLOW
from fdfs_storage.replication.outgoing import PARTS, Asked, Covered, Entry, Row, Unfinished
from fdfs_storage.replication.requests import Request, Requests
from fdfs_storage.replication.unreadable import AGAIN_S, Unreadable
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core.replicas import Nature, subject_of
from fdfsfuse.core.sync_plan import Next, Send, after_answer
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import NO_CRC, FileInfo, FileRequest, StorageCommand

if TYPE_CHECKING:
    from fdfs_storage.replication.peer_link import PeerLink
    from fdfs_storage.store import Store
    from fdfsfuse.core.config import StorageConfig
    from fdfsfuse.proto.binlog import BinlogRecord

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

BATCH: Final = 32
"""Records that are sent in one go: the loop serves others about once a millisecond."""
WINDOW: Final = 512
WINDOW_BYTES: Final = 8 << 20
OLD_S: Final = 60
"""Files of records older than this may have to come from the disk: they are read in a thread."""
LEFT_OUT_S: Final = 120.0
"""Nobody waits any more for the copies of what was logged this long ago, and twice as long as
`in_sync` waits at all: a peer that did not get it is not in sync by then."""
_NOT_OF_THE_FILE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_AT_ONCE: Final = 64
"""Records that are sent from where they were logged, without a turn of the loop."""
_COVER_BYTES: Final = 64 << 10
"""Parts of a file that was smaller when it went over whole are sent nevertheless."""
_CONTENT: Final = PARTS | frozenset("CU")
_WHOLE: Final = frozenset({Send.CREATE, Send.UPDATE})
_VERSION_SPARSE: Final = 2
_KEEP_ALIVE = pack_header(0, StorageCommand.ACTIVE_TEST)


class _CannotRead(Exception):
    """The file of a record cannot be read; the cause says why."""


class PeerRefused(FdfsError):
    """The peer could not take a record, or did not answer; it is sent again later."""


FAILURES = (*PROBLEMS, PeerRefused, OSError)
"""What may end a stream."""


class Stream:
    """Pushes over one connection.

    Args:
        start: where to begin in the binlog.
        again_until: records before this position had been acknowledged, and may be lost.
        unreadable: files that the peer could not be brought; looked at and changed.
        concerns: tells which records are for the peer.
        received_until: records of others that are later than this (Unix seconds) are not.
        advanced: called with the number of records when ``acked`` has moved.
        at_rest: called when the peer has everything; may wait.

    Attributes:
        scanned, sent: records read, and requests sent for them.
    """

    def __init__(
        self,
        link: PeerLink,
        store: Store,
        config: StorageConfig,
        start: BinlogPosition,
        again_until: BinlogPosition,
        unreadable: Unreadable,
        *,
        concerns: Callable[[BinlogRecord], bool],
        received_until: int = -1,
        advanced: Callable[[int], None],
        at_rest: Callable[[], Awaitable[None]],
    ) -> None:
        self.scanned = self.sent = 0
        self._link = link
        self._store = store
        self._config = config
        self._again_until = again_until
        self._unreadable = unreadable
        self._late_at = 0.0
        self._concerns = concerns
        self._received_until = received_until
        self._at_rest = at_rest
        sparse = link.hello is not None and link.hello.version >= _VERSION_SPARSE
        self._requests = Requests(store, config.group_name, sparse=sparse)
        self._reader = BinlogReader(store.binlog, start)
        self._unfinished = Unfinished(start, advanced)
        self._asked: deque[Asked] = deque()
        self._asked_bytes = 0
        self._followups: deque[tuple[Entry, Next]] = deque()
        self._covered = Covered()
        self._row = Row(link)
        self._full = False
        self._wake = trio.Event()
        self._waiting = False
        self._restless = True
        self._failure: Exception | None = None

    @property
    def acked(self) -> BinlogPosition:
        """The peer has dealt with all records before this position."""
        return self._unfinished.acked

    @property
    def is_idle(self) -> bool:
        """True when the peer has dealt with all that was read, and nothing is left to read."""
        return not self._unfinished and self._reader.position >= self._store.binlog.position

    def wake(self) -> None:
        """There may be something to do. Cheap."""
        if self._waiting:
            self._waiting = False
            self._wake.set()

    def appended(self, lines: bytes, start: BinlogPosition, *, wake: bool) -> None:
        """The binlog has grown by *lines*, which begin at *start*. Cheap."""
        reader = self._reader
        if not lines:
            self.wake()
            return
        if self._waiting and reader.position == start and self._is_of_others(lines):
            reader.skip_to(BinlogPosition(start.number, start.offset + len(lines)))
            self.scanned += 1
            self._unfinished.skip_to(reader.position)
            return
        reader.feed(lines, start)
        if wake:
            self.wake()

    def _is_of_others(self, lines: bytes) -> bool:
        """True for one line, about a change by another member that does not concern the peer."""
        stamp, _, rest = lines.partition(b" ")
        if not rest[:1].islower() or lines.count(b"\n") != 1:
            return False
        return int(stamp) > self._received_until

    def push_nowait(self) -> None:
        """Send what was logged, as far as that needs no waiting; the rest goes the usual way."""
        full = len(self._asked) >= WINDOW or self._asked_bytes >= WINDOW_BYTES
        busy = full or self._followups or self._row or not self._waiting
        if busy or self._link.hello is None:
            self.wake()
            return
        try:
            records = self._reader.read(_AT_ONCE)
            entries = self._take_over(records)
            if entries:
                self._queue(entries, self._make_now(entries), self._store.binlog.position)
                self._row.send_nowait()
        except Exception as exc:
            self._failure = exc  # for the task to end with
            self.wake()
            return
        if self._row or len(records) == _AT_ONCE:
            self.wake()

    async def run(self) -> None:
        """Push until the connection fails, with one of `FAILURES`, or until cancelled."""
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:

                async def end_with(task: Callable[[], Awaitable[None]]) -> None:
                    nonlocal failure
                    try:
                        await task()
                    except FAILURES as exc:
                        failure = failure or exc
                    nursery.cancel_scope.cancel()

                for task in (self._send_all, self._receive_all, self._until_stuck):
                    nursery.start_soon(end_with, task)
        finally:
            self._reader.close()
            self._row.close()
        if failure is not None:
            raise failure

    async def _until_stuck(self) -> None:
        """End a connection on which an answer is overdue."""
        timeout_s = self._config.network_timeout_s
        while True:
            await trio.sleep(timeout_s / 4)
            if self._asked and trio.current_time() - self._link.progress_at > timeout_s:
                raise PeerRefused(f"no answer within {timeout_s:g} s")

    # --- sending ------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        own_kind = self._link.hello is not None
        window, batch = (WINDOW, BATCH) if own_kind else (1, 1)
        while True:
            if self._failure is not None:
                raise self._failure
            if self._row:
                await self._send_row()
            elif len(self._asked) >= window or self._asked_bytes >= WINDOW_BYTES:
                self._full = own_kind
                await self._wait_for_news()
                self._full = False
            elif self._followups:
                entry, what = self._followups.popleft()
                try:
                    await self._follow_up(entry, what)
                except _CannotRead as exc:
                    self._leave_out(entry, exc.__cause__)
            else:
                records = self._reader.read(batch)
                if records:
                    await self._send_batch(records)
                else:
                    await self._rest()
            await trio.lowlevel.checkpoint()

    async def _rest(self) -> None:
        """Nothing to send now: wait, and keep the connection alive."""
        end = self._store.binlog.position
        self._unfinished.skip_to(self._reader.position)
        if not self._unfinished:
            await self._at_rest()
            self._restless = False
            if self._store.binlog.position != end:
                return
            if self._unreadable.records and time.monotonic() >= self._late_at:
                self._late_at = time.monotonic() + AGAIN_S
                for record in self._unreadable.records:
                    entry = Entry(record, end, False, late=True)
                    self._followups.append((entry, Next.SEND_UPDATE))
                return
        with trio.move_on_after(self._config.heart_beat_interval_s):
            await self._wait_for_news()
            return
        if self._row:
            return  # `push_nowait` began a request between the end of the wait and our turn
        self._ask(None, None, 0, end)
        await self._link.send(_KEEP_ALIVE)

    async def _wait_for_news(self) -> None:
        self._wake = trio.Event()
        self._waiting = True
        try:
            await self._wake.wait()
        finally:
            self._waiting = False

    async def _send_batch(self, records: list[tuple[BinlogRecord | None, BinlogPosition]]) -> None:
        self._restless = True
        entries = self._take_over(records)
        if not entries:
            return
        covers = self._store.binlog.position
        if entries[0].again or time.time() - entries[0].record.timestamp > OLD_S:
            requests = await trio.to_thread.run_sync(self._make_all, entries)
        else:
            requests = self._make_now(entries)
        self._queue(entries, requests, covers)
        await self._send_row()

    def _take_over(self, records: list[tuple[BinlogRecord | None, BinlogPosition]]) -> list[Entry]:
        """The records that are for the peer; they are unfinished from now on."""
        entries: list[Entry] = []
        self.scanned += len(records)
        for record, behind in records:
            left_out = (
                record is None
                or not self._concerns(record)
                or self._covered.includes(record, behind)
                or self._is_left_out(record)
            )
            if record is None or left_out:
                self._unfinished.skip_to(behind)
            else:
                entry = Entry(record, behind, behind <= self._again_until)
                entries.append(entry)
                self._unfinished.add(entry)
        return entries

    def _make_now(self, entries: list[Entry]) -> list[Request | OSError | None]:
        if len(entries) == 1:
            return [self._make(entries[0])]
        with self._requests.keeping_open():
            return self._make_all(entries)

    def _make_all(self, entries: list[Entry]) -> list[Request | OSError | None]:
        return [self._make(entry) for entry in entries]

    def _make(self, entry: Entry) -> Request | OSError | None:
        try:
            return self._requests.make(entry.record, again=entry.again)
        except OSError as exc:
            return exc

    async def _read(self, function: Callable[..., _T], *args: object) -> _T:
        """Call *function*, which reads a file of ours, in a thread. Raises _CannotRead."""
        try:
            return await trio.to_thread.run_sync(function, *args)
        except OSError as exc:
            raise _CannotRead from exc

    def _leave_out(self, entry: Entry, problem: BaseException | None) -> None:
        """Go on without a file that the peer cannot be brought; it is tried again later.

        Raises:
            OSError: *problem*; it says nothing about the file, or somebody may still wait for this
                one to be on the peer.
        """
        assert isinstance(problem, OSError)
        if problem.errno in _NOT_OF_THE_FILE:
            raise problem
        if not entry.late and self._is_awaited(entry.record):
            raise problem
        self._unreadable.add(entry.record, problem)
        entry.finished = True
        self._unfinished.advance()

    def _is_awaited(self, record: BinlogRecord) -> bool:
        """True while somebody may wait for *record* to be on the peer."""
        waited_for_s = max(LEFT_OUT_S, 2 * SLOW * self._config.names_replica_timeout_s)
        return time.time() - record.timestamp < waited_for_s

    def _is_left_out(self, record: BinlogRecord) -> bool:
        """True when *record* comes with its file, which could not be read, as soon as that can."""
        left_out = record.name in self._unreadable and record.op.upper() in _CONTENT
        return left_out and not self._is_awaited(record)

    def _finish(self, entry: Entry) -> None:
        entry.finished = True
        if entry.late:
            self._unreadable.remove(entry.record.name)

    def _queue(
        self,
        entries: list[Entry],
        requests: Sequence[Request | OSError | None],
        covers: BinlogPosition,
    ) -> None:
        """Put requests into the row of what is to be sent."""
        made: list[Request] = []
        for entry, request in zip(entries, requests, strict=True):
            if isinstance(request, Request):
                request.entry = entry
                made.append(request)
        self._row.add(made)
        for entry, request in zip(entries, requests, strict=True):
            if request is None:
                self._finish(entry)
            elif isinstance(request, OSError):
                self._leave_out(entry, request)
            else:
                self.sent += 1
                self._ask(entry, request.send, request.size, covers)
        self._unfinished.advance()

    async def _send_row(self) -> None:
        try:
            await self._row.send()
        except OSError as exc:
            # The connection is lost in any case, as the rest of the file was announced.
            request = self._row.first
            if exc.errno == errno.EIO and request is not None and isinstance(request.entry, Entry):
                self._leave_out(request.entry, exc)
            raise

    def _ask(
        self, entry: Entry | None, send: Send | None, size: int, covers: BinlogPosition
    ) -> None:
        if not self._asked:
            self._link.progress_at = trio.current_time()  # until now nothing was due
        self._asked.append(Asked(entry, send, size, covers))
        self._asked_bytes += size
        self._store.counters.total_sync_out_bytes += size

    # --- what answers ask for -----------------------------------------------------------------

    async def _follow_up(self, entry: Entry, what: Next) -> None:
        """Send what the answer to a record asked for."""
        record, covers = entry.record, self._store.binlog.position
        self._restless = True
        if what in (Next.COMPARE_SIZE, Next.COMPARE_CONTENT):
            if entry.theirs is not None:
                await self._compare(entry, *entry.theirs)
                return
            body = FileRequest(self._config.group_name, record.name).encode()
            self._ask(entry, None, len(body), covers)
            flags = NO_CRC if what is Next.COMPARE_SIZE else 0
            header = pack_header(len(body), StorageCommand.FILE_INFO, flags)
            await self._link.send(header + body)
            return
        if what is Next.EXAMINE:
            await self._examine(entry)
            return
        send = Send.CREATE if what is Next.SEND_CREATE else Send.UPDATE
        if entry.late:
            # One that breaks off in the middle costs the connection.
            await self._read(self._requests.checksum, record)
        request = await self._read(self._requests.whole, record, send)
        self._queue([entry], [request], covers)
        await self._send_row()

    async def _compare(self, entry: Entry, size: int, crc: int) -> None:
        """Send the file of *entry* whole, unless the peer's has our size and CRC-32."""
        entry.theirs = None
        # Where ours is gone, its deletion follows.
        found = await self._read(self._requests.checksum, entry.record)
        if found is None or found == (size, crc):
            entry.finished = True
            self._unfinished.advance()
        else:
            self._followups.append((entry, Next.SEND_UPDATE))

    async def _examine(self, entry: Entry) -> None:
        """The peer says that a file does not fit its name. If that is so here too, it is lost.

        Raises:
            PeerRefused: ours is whole, so it was damaged on its way.
        """
        name = entry.record.name
        subject = subject_of(name)
        if subject.nature is Nature.FIXED:
            found = await self._read(self._requests.checksum, entry.record)
            if found == (subject.size, subject.crc32):
                raise PeerRefused(f"{name} was damaged on its way")
            if found is not None:
                logger.error(
                    "%s is damaged here: its content does not fit its name; other storages do not "
                    "get it: restore it, or delete it",
                    name,
                )
        entry.finished = True
        self._unfinished.advance()

    # --- answers ------------------------------------------------------------------------------

    def receive_nowait(self) -> None:
        """Take the answers that have arrived. Does not raise."""
        if not self._asked:
            return
        try:
            answers = self._link.receive_nowait()
            if answers:
                self._take_all(answers)
        except Exception as exc:
            self._failure = exc  # for the sending task to end with
            self.wake()

    async def _receive_all(self) -> None:
        while True:
            self._take_all(await self._link.receive())

    def _take_all(self, answers: Sequence[tuple[int, bytes]]) -> None:
        for status, body in answers:
            if not self._asked:
                raise PeerRefused("it answered what it was not asked")
            asked = self._asked.popleft()
            self._asked_bytes -= asked.size
            if asked.entry is not None:
                self._take(asked, asked.entry, status, body)
        self._unfinished.advance()
        half = len(self._asked) > WINDOW // 2 or self._asked_bytes > WINDOW_BYTES // 2
        if self._full and half:
            return  # so that the sender has much to do when it is woken
        more = self._followups or self._reader.position < self._store.binlog.position
        if more or (self._restless and not self._unfinished):
            self.wake()

    def _take(self, asked: Asked, entry: Entry, status: int, body: bytes) -> None:
        if asked.send is None:
            own = self._requests.own_size(entry.record)
            theirs = FileInfo.decode(body) if not status else None
            if own is not None and (theirs is None or own != theirs.size):
                self._followups.append((entry, Next.SEND_UPDATE))
            elif own is not None and theirs is not None and entry.record.op == ops.TRUNCATE:
                entry.theirs = theirs.size, theirs.crc32
                self._followups.append((entry, Next.COMPARE_CONTENT))
            else:
                entry.finished = True
            return
        what = (
            Next.DONE if not status and asked.send in _WHOLE else after_answer(asked.send, status)
        )
        if status == errno.EFBIG and asked.send is Send.TRUNCATE:
            # It was logged before it was tried here. Refused here too, it has changed nothing.
            done_here = self._requests.own_size(entry.record) == entry.record.numbers[1]
            what = Next.FAIL if done_here else Next.DONE
        if what is Next.DONE:
            self._finish(entry)
            self._store.counters.success_sync_out_bytes += asked.size
            if not status and asked.send in _WHOLE and asked.size > _COVER_BYTES:
                self._covered.add(entry.record.name, asked.covers)
        elif what is Next.FAIL and status == errno.EFBIG:
            self._leave_out(entry, OSError(status, "too large for its file system"))
        elif what is Next.FAIL:
            problem = StatusError(status, f"{entry.record.op} {entry.record.name}")
            raise PeerRefused(f"it cannot take a change: {problem}")
        else:
            self._followups.append((entry, what))
