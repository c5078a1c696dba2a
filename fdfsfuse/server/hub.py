"""Answers the small requests of all connections from one place, without a task per connection.

A trio task that waits for each request costs, per request, a pass of trio's loop: more than most
answers. So a connection that is between requests is *parked* here: its socket is in an epoll
object of ours. Whatever arrives whole and can be answered without waiting is answered on the
spot. Everything else (a large or incomplete request, content that the disk has to fetch, a client
that does not take its answer) is handed over, with what has been received, to a task of its own,
which parks the connection again.

A task that keeps a connection for long (a session) may have it *watched*: the hub calls its
function when something has arrived, and the task sleeps on.

How the hub waits:

- *idle*: its task waits until the epoll object is readable, like any other trio task;
- *busy*: from the first request until none came for some milliseconds, it serves from trio's
  ``before_io_wait`` hook, that is, when trio is about to sleep. It sleeps there itself, until
  a request arrives or something that trio waits for: trio's own epoll object, which is in ours
  meanwhile, tells. It never stays past trio's next deadline or when an answer made a task runnable.
  Trio has computed its timeout by then, so it has to be woken in these cases.

The second way asks trio for something that is not public (`_inside_trio`); where a version of trio
does not have it, the first way is the only one, and costs one pass per wake-up.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable, Sized

import trio

from fdfsfuse.proto.header import HEADER_SIZE, unpack_fields
from fdfsfuse.server.connection import FramedConnection

logger = logging.getLogger(__name__)

Answer = Callable[[FramedConnection, int, int, bytes], "bytes | bytearray | None"]
"""(connection, command, status field, body) -> the whole response; None: hand the connection over
as if the request had not been looked at. Must not wait, and must not need a current task."""
HandOver = Callable[[FramedConnection, bytes, bool], None]
"""(connection, bytes to be sent first, end the connection then). What was received but not used is
in the connection."""

BUFFER_SIZE = 64 << 10
"""A request that is larger is handed over."""
_TURN = 64
"""Connections served before others on the loop get their turn."""
_PIPELINED = 16
"""Requests of one connection that are answered in one turn."""
_LINGER_S = 0.005


class EndConnection(Exception):
    """Raised by an `Answer`: send ``response``, then close once that has arrived."""

    def __init__(self, response: bytes) -> None:
        self.response = response


class Hub(trio.abc.Instrument):
    """Keeps the parked connections of one server.

    Args:
        answer: None hands everything over.
        hand_over: starts the task for a connection that is not parked any more.
        ended: told when a parked connection was closed by its peer.
    """

    # Trio looks at all attributes of an instrument. An object with a dict has a slower one after
    # that, of which Python 3.11 does not know where an attribute is.
    __slots__ = (
        "_answer",
        "_at_turn_end",
        "_busy",
        "_ended",
        "_epoll",
        "_hand_over",
        "_in_turn",
        "_parked",
        "_paused",
        "_quiet",
        "_runnable",
        "_token",
        "_trio_epoll",
        "_trio_fd",
        "_trio_is_ready",
        "_trio_poll",
        "_watched",
    )

    def __init__(
        self,
        answer: Answer | None,
        hand_over: HandOver,
        ended: Callable[[FramedConnection], None],
    ) -> None:
        self._answer = answer
        self._hand_over = hand_over
        self._ended = ended
        self._parked: dict[int, FramedConnection] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._paused: dict[int, tuple[float, FramedConnection]] = {}
        self._in_turn = False
        self._at_turn_end: dict[Callable[[], None], None] = {}
        self._epoll = select.epoll()
        self._busy = False
        self._quiet = trio.Event()
        self._trio_epoll: select.epoll
        self._trio_fd = -1
        self._trio_poll = select.poll()
        self._trio_is_ready = False
        self._runnable: Sized = ()
        self._token: trio.lowlevel.TrioToken

    def park(self, connection: FramedConnection) -> None:
        """Take a connection that no task uses."""
        connection.parked = False
        if self._epoll.closed:
            self._ended(connection)
            return
        connection.idle = True
        if not connection.requests:
            # The watchdog ends it if nothing comes.
            connection.reading_since = trio.current_time()
        fd = connection.sock.fileno()
        self._parked[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)

    def watch(self, connection: FramedConnection, readable: Callable[[], None]) -> None:
        """Call *readable* whenever *connection* has bytes or has ended, until `unwatch`.

        It must not wait, must not need a current task, and must not raise.
        """
        fd = connection.sock.fileno()
        self._watched[fd] = readable
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, connection: FramedConnection) -> None:
        """End what `watch` began; fine when it has ended already."""
        fd = connection.sock.fileno()
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._resume(fd)
            self._epoll.unregister(fd)

    def pause(self, connection: FramedConnection, pause_s: float, enough: int) -> None:
        """Let what a watched connection sends gather in the kernel, without being woken by it.

        Until *pause_s* seconds are over, *enough* bytes are there, or the connection has ended.
        While the hub is idle, or where it cannot be busy, nothing is left to gather: nobody would
        look at the time.
        """
        fd = connection.sock.fileno()
        will_be_busy = self._busy or (self._in_turn and self._trio_fd >= 0)
        if will_be_busy and fd in self._watched:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
            self._paused[fd] = (time.monotonic() + pause_s, connection)

    def _resume(self, fd: int) -> None:
        paused = self._paused.pop(fd, None)
        if paused is not None:
            paused[1].sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            # So that it is looked at anew.
            self._epoll.modify(fd, select.EPOLLIN)

    def _end_pauses(self, wait_s: float) -> float:
        """Resume where it is time. Returns how much of *wait_s* is left until it is again."""
        now = time.monotonic()
        for fd, (until, _) in list(self._paused.items()):
            if until <= now:
                self._resume(fd)
                wait_s = 0.0
            else:
                wait_s = min(wait_s, until - now)
        return wait_s

    def at_turn_end(self, act: Callable[[], None]) -> None:
        """Call *act* once all that has arrived by now was looked at: once for all who ask for it.

        At once when no turn is under way. The same holds for it as for what `watch` is given.
        """
        if self._in_turn:
            self._at_turn_end[act] = None
        else:
            act()

    async def run(self) -> None:
        """Serve until cancelled; then all parked connections are closed."""
        self._token = trio.lowlevel.current_trio_token()
        inside = _inside_trio()
        if inside is not None:
            self._trio_epoll, self._runnable = inside
            self._trio_fd = self._trio_epoll.fileno()
            self._trio_poll.register(self._trio_fd, select.POLLIN)
            trio.lowlevel.add_instrument(self)
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._serve_ready(0)
                if inside is not None:
                    self._become_busy()
                    await self._quiet.wait()
        finally:
            self._busy = False
            if inside is not None:
                trio.lowlevel.remove_instrument(self)
            for connection in list(self._parked.values()):
                self._end(connection)
            self._epoll.close()

    def _become_busy(self) -> None:
        # Trio leaves a descriptor that nobody waits for in its epoll object, switched off, and two
        # of these cannot be in each other. It adds ours again by itself.
        self._trio_epoll.unregister(self._epoll.fileno())
        self._epoll.register(self._trio_fd, select.EPOLLIN)
        self._busy = True
        self._quiet = trio.Event()

    def _become_idle(self) -> None:
        for fd in list(self._paused):
            self._resume(fd)
        self._epoll.unregister(self._trio_fd)
        self._busy = False
        self._quiet.set()  # our task waits for the next request

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to sleep for *timeout* seconds: serve meanwhile."""
        if self._busy:
            try:
                self._serve_while_trio_waits(timeout)
            except Exception:
                # Trio would drop an instrument that raises, and nobody would serve any more.
                logger.exception("error in the hub; it goes on as when it is idle")
                self._become_idle()

    def _serve_while_trio_waits(self, timeout: float) -> None:
        if timeout <= 0:
            self._serve_ready(0)
            return
        deadline = time.monotonic() + timeout
        linger_s = min(_LINGER_S, timeout)
        while True:
            ready = self._serve_ready(linger_s)
            # Others who were served may have taken what trio would have found: then it would sleep.
            if self._trio_is_ready and (ready == 1 or self._trio_poll.poll(0)):
                return  # trio has something, and will find us again afterwards
            if self._runnable or time.monotonic() >= deadline:
                break
            if not ready and not self._paused:
                self._become_idle()
                break
        self._token.run_sync_soon(_nothing)

    def _serve_ready(self, wait_s: float) -> int:
        """Serve who has something, after *wait_s* at most; how many there were."""
        parked = self._parked
        self._trio_is_ready = False
        if self._paused:
            wait_s = self._end_pauses(wait_s)
        ready = self._epoll.poll(wait_s, _TURN)
        self._in_turn = True
        for fd, _ in ready:
            connection = parked.get(fd)
            if connection is not None:
                self._serve(connection)
            elif (readable := self._watched.get(fd)) is not None:
                if self._paused:
                    self._resume(fd)
                readable()
            elif fd == self._trio_fd:
                self._trio_is_ready = True
        self._in_turn = False
        if self._at_turn_end:
            acts, self._at_turn_end = self._at_turn_end, {}
            for act in acts:
                act()
        return len(ready)

    def _serve(self, connection: FramedConnection) -> None:
        """Answer what has arrived, as far as that goes.

        The answers are sent in one go, since each packet wakes the client.
        """
        sock = connection.sock
        try:
            data = sock.recv(BUFFER_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(connection)
            return
        answer = self._answer
        response: bytes | bytearray = b""
        used, count, left = 0, len(data), _PIPELINED
        last = False
        try:
            while count - used >= HEADER_SIZE and left and answer is not None:
                length, command, flags = unpack_fields(data, used)
                start = used + HEADER_SIZE
                end = start + length
                if not start <= end <= count:
                    break
                try:
                    one = answer(connection, command, flags, data[start:end])
                except EndConnection as exc:
                    one, end, last = exc.response, count, True
                if one is None:
                    break
                response = response + one if used else one
                used = end
                left -= 1
                connection.requests += 1
                connection.reading_since = 0.0
            sent = 0
            if response:
                try:
                    sent = sock.send(response)
                except BlockingIOError:
                    pass
        except OSError:
            self._end(connection)
        except Exception:
            logger.exception("error while serving %s; its connection is closed", connection.peer_ip)
            self._end(connection)
        else:
            if last or used != count or sent != len(response):
                self._release(connection, data[used:], response[sent:], last=last)

    def _release(
        self,
        connection: FramedConnection,
        received: bytes,
        unsent: bytes | bytearray = b"",
        *,
        last: bool = False,
    ) -> None:
        self._forget(connection)
        connection.put_back(received)
        self._hand_over(connection, bytes(unsent), last)

    def _end(self, connection: FramedConnection) -> None:
        self._forget(connection)
        self._ended(connection)

    def _forget(self, connection: FramedConnection) -> None:
        fd = connection.sock.fileno()
        del self._parked[fd]
        self._epoll.unregister(fd)
        connection.idle = False
        connection.reading_since = 0.0


def _nothing() -> None:
    """Wakes trio."""


def _inside_trio() -> tuple[select.epoll, Sized] | None:
    """(trio's epoll object, its queue of runnable tasks), or None if this trio has neither."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        runner = GLOBAL_RUN_CONTEXT.runner
        return runner.io_manager._epoll, runner.runq
    except (ImportError, AttributeError):
        return None
