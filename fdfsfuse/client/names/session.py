"""A names session: a mount's line to the storage that keeps a volume's tree.

The protocol is described in fdfsfuse/proto/names.py. A `NamesSession` hides broken connections and
changes of the primary: it finds the primary again, takes the session up and sends what has no
answer once more, with the same ids and in the same order, so that nothing is done twice.

What the user sees of it:

* `NamesSession.call` waits, whatever happens, until there is an answer or its deadline passes.
* What an answer told may be relied upon until the storage recalls it (a `names.Recall` given to
  ``on_push``, to be confirmed by `NamesSession.recalled`) or the lease has run out. When it has,
  ``on_lease_lost`` is called before any further answer is given: nothing that was told before may
  be used again, even though the lease may be renewed.
* When the session itself has ended (its lease ran out), a new one is opened. Requests that read are
  asked again there. For a request that changes, and may have been carried out, it is asked there
  what became of it (`names.FormerOutcome`): its answer is given late, or it is made in the new
  session, or, when nobody knows, it fails with EIO.
* When all storages of the group are stock FastDFS servers, calls raise NoNamesError.

Shared state: everything lives in one trio event loop and changes only between awaits. ``_calls``
holds what has no answer yet, in the order of the ids; whoever takes an entry out of it decides its
outcome. ``_socket`` is set while requests can be sent; only `_serve` closes it. Who reads from it
is told in `fdfsfuse.client.names.reading`.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Any

import trio
from trio.lowlevel import ParkingLot, notify_closing

from fdfsfuse.client import directwait
from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import connect
from fdfsfuse.client.names.arriving import Arriving
from fdfsfuse.client.names.calls import NamesCalls
from fdfsfuse.client.names.frames import FrameReader
from fdfsfuse.client.names.lease import Lease, boottime
from fdfsfuse.client.names.opening import SessionEnded, exchange_open, send_small_at_once
from fdfsfuse.client.names.pending import Call, PendingCalls
from fdfsfuse.client.names.reading import Reading
from fdfsfuse.client.names.sending import Sending
from fdfsfuse.client.views import Candidate, Finder, Found, find_primary
from fdfsfuse.errors import (
    ConnectionBroken,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    NoNamesError,
    UsageError,
)
from fdfsfuse.proto import names

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
"""Most time for finding the primary and opening a session there, per attempt."""
FIND_TIMEOUT_S = 1.5
"""How long the trackers are asked for the storages when these are known from before."""
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
STOCK_PROBE_S = 30.0
"""How often a group without names is asked whether it has them now."""
CLOSE_TIMEOUT_S = 1.0
_ANSWERS_S = 5.0
"""A storage that works is heard of within this time: `KeepAlive` sees to it."""
PROMPT_S = 0.05
"""After so long without an answer the storage may have died or hang."""
OUTSTANDING_MAX = 64 << 20
"""Bytes of requests without an answer; callers wait beyond it."""
HOLDS_PER_REQUEST = 50_000


class NamesSession(NamesCalls):
    """See the module; made by `open_session`.

    Attributes:
        view: the view of the tree, None before the first connection.
        address: where its primary is; data connections for pending objects go there.
        connected: requests are being answered now.
        problem: why not, in words for people; "" while all is well.
        unreachable: the last attempt to reach a primary has failed.
        lease: until when the session is certain to live at the server.
    """

    def __init__(
        self,
        find: Finder,
        client: str,
        holds: Callable[[], Collection[int]],
        on_push: Callable[[names.Push], None] | None,
        on_lease_lost: Callable[[], None] | None,
        lease_s: float,
        lease: Lease,
    ) -> None:
        self.view: names.View | None = None
        self.address: Address | None = None
        self.problem = "not connected yet"
        self.unreachable = False
        self.lease = lease
        self._find = find
        self._client = client
        self._holds = holds
        self._wanted_lease_s = lease_s
        self._candidates: Sequence[Candidate] = ()
        self._session = 0
        self._lost = False
        self._token = b""
        self._calls = PendingCalls()
        self._arriving = Arriving(
            self._calls, lease, on_lease_lost, on_push or self._take_push, self._add
        )
        self._socket: socket.socket | None = None
        self._sending: Sending | None = None
        self._reading: Reading | None = None
        self._nursery: trio.Nursery | None = None
        self._timer = trio.CancelScope()
        self._timer_at = math.inf
        self._no_names = ""
        self._closed = False
        self._keep_alive: Call | None = None
        self._state_changed = ParkingLot()

    @property
    def lease_s(self) -> float:
        """The session's lease in seconds."""
        return self._arriving.lease_s

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def is_prompt(self) -> bool:
        """Whether there is a connection, over which answers came until a moment ago."""
        return self._sending is not None and boottime() - self._arriving.last_received < PROMPT_S

    @property
    def answers(self) -> bool:
        """Whether there is a connection, over which something came in the last seconds."""
        silent_s = boottime() - self._arriving.last_received
        return self._socket is not None and silent_s < _ANSWERS_S

    async def wait_connected(self) -> None:
        """Wait until requests are answered.

        Raises:
            NoNamesError: the group's storages are stock FastDFS servers.
        """
        while not self.connected:
            self._check_open()
            await self._state_changed.park()

    async def wait_change(self) -> None:
        """Wait until ``connected`` or ``problem`` may have changed."""
        await self._state_changed.park()

    # --- calls -----------------------------------------------------------------------------------

    async def call(self, request: names.Request, deadline: float = math.inf) -> Any:
        """Send *request* and wait for its answer.

        Cancelling a call forgets it: the session goes on, and the server may still carry it out.

        Args:
            deadline: trio time at which to give up.

        Raises:
            StatusError: the server's errno; EIO when the session ended and the server does not
                know any more whether the change was made.
            DeadlineExceeded: there was no answer in time; a change may have been made.
            NoNamesError: the servers know no names.
            ProtocolError: the answer made no sense.
        """
        body = names.encode(request)
        if self._no_names or self._closed:
            self._check_open()
        if self._calls.size + len(body) > OUTSTANDING_MAX:
            await self._wait_room(len(body), deadline)
        call = Call(type(request), body, deadline, True)
        self._add(call)
        if deadline < self._timer_at:
            self._timer_at = self._timer.deadline = deadline
        try:
            if self._reading is not None and len(self._calls) == 1:
                self._reading.read_directly(call)
            if not call.ended:
                call.task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(call.abandon)
            return call.result()
        except trio.Cancelled:
            call.wanted = False
            self._calls.discard(call)
            raise

    def post(self, request: names.Request, on_end: Callable[[Exception | None], None]) -> bool:
        """Send a change behind all requests before, and do not wait for the answer.

        It is sent again like any other, without a limit of time. *on_end*, which must not raise, is
        called with None when it was made, else with what `call` would raise.

        Returns whether it has left for certain: it will be made even if this process is killed now.
        """
        call = Call(type(request), names.encode(request), math.inf, True)
        call.on_end = on_end
        self._add(call)
        return self._sending is not None and self._sending.all_sent()

    def hurry(self) -> None:
        """Somebody has begun to wait for what was posted."""
        if self._sending is not None:
            self._sending.hurry()

    @property
    def no_names(self) -> bool:
        """Whether all storages of the group are stock servers, as far as is known."""
        return bool(self._no_names)

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        """Confirm a recall. Without a connection nothing happens: the storage repeats it then."""
        if self._socket is not None:
            body = names.encode(names.Recalled(number, list(kept)))
            assert self._sending is not None
            self._sending.write(0, self._calls.first() if self._calls else 0, body)

    def _take_push(self, push: names.Push) -> None:
        """Nobody else wants to hear of it."""
        if isinstance(push, names.Recall):
            self.recalled(push.number, ())

    def _check_open(self) -> None:
        if self._no_names:
            raise NoNamesError(self._no_names)
        if self._closed:
            raise UsageError("the names session is closed")

    async def _wait_room(self, size: int, deadline: float) -> None:
        with trio.move_on_at(deadline):
            await self._calls.wait_room(size, OUTSTANDING_MAX)
            return
        raise DeadlineExceeded(self._too_late())

    def _too_late(self) -> str:
        return f"no answer in time from the volume's names primary: {self.problem or 'it is slow'}"

    def _add(self, call: Call) -> None:
        """Give *call* the next id and send it, if possible now."""
        number = self._calls.add(call)
        if self._socket is not None:
            self._write(number, call)

    # --- sending ---------------------------------------------------------------------------------

    def _write(self, number: int, call: Call) -> None:
        """Write the frame of a call behind all others; never waits."""
        call.sent_at = boottime()
        body = call.body if call.former is None else names.encode(call.former)
        assert self._sending is not None
        self._sending.write(number, self._calls.first(), body, posted=call.on_end is not None)

    def _disconnect(self) -> None:
        """Give up the connection; the reader sees its end and closes it."""
        sock, self._socket = self._socket, None
        if self._sending is not None:
            self._sending.close()
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer has reset it already; the reader is woken by that

    # --- the life of a connection -----------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """Run the session in *nursery*; to be called once."""
        self._nursery = nursery
        nursery.start_soon(self._run)
        nursery.start_soon(self._run_timer)

    async def _run(self) -> None:
        """Keep the session connected, for ever."""
        failures = 0
        while True:
            pause = 0.0
            try:
                if self._lost:
                    self._lose_session()
                sock = await self._open()
                self._arriving.any = False
                await self._serve(sock)
            except NoNamesError as exc:
                self._give_up(str(exc))
                pause = STOCK_PROBE_S
            except SessionEnded as exc:
                self.problem = str(exc)
                self._lost = True
            except (FdfsError, OSError) as exc:
                self.problem = str(exc)
            except Exception as exc:
                # A defect of ours must not end the mount: it becomes a failed attempt.
                logger.exception("names session of %s", self._client)
                self.problem = f"internal error: {exc!r}"
                failures = max(failures, 1)
            if self._arriving.any:
                # It worked for a while: try again at once.
                failures, self._arriving.any = 0, False
            if failures:
                limit = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(failures, 10))
                pause = max(pause, random.uniform(limit / 2, limit))
                logger.log(
                    logging.WARNING if failures == 5 else logging.DEBUG,
                    "names session %s: attempt %d: %s",
                    self._client,
                    failures,
                    self.problem,
                )
            failures += 1
            self._state_changed.unpark_all()
            await trio.sleep(pause)

    async def _open(self) -> socket.socket:
        """Find the primary; open a session or take ours up there."""
        try:
            sock = await self._try_to_open()
        except (FdfsError, OSError) as exc:
            # One that has ended the session is there, and others may have changed anything since.
            self.unreachable = not isinstance(exc, SessionEnded)
            raise
        self.unreachable = False
        return sock

    async def _try_to_open(self) -> socket.socket:
        with trio.move_on_after(OPEN_TIMEOUT_S):
            found = await find_primary(self._find_candidates)
            connection = await connect(found.primary.address)
            sock = connection.detach()
            send_small_at_once(sock)
            try:
                if not self._session:
                    self._token = os.urandom(16)
                asked_at = self._arriving.last_received = boottime()
                opened = await exchange_open(
                    sock, self._session, self._token, self._client, self._wanted_lease_s
                )
            except BaseException:
                sock.close()
                raise
            self._opened(opened, asked_at, found)
            return sock
        raise ConnectionProblem(f"the names primary did not answer within {OPEN_TIMEOUT_S:g} s")

    async def _find_candidates(self) -> Sequence[Candidate]:
        """The group's storages; those known before when no tracker answers."""
        with trio.move_on_after(FIND_TIMEOUT_S if self._candidates else math.inf):
            try:
                self._candidates = await self._find()
            except ConnectionProblem:
                if not self._candidates:
                    raise
        return self._candidates

    def _opened(self, opened: names.SessionOpened, asked_at: float, found: Found) -> None:
        self._session = opened.session
        self._arriving.lease_s = opened.lease_s
        self._arriving.renew_lease(asked_at, boottime())
        self.view = opened.view
        self.address = found.primary.address

    async def _serve(self, sock: socket.socket) -> None:
        """Use a connection whose session is open until it breaks."""
        watch = directwait.watch(sock.fileno())
        reading = Reading(sock, FrameReader(sock, self._arriving.take).receive_nowait, watch)
        try:
            self._arriving.last_received = boottime()
            self._keep_alive = None
            self._reading = reading
            assert self._nursery is not None
            self._sending = Sending(sock, self._nursery, self._disconnect)
            self._socket = sock
            self._no_names = ""
            self.problem = ""
            self._resend()
            self._state_changed.unpark_all()
            self._timer_at = self._timer.deadline = min(self._timer_at, trio.current_time())
            await reading.read_in_background()
        finally:
            if self._sending is not None:
                self._sending.close()
            self._socket = self._reading = self._sending = None
            reading.close(ConnectionBroken("the connection was closed"))
            # Else who waits to write would go on waiting, and for the next socket of this number.
            notify_closing(sock)
            sock.close()
            self._state_changed.unpark_all()

    def _resend(self) -> None:
        """First the holds, then, in the order of their ids, all calls without an answer."""
        for number, call in self._calls:
            if not call.wanted:
                self._calls.take(number)
        waiting = list(self._calls)
        held = list(self._holds())
        for start in range(0, len(held), HOLDS_PER_REQUEST):
            body = names.encode(names.Holds(held[start : start + HOLDS_PER_REQUEST], []))
            self._add(Call(names.Holds, body, math.inf, False))
        for number, call in waiting:
            if self._socket is None:
                return  # broken again already
            self._write(number, call)

    def _lose_session(self) -> None:
        """The session is gone: everything without an answer is taken along to a new one."""
        session, token = self._session, self._token
        logger.warning("names session %d of %s has ended", session, self._client)
        self._session = 0
        calls = list(self._calls)
        self._calls.take_all()
        for number, call in calls:
            if not call.wanted:
                continue
            if call.former is None and call.sent_at and call.kind in _CHANGES:
                call.former = names.FormerOutcome(session, token, number)
            call.sent_at = 0.0
            self._add(call)
        self._arriving.end_lease()
        # Last: no session is opened before the listener has done with the old one.
        self._lost = False

    def _give_up(self, why: str) -> None:
        """Stock servers: nobody will answer."""
        self.problem = self._no_names = why
        for call in self._calls.take_all():
            call.fail(NoNamesError(why))
        self._state_changed.unpark_all()

    # --- time ------------------------------------------------------------------------------------

    async def _run_timer(self) -> None:
        """End calls whose deadline passed, and keep the lease.

        One scope serves all calls: setting up a scope for each would cost more than the rest of
        the call. Its deadline is never later than the next thing to do.
        """
        while True:
            with trio.CancelScope() as scope:
                self._timer = scope
                self._timer_at = scope.deadline = self._next_time()
                await trio.sleep_forever()
            self._expire(trio.current_time())
            self._tend_lease()

    def _next_time(self) -> float:
        return min(trio.current_time() + self.lease_s / 6, self._calls.next_deadline())

    def _expire(self, now: float) -> None:
        for number, call in self._calls:
            if call.deadline <= now:
                self._calls.take(number)
                call.fail(DeadlineExceeded(self._too_late()))

    def _tend_lease(self) -> None:
        """KeepAlive at a third of the lease without answers; break a connection gone silent."""
        if self._socket is None:
            return
        silent_s = boottime() - self._arriving.last_received
        if silent_s < self.lease_s / 3:
            return
        if self._keep_alive is None or self._keep_alive not in self._calls:
            call = Call(names.KeepAlive, names.encode(names.KeepAlive()), math.inf, False)
            self._keep_alive = call
            self._add(call)
        elif silent_s > self.lease_s * 0.9:
            self.problem = f"the names primary has been silent for {silent_s:.1f} s"
            self._disconnect()

    # --- closing ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Tell the server that the session is over, if that is quickly done, and fail all calls."""
        if self._socket is not None and not self._closed:
            with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                scope.shield = True
                try:
                    await self.call(names.CloseSession())
                except FdfsError as exc:
                    logger.debug("closing the names session: %s", exc)
        self._closed = True
        for call in self._calls.take_all():
            call.fail(UsageError("the names session was closed"))


_CHANGES = frozenset(names.CHANGES)
