"""How the tasks that serve a mount wait for requests: one after the other, without extra turns.

pyfuse3 has several tasks that want to read the next request. A lock lets one of them wait at a
time; passing it on costs a turn of trio's loop for each request, and more for the lock. Here the
tasks park, and just before trio sleeps one of them is put in trio's table of who waits for the
device, if none is: the task that served the last request, when it needed no waiting. That is half
of the CPU time of an empty request.

pyfuse3 has a door for this: its asyncio mode replaces the trio that it sees, and so do we. What is
needed of trio is not public (`_Readers`); where it is missing, pyfuse3 goes on with its lock.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import outcome
import pyfuse3
import trio
from trio.lowlevel import Abort

from fdfsfuse.client import directwait
from fdfsfuse.fuse.handshake import Handshake

log = logging.getLogger(__name__)

_DIRECT_S = 0.005
"""How long the next request is waited for directly."""


class _NoLock:
    """In place of pyfuse3's lock: `RequestTurns` sees to it that one task waits."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _Readers:
    """Who waits for a descriptor to become readable, in trio's own table."""

    def __init__(self) -> None:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        manager = GLOBAL_RUN_CONTEXT.runner.io_manager
        self._registered = manager._registered
        self._update = manager._update_registrations

    def get(self, fd: int) -> trio.lowlevel.Task | None:
        task: trio.lowlevel.Task | None = self._registered[fd].read_task
        return task

    def set(self, fd: int, task: trio.lowlevel.Task | None) -> None:
        self._registered[fd].read_task = task
        self._update(fd)


class RequestTurns(trio.abc.Instrument):
    """See the module. ``parked`` are the tasks that want a request, the latest last."""

    def __init__(self, readers: _Readers) -> None:
        self._readers = readers
        self._parked: list[trio.lowlevel.Task] = []
        self._waits: trio.lowlevel.Task | None = None
        self._fd = -1
        self._watch: directwait.Watch | None = None

    def before_io_wait(self, timeout: float) -> None:
        if self._waits is None and self._parked:
            self._waits = self._parked.pop()
            self._readers.set(self._fd, self._waits)

    async def wait_readable(self, fd: int) -> None:
        """Wait for this task's turn, and for the device to have a request."""
        if fd != self._fd:
            self._fd = fd
            direct = directwait.installed()
            self._watch = direct.watch_requests(fd) if direct is not None else None
        if self._watch is not None and self._watch.wait(_DIRECT_S):
            return
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: Any) -> Abort:
            if self._waits is task:
                self._waits = None
                self._readers.set(fd, None)
            else:
                self._parked.remove(task)
            return Abort.SUCCEEDED

        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            if self._waits is task:
                self._waits = None

    def notify_closing(self, fd: int) -> None:
        """Send all away from the device."""
        parked, self._parked = self._parked, []
        for task in parked:
            trio.lowlevel.reschedule(task, outcome.Error(trio.ClosedResourceError()))
        trio.lowlevel.notify_closing(fd)


def take_turns(init_flags: int = 0) -> None:
    """Let pyfuse3's tasks wait in our way. To be called in the trio run of `pyfuse3.main`.

    Args:
        init_flags: what else the kernel is told of the file system, see `fdfsfuse.fuse.handshake`.
            Only if tasks do wait in our way.
    """
    try:
        turns = RequestTurns(_Readers())
    except (ImportError, AttributeError) as exc:
        log.debug("requests are waited for in pyfuse3's way: %s", exc)
        return
    trio.lowlevel.add_instrument(turns)
    lowlevel = SimpleNamespace(
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        wait_readable=turns.wait_readable,
        notify_closing=turns.notify_closing,
    )
    if init_flags:

        def done() -> None:
            lowlevel.wait_readable = turns.wait_readable

        lowlevel.wait_readable = Handshake(init_flags, turns.wait_readable, done).wait_readable
    pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
        Lock=_NoLock,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
        lowlevel=lowlevel,
    )
