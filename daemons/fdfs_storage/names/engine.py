"""The way of a change: queue, batch, log, objects, state, answer.

Everything that waits when the engine gets to it becomes one batch:

1. in one open transaction of the state each change is made and applied in turn (one that is
   refused leaves no trace and is answered with its status);
2. the records of all that were applied are appended to the log with one fdatasync;
3. their object work is done (`effects`), new objects being sent to the peers meanwhile. Where
   nobody else gets a turn before its end, new objects are sent and made during 2: a loss of power
   may then leave some that no file has, as it may on the peers;
4. the transaction is committed: now lookups see the changes;
5. all are answered.

Meanwhile the next batch gathers, so the more clients, the fewer syncs per change. A crash before
the end of 2 loses changes that nobody was told of; after it, replaying the log does 3 and 4.
When 2, 3 or 4 fails, the log is cut off where it was, objects of 3 are removed, also from the
peers, and the transaction rolled back; batches before it that were not settled are applied again
from the log. When even that fails the engine stops, as it no longer knows what a restart will find.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

import trio

from fdfs_storage.names import effects
from fdfs_storage.names.copies import CopyGate
from fdfs_storage.names.log import Log
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.state import State
from fdfs_storage.names.work import Answer, Applied, Reply, Work
from fdfs_storage.names.worker import Worker
from fdfsfuse.core.names_log import Append, NotPrimary, Position, Replica
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names_record import Change, Op

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 512
"""Changes in one batch at most: about 50 ms of work."""
BATCH_BYTES_MAX: Final = 8 << 20
_INLINE_BYTES_MAX: Final = 256 << 10
_SLOW_SYNC_S: Final = 0.003
_SLOW_IN_A_ROW: Final = 4
"""Fewer may be due to other processes on the CPU, or to a moment in which the disk was busy."""
_IN_THREAD_FACTOR: Final = 50
"""After a slow sync a thread does the next ones, for so many times as long as that one took: a slow
disk then stops the loop for at most one part in so many of the time."""
_CONTENT: Final = (names_record.PutContent, names_record.PutXattr, names_record.MakeFile)
"""Operations that change object files."""
_DONE: Final = names.encode(names.Done())

Steps = Generator[Callable[[], None], None, None]


class EngineBroken(FdfsError):
    """The log or the state could not be brought back to what was acknowledged."""


class Engine:
    """Runs the batches. One task runs `run`; changes come from any task of the loop.

    Attributes:
        gate: where answers wait for copies of content.
        broken: the engine has stopped for good; changes are refused with NOT_PRIMARY.
        committed: index of the last record in the committed state.
        on_commit: called with the changes of a batch right after it was committed. Returns those
            that it will answer itself later; their answers are put into the values.
        on_apply: called with a change right before it is applied. Returns whether the change has to
            wait; it will be submitted again then.
        on_repeat: called with (session, id, reply) of a change that was carried out before. Returns
            whether its answer still waits; *reply* is called along with it then.
        on_answered: called after the answers of a batch were given.
        is_live: whether a session is certain not to have ended; if not, `has_ended` looks it up.
    """

    def __init__(
        self, state: State, log: Log, replica: Replica, objects: Objects, gate: CopyGate
    ) -> None:
        self.gate = gate
        self.state = state
        self.log = log
        self.replica = replica
        self.objects = objects
        self.broken = False
        self.on_commit: Callable[[Sequence[Applied]], Mapping[Work, Answer]] = lambda changes: {}
        self.on_apply: Callable[[Work, Op], bool] = lambda work, op: False
        self.on_repeat: Callable[[int, int, Reply], bool] = lambda session, id, reply: False
        self.on_answered: Callable[[], None] = lambda: None
        self.is_live: Callable[[int], bool] = lambda session: True
        self.committed = state.position.index
        self._pause = trio.Lock()
        self._worker = Worker("names-log")
        self._queue: deque[Work] = deque()
        self._wake = trio.Event()
        self._idle = False
        self._eager = 0
        self._failure: EngineBroken | None = None
        self._slow_syncs = 0
        self._in_thread_until = 0.0

    # --- start ------------------------------------------------------------------------------

    def replay(self, record: names_record.Record) -> None:
        """Apply a record found in the log behind the state. Raises EngineBroken."""
        change = names_record.decode_change(record.payload)
        try:
            effects.replay(self.objects, change)
            self.state.apply(Position(record.view, record.index), change)
        except (StatusError, sqlite3.Error) as exc:
            raise EngineBroken(
                f"record {record.index} of the log cannot be applied: {exc}"
            ) from exc

    @property
    def is_busy(self) -> bool:
        """True while changes are queued or being carried out."""
        return not self._idle or bool(self._queue)

    # --- changes ----------------------------------------------------------------------------

    def has_ended(self, session: int) -> bool:
        """Whether the end of the session is recorded, so that nothing may be done for it any more.

        From then on a mount may be told that a change was not made. So it must not be made later,
        for example by an operation with steps that had begun before.
        """
        return session != 0 and not self.is_live(session) and self.state.has_ended(session)

    def submit(self, work: Work) -> None:
        """Queue a change; ``work.reply`` is called when it is decided."""
        self.submit_lazily(work)
        if self._idle:
            self._wake.set()

    def submit_lazily(self, work: Work) -> None:
        """`submit`, by a caller that calls `kick` before it waits for anything."""
        if self.broken:
            work.reply(names.NOT_PRIMARY, b"")
        else:
            self._queue.append(work)

    def kick(self) -> None:
        """Carry out what was submitted lazily: at once, if that is quicker than by the task.

        Going through the engine's task and the log's thread costs four passes of the loop and a
        transaction. On a disk that syncs quickly, doing it all here halves the time, and nobody
        else waits longer than a sync takes.
        """
        if not self._queue or not self._idle or self.broken:
            return
        queue = self._queue
        if (
            time.monotonic() < self._in_thread_until
            or self._pause.locked()
            or len(queue) > BATCH_MAX
            or (len(queue) > 1 and sum([work.size for work in queue]) > _INLINE_BYTES_MAX)
            or queue[0].size > _INLINE_BYTES_MAX
        ):
            self._wake.set()
            return
        batch = list(queue)
        queue.clear()
        steps = self._steps(batch, at_once=True)
        sync = next(steps, None)
        while sync is not None:
            start = time.monotonic()
            try:
                sync()
            except Exception as exc:
                sync = _next_after(steps, exc)
            else:
                took = time.monotonic() - start
                self._slow_syncs = self._slow_syncs + 1 if took > _SLOW_SYNC_S else 0
                if self._slow_syncs >= _SLOW_IN_A_ROW:
                    self._in_thread_until = start + took * _IN_THREAD_FACTOR
                sync = next(steps, None)
        if self._failure is not None:
            self._wake.set()
        self.on_answered()

    async def change(self, make: Op | Callable[[], Op | None]) -> None:
        """Make a change of the storage's own and wait until it is committed.

        Raises:
            StatusError: it was refused or failed.
        """
        done = trio.Event()
        outcome = [0]

        def reply(status: int, answer: bytes) -> None:
            outcome[0] = status
            done.set()

        self.submit(Work(make, reply))
        await done.wait()
        self.settle()
        if outcome[0]:
            raise StatusError(outcome[0])

    def settle(self) -> None:
        """Show other connections what was committed, unless a batch is open.

        While one is open they see what was committed before it, as `_run_batch` settles first.
        """
        if not self.state.in_batch and self._failure is None:
            try:
                self.state.settle()
            except sqlite3.Error as exc:
                # The log has everything: a later try may work, and a restart would replay it.
                logger.error("the names database cannot be written now: %s", exc)
                if not self.state.db.in_transaction:
                    self._stop("the database dropped changes that are only in the log now")

    def _stop(self, why: str) -> None:
        self.broken = True
        self._failure = EngineBroken(why)
        self._wake.set()

    @contextmanager
    def visible(self) -> Iterator[None]:
        """Inside, all connections see each batch as soon as it is committed."""
        self._eager += 1
        try:
            self.settle()
            yield
        finally:
            self._eager -= 1

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No batch runs inside, and all connections see what is committed."""
        async with self._pause:
            self.settle()
            yield

    async def run(self) -> None:
        """Carry out what is submitted, until cancelled; a batch that has begun is finished.

        Raises:
            EngineBroken: nothing can be changed any more until a restart.
        """
        try:
            while True:
                while not self._queue:
                    self._idle = True
                    self._wake = trio.Event()
                    await self._wake.wait()
                    if self._failure is not None:
                        raise self._failure
                self._idle = False
                batch, size = [self._queue.popleft()], 0
                while self._queue and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
                    work = self._queue.popleft()
                    size += work.size
                    batch.append(work)
                # Half a batch would be neither acknowledged nor undone.
                with trio.CancelScope(shield=True):
                    async with self._pause:
                        await self._run_batch(batch)
                    self.on_answered()
                if self._failure is not None:
                    raise self._failure
        except Exception as exc:
            if isinstance(exc, EngineBroken):
                raise
            raise EngineBroken(f"a mistake in the engine: {exc!r}") from exc
        finally:
            self.broken = True
            while self._queue:
                self._queue.popleft().reply(names.NOT_PRIMARY, b"")
            self.on_answered()
            self._worker.close()

    async def _run_batch(self, batch: list[Work]) -> None:
        # Others read while the log is synced by the thread, on their own connections.
        self.settle()
        steps = self._steps(batch)
        sync = next(steps, None)
        while sync is not None:
            try:
                if self.state.unsettled:  # it could not be shown, so nobody may read now
                    sync()
                else:
                    await self._worker.run(sync)
            except Exception as exc:
                sync = _next_after(steps, exc)
            else:
                sync = next(steps, None)

    def _steps(self, batch: list[Work], *, at_once: bool = False) -> Steps:
        """A whole batch. Yields what the caller has to call, or let a thread call: it syncs.

        Sets ``_failure`` when the engine has to stop.

        Args:
            at_once: nobody else gets a turn before the end.
        """
        state = self.state
        answers: list[tuple[Work, int, bytes]] = []
        applied: list[Applied] = []
        later: Mapping[Work, Answer] = {}
        culprit: Work | None = None
        aside: list[Work] = []
        try:
            state.begin()
            for work in batch:
                culprit = work
                decided = self._apply(work, applied)
                if decided is None:
                    aside.append(work)
                else:
                    answers.append(decided)
            culprit = None
            yield from self._keep(applied, at_once)
        except EngineBroken as exc:
            self.broken = True
            self._failure = exc
            answers = [(work, names.NOT_PRIMARY, b"") for work in batch if work not in aside]
        except Exception as exc:
            status = _status(exc)
            batch = [work for work in batch if work not in aside]
            if not self._undo():
                answers = [(work, names.NOT_PRIMARY, b"") for work in batch]
            elif culprit is None:
                logger.error("a batch of %d changes could not be kept: %s", len(batch), exc)
                answers = [(work, status, b"") for work in batch]
            else:
                logger.error("a change failed: %r", culprit.make, exc_info=exc)
                culprit.reply(status, b"")
                rest = [work for work in batch if work is not culprit]
                if rest:
                    self.objects.end_batch()  # what they have planned was not done
                    yield from self._steps(rest, at_once=at_once)
                return
        else:
            self.committed = state.position.index
            if self.gate.counts:
                self._hold(answers, applied)
            if applied:
                later = self.on_commit(applied)
        finally:
            self.objects.end_batch()
        for work, status, answer in answers:
            if later and (waits := later.get(work)) is not None:
                waits.answer = (status, answer)
            elif work.repeatable and self.on_repeat(work.session, work.id, work.reply):
                continue
            else:
                work.reply(status, answer)

    def _undo(self) -> bool:
        """Take back the open batch, and nothing before it. False: the engine has to stop."""
        state = self.state
        try:
            if not state.rollback():
                state.begin()
                for record in self.log.retained(self.log.last.index, after=state.position.index):
                    change = names_record.decode_change(record.payload)
                    state.apply(Position(record.view, record.index), change)
                state.commit(lazily=True)
                self.settle()
        except (sqlite3.Error, OSError, FdfsError) as exc:
            self._stop(f"changes that only the log has now could not be applied again: {exc!r}")
        return self._failure is None

    def _hold(self, answers: list[tuple[Work, int, bytes]], applied: list[Applied]) -> None:
        """Let the answers to changes that brought content wait for the copies.

        Also those to repeated requests, as the first answer may not have been given yet.
        """
        content = {item.work for item in applied if type(item.change.op) in _CONTENT}
        if not content and not any(work.repeatable for work, _, _ in answers):
            return
        # New objects were sent before the log was synced, so the copies may be there already.
        self.gate.look()
        done = {item.work for item in applied}
        for work, status, _ in answers:
            if not status and (work in content or (work.repeatable and work not in done)):
                work.reply = self.gate.held(work.reply)

    def _apply(self, work: Work, applied: list[Applied]) -> tuple[Work, int, bytes] | None:
        """Apply one change of the batch, or find its stored outcome, or why it is refused.

        Returns:
            (the change, status, answer); None if it has to wait.
        """
        state = self.state
        if work.repeatable:
            stored = state.results.find(work.session, work.id)
            if stored is not None:
                return work, 0, stored
        if work.session and not self.is_live(work.session) and self.has_ended(work.session):
            return work, names.SESSION_ENDED, b""
        replica = self.replica
        position = Position(replica.view.number, replica.last.index + 1 + len(applied))
        try:
            make = work.make
            op = make() if callable(make) else make
            if op is None:
                return work, 0, _DONE
            if self.on_apply(work, op):
                # It may come again meanwhile, by another connection, and be done first.
                work.repeatable = True
                return None
            change = Change(work.session, work.id, work.done_below, time.time_ns(), op)
            answer, outcome = state.apply(position, change)
        except StatusError as exc:
            return work, exc.errno or errno.EIO, b""
        applied.append(Applied(position, change, work, outcome))
        if isinstance(op, _CONTENT):
            metadata = op.metadata
            if op.file_id and metadata is not None:
                self.objects.plan_metadata(op.file_id, metadata)
        return work, 0, answer

    def _keep(self, applied: list[Applied], at_once: bool) -> Steps:
        """Log, object work, commit; or undo all of it and raise."""
        state, replica, log = self.state, self.replica, self.log
        if not applied:
            state.end_unchanged()
            return
        mark, last = log.mark(), replica.last
        made: list[str] = []
        try:
            changes = [names_record.encode_change(item.change) for item in applied]
            append = replica.propose(changes)[0]
            assert isinstance(append, Append)
            work = [item.change for item in applied if type(item.change.op) in effects.WORK]
            contents = effects.contents(work) if work else []
            if at_once:
                # New objects are made here and by the peers while the log is synced.
                log.write(append.records)
                if contents:
                    log.start_sync()
                self._announce(contents, made)
                if len(contents) == len(work):
                    self._perform(work, made)
                    work = []
                yield log.sync
            else:
                yield partial(log.append, append.records)
                self._announce(contents, made)
            self._perform(work, made)
            state.commit(lazily=at_once and not self._eager)
            replica.has(replica.own_id, replica.last.index)
        except Exception as exc:
            try:
                # The log first: a restart would make again what peers were told is deleted.
                log.cut(mark)
                replica.retract(last)
            except Exception as undo:
                raise EngineBroken(f"after {exc!r} the log could not be cut: {undo!r}") from exc
            for file_id in made:
                try:
                    self.objects.withdraw(file_id)
                except StatusError as undo:
                    logger.error("the object %s, which no file has, stays: %s", file_id, undo)
            raise

    def _perform(self, work: list[Change], made: list[str]) -> None:
        """Do object work; what it makes is added to what was *made*."""
        if work:
            with self.gate.gathered():
                for change in work:
                    file_id = effects.perform(self.objects, change)
                    if file_id:
                        made.append(file_id)

    def _announce(self, contents: list[tuple[str, bytes]], made: list[str]) -> None:
        """Send new objects (name, content) to the peers, and add them to what was *made*."""
        if contents:
            with self.gate.gathered():
                self.objects.announce(contents)
                made += [file_id for file_id, _ in contents]


def _next_after(steps: Steps, exc: Exception) -> Callable[[], None] | None:
    """What *steps* yield next, None at their end, when what they had yielded has raised *exc*."""
    try:
        return steps.throw(exc)
    except StopIteration:
        return None


def _status(exc: Exception) -> int:
    """The status for changes that could not be kept."""
    if isinstance(exc, NotPrimary):
        return names.NOT_PRIMARY
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return errno.ENOSPC
    if isinstance(exc, sqlite3.OperationalError) and "full" in str(exc):
        return errno.ENOSPC
    return errno.EIO
