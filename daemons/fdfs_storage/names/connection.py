"""A session's connection: frames in, answers out, in any order.

Requests that read are answered where they are, between two awaits; changes go to the engine.
Answers gather (`Outbox`) while whole frames are still waiting in the receive buffer, or while the
engine answers a batch, and leave in one send. Nothing here grows without bound: a mount that has
too many changes waiting, or that does not take its answers, is not read from until that is better,
and when it takes nothing at all the server's network timeout ends the connection.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from fdfs_storage.names import checks
from fdfs_storage.names.frames import Frames
from fdfs_storage.names.outbox import Outbox
from fdfs_storage.names.reads import Reads, WouldBlock, read_content, warm
from fdfs_storage.names.sessions import Session
from fdfs_storage.names.work import Work
from fdfsfuse.errors import ConnectionProblem, ProtocolError, StatusError
from fdfsfuse.proto import names

if TYPE_CHECKING:
    from fdfs_storage.names.tree import Tree
    from fdfsfuse.server.connection import FramedConnection

logger = logging.getLogger(__name__)

QUEUED_MAX: Final = 4096
"""Requests of one connection that may wait for their answer."""
QUEUED_BYTES_MAX: Final = 8 << 20
OUT_BYTES_MAX: Final = 4 << 20
PATIENCE_S: Final = 0.004
"""How long requests that nobody waits for are left to gather: some twenty then cost one wake-up,
one batch and one packet of answers."""
PATIENCE_MIN_S: Final = 0.001
"""At first, and twice as long each time: a TCP connection sends ten packets before anything is
acknowledged, and twice as many each time (RFC 6928, RFC 5681)."""
_SENDS_LESS_S: Final = 0.2
"""When it was idle for so long it sends ten again: Linux's shortest retransmission timeout."""
_ID_MAX: Final = (1 << 63) - 1
_CHANGES: Final = frozenset(names.CHANGES)


