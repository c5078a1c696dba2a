"""Waiting for a descriptor inside a task, while nothing else in the process can run.

A task that waits in trio's way costs a pass of its loop, and several system calls: more than most
answers. But when the task that runs is the only one that can, trio will do nothing except sleep
until a descriptor is ready or a deadline passes. A `Watch` does just that in trio's place, without
leaving the task: it polls its descriptor together with trio's own epoll object, which tells of
everything that any other task waits for, threads and signals included. What it may keep others
from is bounded: timers by trio's next deadline, and everything by `_LONGEST_S` since the last pass.
What arrives for others need not end the wait: where a connection is read by a function that never
waits (`Watch.share`), that is called, and trio is needed only if it makes a task runnable.

That the running task is the only one is known by `DirectWait.after_io_wait`: trio then runs the
tasks that are runnable, and if that is one, whoever runs until the next pass is it, as long as
trio's queue stays empty.

What is needed of trio is not public (`_inside_trio`); without it `install` does nothing, and
everybody waits in trio's way.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections.abc import Callable, Sized
from typing import Any

import trio

log = logging.getLogger(__name__)

_LONGEST_S = 0.02
"""Trio gets a pass at least this often, unless a wait needs `_OVERTIME_S` to come to an end."""
_OVERTIME_S = 0.002
DIRECT_S = 0.006
"""Longest to wait for an answer. Storing a file may take as long where disk and processor are busy.
With 2 ms small files were made in 5 to 25 % more time there: giving up costs the next ones, too."""
_IN_VAIN_MAX = 64


class DirectWait(trio.abc.Instrument):
    """See the module. Made by `install`, for one trio run.

    ``until``: how long may be waited, by time.perf_counter().
    """

    def __init__(
        self,
        trio_fd: int,
        queue: Sized,
        next_deadline: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.trio_fd = trio_fd
        self.queue = queue
        self._now = now
        self.until = -math.inf
        self.shared: dict[int, Callable[[], object]] = {}
        self._next_deadline = next_deadline
        self._watches: set[Watch] = set()
        self._request_fd = -1

    def after_io_wait(self, timeout: float) -> None:
        if len(self.queue) == 1:
            left_s = min(self._next_deadline() - self._now(), _LONGEST_S)
            self.until = time.perf_counter() + left_s
        else:
            self.until = -math.inf

    def watch_requests(self, fd: int) -> Watch:
        """For the descriptor whose requests the process serves: it ends all other watches' waits.

        A wait of its own ends, too, as soon as trio has something to do.
        """
        self._request_fd = fd
        for watch in self._watches:
            watch.look_at(fd)
        watch = self.watch(fd)
        watch.yields = True
        return watch

    def watch(self, fd: int) -> Watch:
        """To be closed before *fd* is."""
        watch = Watch(self, fd)
        if self._request_fd >= 0:
            watch.look_at(self._request_fd)
        for other in self.shared:
            watch.look_at(other)
        self._watches.add(watch)
        return watch

    def share(self, fd: int, receive: Callable[[], object]) -> None:
        """See `Watch.share`."""
        self.shared[fd] = receive
        for watch in self._watches:
            watch.look_at(fd)

    def forget(self, watch: Watch, fd: int) -> None:
        """The watch of *fd* is closed."""
        self._watches.discard(watch)
        if self.shared.pop(fd, None) is not None:
            for other in self._watches:
                other.look_away(fd)


class Watch:
    """Waits for one descriptor to be readable.

    When waits fail one after the other, more and more of the next ones are not tried: there is
    other work, or answers take long.

    ``yields``: success only if trio has nothing to do then, and every wait is tried.
    """

    def __init__(self, direct: DirectWait, fd: int) -> None:
        self.yields = False
        self._direct = direct
        self._fd = fd
        self._in_vain = 0
        self._skip = 0
        self._poll = select.poll()
        # The first: poll() reports in this order.
        self._poll.register(fd, select.POLLIN)
        self._poll.register(direct.trio_fd, select.POLLIN)

    def share(self, receive: Callable[[], object]) -> None:
        """Let others who wait call *receive*, which must not wait or raise, when this is readable.

        It need not be: others may have received meanwhile.
        """
        self._direct.share(self._fd, receive)

    def look_at(self, fd: int) -> None:
        """When *fd* is readable a wait ends without success, unless it is shared."""
        self._poll.register(fd, select.POLLIN)

    def look_away(self, fd: int) -> None:
        """*fd* is about to be closed."""
        self._poll.unregister(fd)

    def wait(self, longest_s: float) -> bool:
        """Whether the descriptor is readable; False, too, when the caller has to wait elsewhere."""
        if self._skip:
            self._skip -= 1
            return False
        direct = self._direct
        while True:
            left_s = direct.until - time.perf_counter()
            if not self.yields:
                left_s += _OVERTIME_S
            if left_s <= 0 or direct.queue:
                return False
            ready = self._poll.poll(min(left_s, longest_s) * 1000)
            arrived = bool(ready) and ready[0][0] == self._fd
            if arrived and (len(ready) == 1 or not self.yields):
                self._in_vain = 0
                return True
            shared = [receive for fd, _ in ready if (receive := direct.shared.get(fd))]
            if not shared:
                if not self.yields:
                    self._in_vain = min(2 * self._in_vain + 1, _IN_VAIN_MAX)
                    self._skip = self._in_vain - 1
                return False
            for receive in shared:
                receive()

    def close(self) -> None:
        """The watch is not used any more."""
        self._direct.forget(self, self._fd)


_installed: trio.lowlevel.RunVar[DirectWait | None] = trio.lowlevel.RunVar("direct wait", None)


def install() -> None:
    """Let tasks of this trio run wait directly; fine when it has been done before."""
    if _installed.get() is not None:
        return
    try:
        direct = DirectWait(*_inside_trio())
    except (ImportError, AttributeError) as exc:
        log.debug("all waiting is done in trio's way: %s", exc)
        return
    trio.lowlevel.add_instrument(direct)
    _installed.set(direct)


def installed() -> DirectWait | None:
    """What `install` has made in this trio run."""
    return _installed.get()


def watch(fd: int) -> Watch | None:
    """`DirectWait.watch`, if it is installed."""
    direct = _installed.get()
    return direct.watch(fd) if direct is not None else None


def _inside_trio() -> tuple[int, Sized, Callable[[], float], Callable[[], float]]:
    from trio._core._run import GLOBAL_RUN_CONTEXT

    runner: Any = GLOBAL_RUN_CONTEXT.runner
    if runner.is_guest:
        raise AttributeError("the loop around trio has work of which trio knows nothing")
    return (
        runner.io_manager._epoll.fileno(),
        runner.runq,
        runner.deadlines.next_deadline,
        runner.clock.current_time,
    )
