"""A thread that does one thing after another for the loop.

A log is synced once per batch, so the way into a thread and back is paid by each change of a
mount that works alone. Through a thread of its own it costs 100 us of CPU (both directions, a
busy machine) where `trio.to_thread.run_sync` costs 180.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import outcome
import trio
from trio.lowlevel import Abort, Task


class Worker:
    """The thread. It is started by the first call and ended by `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Task] | None]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call *function* in the thread; waits for its end even when cancelled meanwhile."""
        if self._thread is None:
            self._token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((function, args, trio.lowlevel.current_task()))
        return await trio.lowlevel.wait_task_rescheduled(lambda _: Abort.FAILED)

    def close(self) -> None:
        """End the thread; nothing is running in it."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        token = self._token
        assert token is not None
        while True:
            job = self._jobs.get()
            if job is None:
                return
            function, args, task = job
            result = outcome.capture(function, *args)
            try:
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)
            except trio.RunFinishedError:
                return
            del job, function, args, task, result