class SessionConnection:
    """Serves one session on one connection."""

    def __init__(self, connection: FramedConnection, session: Session, tree: Tree) -> None:
        self.session = session
        self._connection = connection
        self._tree = tree
        self._queued = 0
        self._queued_bytes = 0
        self._paused_at = -math.inf
        self._patience_s = PATIENCE_MIN_S
        self._frames = Frames(connection)
        self._outbox = Outbox(connection)
        self._nursery: trio.Nursery
        self._ended = trio.Event()
        self._problem: ConnectionProblem | ProtocolError | None = None
        reads: Reads = tree.reads
        self._reads: dict[type, Callable[[Any], Any]] = {
            names.Lookup: reads.lookup,
            names.GetAttr: reads.get_attr,
            names.ReadDir: reads.read_dir,
            names.ListXattrs: reads.xattrs,
            names.LookupObject: reads.lookup_object,
            names.Paths: reads.paths,
            names.Open: reads.open,
            names.StatFs: tree.space,
            names.KeepAlive: lambda request: names.Done(),
            names.Holds: self._holds,
        }

    def _greet(self, opened: names.SessionOpened) -> None:
        """Behind the answer to OPEN_SESSION goes what the session has to confirm."""
        self._outbox.opened(opened)
        if self.session.hears_in_sync:
            self.push(self._tree.in_sync())
        for recall in self._tree.callbacks.connected(self.session):
            self.push(recall)
        self._outbox.flush()

    @property
    def waiting(self) -> int:
        """Requests that have no answer yet."""
        return self._queued

    # --- reading ----------------------------------------------------------------------------

    async def run(self, opened: names.SessionOpened) -> None:
        """Answer OPEN_SESSION and serve until the mount goes away.

        Raises:
            ConnectionBroken, ProtocolError: the connection is of no more use.
        """
        hub = self._connection.hub
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._outbox.run)
                self._greet(opened)
                hub.watch(self._connection, self._readable)
                self._guarded(self._take_frames)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            hub.unwatch(self._connection)
            self._outbox.closed = True
            self._tree.engine.kick()
        if self._problem is not None:
            raise self._problem

    def _end(self, problem: ConnectionProblem | ProtocolError | None = None) -> None:
        """Let `run` return."""
        self._connection.hub.unwatch(self._connection)
        self._problem = self._problem or problem
        self._outbox.closed = True
        self._ended.set()

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (ConnectionProblem, ProtocolError) as exc:
            self._end(exc)
        except Exception:
            logger.exception("a mistake on a session's connection, which is closed")
            self._end()

    def _readable(self) -> None:
        """The hub has seen bytes, or the end of the connection."""
        self._guarded(self._receive)

    def _receive(self) -> None:
        if self._outbox.closed or not self._frames.receive():
            self._end()
        else:
            self.session.seen = self._tree.sessions.clock()
            self._take_frames()

    def _take_frames(self) -> None:
        """Carry out the requests that have arrived."""
        frames, ids = self._frames, names.FRAME_IDS
        while not self._outbox.closed and (body := frames.take()) is not None:
            if not body:
                continue
            number, done_below = ids.unpack_from(body)
            request = names.decode_request(body[ids.size :])
            if number == 0:
                if not isinstance(request, names.Recalled):
                    raise ProtocolError(f"a {type(request).__name__} without an id")
                self._tree.callbacks.recalled(self.session, request)
                continue
            if not 1 <= number <= _ID_MAX or done_below > _ID_MAX:
                raise ProtocolError(f"request id {number}, {done_below}")
            self._dispatch(number, done_below, request, len(body))
            if self._is_full():
                self._connection.hub.unwatch(self._connection)
                self._nursery.start_soon(self._wait_for_room)
                break
        else:
            if frames.patient and not self._outbox.closed:
                self._pause()
        self._tree.unflushed.add(self._outbox)
        self._connection.hub.at_turn_end(self._tree.end_turn)

    def _pause(self) -> None:
        """Let more requests gather before they are read."""
        now = trio.current_time()
        long_ago = now - self._paused_at > _SENDS_LESS_S
        self._paused_at = now
        self._patience_s = PATIENCE_MIN_S if long_ago else min(2 * self._patience_s, PATIENCE_S)
        self._connection.hub.pause(self._connection, self._patience_s, names.PADDING_SIZE)

    def _is_full(self) -> bool:
        return (
            self._queued >= QUEUED_MAX
            or self._queued_bytes >= QUEUED_BYTES_MAX
            or self._outbox.waiting_bytes >= OUT_BYTES_MAX
        )

    async def _wait_for_room(self) -> None:
        """Read on when less is waiting."""
        while self._is_full() and not self._outbox.closed:
            await self._outbox.wait_for_room()
        if not self._outbox.closed:
            self._connection.hub.watch(self._connection, self._readable)
            self._guarded(self._take_frames)

    # --- requests ---------------------------------------------------------------------------

    def _dispatch(
        self, number: int, done_below: int, request: Any, size: int, *, warmed: bool = False
    ) -> None:
        """Answer a request, or set going what will. *warmed*: its contents were read just now."""
        if self.session.ending:
            self._outbox.answer(number, names.SESSION_ENDED)
            return
        if self._tree.engine.broken:
            # What is in the database may lie behind what was acknowledged.
            self._outbox.answer(number, names.NOT_PRIMARY)
            return
        try:
            checks.check(request)
            read = self._reads.get(type(request))
            if read is not None:
                if self._outbox.mute and type(request) is not names.Holds:
                    return  # nobody hears the answer, and there may be thousands more
                answer = self._tree.reads.open(request, partly=True) if warmed else read(request)
                told = _told(request, answer)
                if told and self._waits(number, request, told):
                    return
                if self.session.caches:
                    self._tree.callbacks.hold(self.session, told)
                self._outbox.answer(number, 0, names.encode(answer))
            elif type(request) in _CHANGES:
                self._change(number, done_below, request, size)
            elif isinstance(request, names.ListObjects):
                self._queued += 1
                self._nursery.start_soon(self._list_objects, number, request)
            elif isinstance(request, names.Grant):
                self._grant(number, request)
            else:
                self._queued += 1
                self._nursery.start_soon(self._former_outcome, number, request)
        except StatusError as exc:
            if isinstance(request, names.Lookup) and exc.errno == errno.ENOENT:
                if self._waits(number, request, (request.parent,)):
                    return
                # That there is no such name is something to hold, too.
                self._tree.callbacks.hold(self.session, (request.parent,))
            self._outbox.answer(number, exc.errno or errno.EIO)
        except WouldBlock:
            self._queued += 1
            wait = self._open_waiting if warmed else self._warm
            self._nursery.start_soon(wait, number, request)
        except Exception:
            logger.exception("a request failed: %s", type(request).__name__)
            self._outbox.answer(number, errno.EIO)

    def _waits(self, number: int, request: Any, told: Sequence[int]) -> bool:
        """Whether a request that reads has to wait, as others make files where it looks."""

        def again() -> None:
            self._queued -= 1
            if not self._outbox.closed:
                self._dispatch(number, 0, request, 0)
                self._outbox.flush()

        if not self._tree.callbacks.wait_for_grants(self.session.number, told, again):
            return False
        self._queued += 1
        return True

    def _grant(self, number: int, request: names.Grant) -> None:
        """In turn with the changes, of which those before may concern the directory.

        Who made them holds it only once they are committed, so it is granted behind that.
        """

        def make() -> None:
            self._tree.check_grantable(request)

        def reply(status: int, answer: bytes) -> None:
            self._queued -= 1
            if not status and not self._tree.callbacks.grant(self.session, request.ino):
                status, answer = errno.EAGAIN, b""
            self._outbox.answer(number, status, answer)
            self._tree.unflushed.add(self._outbox)

        self._queued += 1
        self._tree.engine.submit_lazily(Work(make, reply, session=self.session.number))

    def _change(
        self, number: int, done_below: int, request: names.ChangeRequest, size: int
    ) -> None:
        session, tree = self.session, self._tree
        repeatable = number <= session.high
        if not repeatable:
            session.high = number
        make = tree.preparer.operation(request)
        before: Callable[[int], None] | None = None
        if make is None:
            if isinstance(request, names.CloseSession):
                session.ending = True
                make = session.end
                before = self._closing
            elif isinstance(request, names.MakeWritable):
                before = partial(self._made_writable, request.ino)

        together = self._frames.patient and session.hears_made

        def reply(status: int, answer: bytes) -> None:
            self._queued -= 1
            self._queued_bytes -= size
            if before is not None:
                before(status)
            if together and not status:
                self._outbox.note_made(number)
            else:
                self._outbox.answer(number, status, answer)
            tree.unflushed.add(self._outbox)

        self._queued += 1
        self._queued_bytes += size
        work = Work(
            make,
            reply,
            session=session.number,
            id=number,
            done_below=done_below,
            size=size,
            repeatable=repeatable,
        )
        if make is not None:
            tree.engine.submit_lazily(work)
        else:
            tree.start_operation(work, request)

    def _closing(self, status: int) -> None:
        if status:
            self.session.ending = False  # its lease will end it

    def _made_writable(self, ino: int, status: int) -> None:
        if not status:
            # Perhaps nothing had to be changed, so nothing was committed.
            self._tree.callbacks.hold(self.session, (ino,))

    def _holds(self, request: names.Holds) -> names.Done:
        if not self._tree.sessions.change_holds(self.session, request.added, request.removed):
            raise StatusError(errno.ENOSPC, "too many inodes held")
        return names.Done()

    async def _warm(self, number: int, request: names.Open) -> None:
        """Have the contents for an answer in memory, then begin anew: much may have changed."""
        with contextlib.suppress(StatusError):
            await trio.to_thread.run_sync(warm, self._tree.reads.contents(request))
        self._queued -= 1
        if not self._outbox.closed:
            self._dispatch(number, 0, request, 0, warmed=True)
            self._outbox.flush()

    async def _open_waiting(self, number: int, request: names.Open) -> None:
        """Open whose content does not even stay in memory until it is sent."""
        status, answer = 0, b""
        try:
            attr = self._tree.reads.get_attr(names.GetAttr(request.ino))
            data: bytes | None = None
            if self._tree.reads.wants_data(attr, request) and attr.file_id:
                path = self._tree.objects.path(attr.file_id)
                try:
                    data = await trio.to_thread.run_sync(read_content, path, attr.size)
                except OSError:
                    data = None
                # As they are now: answers must not be older than those given meanwhile.
                before, attr = attr, self._tree.reads.get_attr(names.GetAttr(request.ino))
                if (attr.file_id, attr.version) != (before.file_id, before.version):
                    data = None
            self._tree.callbacks.hold(self.session, (attr.ino,))
            answer = names.encode(names.Opened(attr, data))
        except StatusError as exc:
            status = exc.errno or errno.EIO
        self._answer_late(number, status, answer)

    async def _list_objects(self, number: int, request: names.ListObjects) -> None:
        status, answer = 0, b""
        try:
            answer = names.encode(await self._tree.listing.answer(request))
        except StatusError as exc:
            status = exc.errno or errno.EIO
        except Exception:
            logger.exception("listing objects failed")
            status = errno.EIO
        self._answer_late(number, status, answer)

    async def _former_outcome(self, number: int, request: names.FormerOutcome) -> None:
        def reply(status: int, answer: bytes) -> None:
            self._answer_late(
                number, status, b"" if status else names.encode(names.Outcome(answer))
            )

        try:
            if not await self._tree.former.ask(self.session, request, reply):
                self._answer_late(number, 0, names.encode(names.Outcome(None)))
        except StatusError as exc:
            self._answer_late(number, exc.errno or errno.EIO, b"")
        except Exception:
            logger.exception("asking for the outcome of a request failed")
            self._answer_late(number, errno.EIO, b"")

    def _answer_late(self, number: int, status: int, answer: bytes) -> None:
        self._queued -= 1
        self._outbox.answer(number, status, answer)
        self._outbox.flush()

    def push(self, message: names.Push) -> None:
        """Send a push."""
        self._outbox.push(message)

    def shutdown(self) -> None:
        """End the connection from this side; `run` returns soon."""
        self._outbox.closed = True
        self._connection.shutdown()
        self._ended.set()


def _told(request: Any, answer: Any) -> list[int]:
    """The inodes that a session is told of by an answer to a request that reads."""
    if isinstance(answer, names.Attr):
        if isinstance(request, names.Lookup):
            return [request.parent, answer.ino]
        return [answer.ino] if answer.ino else []
    if isinstance(answer, names.Listing):
        return [request.ino, *(entry.attr.ino for entry in answer.entries)]
    if isinstance(answer, names.Opened):
        if answer.following:
            return [request.ino, answer.parent, *(entry.attr.ino for entry in answer.following)]
        return [request.ino]
    if isinstance(answer, names.Xattrs):
        return [request.ino, *answer.following] if request.ino else []
    return []
