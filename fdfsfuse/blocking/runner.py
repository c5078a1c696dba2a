"""Carrying out plans with blocking sockets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fdfsfuse.blocking.connection import Connection, TimedOut
from fdfsfuse.blocking.pool import Pool
from fdfsfuse.blocking.timer import Timer
from fdfsfuse.client.plans.running import Running
from fdfsfuse.client.plans.steps import Ask, Deliver, Open, Plan, Receive, Request, Send, Step, T
from fdfsfuse.client.sources import Progress
from fdfsfuse.errors import ConnectionProblem, FdfsError


class _Incoming:
    """The body of an answer, which is received bit by bit."""

    __slots__ = ("_pool", "connection", "remaining")

    def __init__(self, pool: Pool, connection: Connection, length: int) -> None:
        self._pool = pool
        self.connection = connection
        self.remaining = length

    def end(self) -> None:
        """Give the connection back, closed if the body was not read to its end."""
        if self.remaining:
            self.connection.close()
        self._pool.give_back(self.connection)


class BlockingRun(Running[T]):
    """A plan that is carried out with connections of *pool*, by one thread.

    Args:
        timer: when to give up.
        progress: called with the number of bytes sent or received since the last call.
    """

    __slots__ = ("_pool", "_progress", "_timer")

    def __init__(
        self, pool: Pool, what: str, plan: Plan[T], timer: Timer, progress: Progress | None = None
    ) -> None:
        super().__init__(what, plan)
        self._pool = pool
        self._timer = timer
        self._progress = progress

    def run(self, deliver: Callable[[bytes], object] | None = None) -> T:
        """Carry out the whole plan; *deliver* is given what it delivers."""
        try:
            while (data := self.advance()) is not None:
                assert deliver is not None
                deliver(data)
                self._timer.touch()
        finally:
            self.close()
        return self.result

    def advance(self) -> bytes | None:
        """Carry out the plan up to its next `Deliver`; None at its end.

        Raises:
            DeadlineExceeded: nothing moved for too long, or the deadline has passed.
        """
        while (step := self.next_step()) is not None:
            if type(step) is Deliver:
                self.done(None)
                return step.data
            try:
                self.done(self._perform(step))
                self._timer.touch()
            except (FdfsError, TimedOut) as exc:
                self._fail(step, exc)
        return None

    def _fail(self, step: Step, exc: FdfsError | TimedOut) -> None:
        """Tell the plan, unless it is the whole operation whose time has passed."""
        if isinstance(exc, FdfsError) and not isinstance(exc, ConnectionProblem):
            self.failed(exc)
        elif time.monotonic() >= self._timer.due:
            raise self._timer.passed(self.what) from exc
        elif isinstance(exc, FdfsError):
            self.failed(exc)
        else:
            assert isinstance(step, Ask)
            text = f"{step.address} did not answer within {step.limit_s:g} s"
            self.failed(ConnectionProblem(text))

    def _perform(self, step: Step) -> Any:
        due = self._timer.due
        if type(step) is Receive:
            return self._receive(step, due)
        assert isinstance(step, Request)
        if step.limit_s is not None:
            due = min(due, time.monotonic() + step.limit_s)
        connection = self._pool.borrow(
            step.address, due, fresh=step.fresh, probe=not step.repeatable
        )
        if type(step) is Open:
            try:
                return _Incoming(self._pool, connection, connection.open(step, due))
            except BaseException:
                self._pool.give_back(connection)
                raise
        try:
            if type(step) is Ask:
                return connection.ask(step, due)
            assert type(step) is Send

            def touch(count: int) -> None:
                self._touch(count)
                connection.due = self._timer.due

            return connection.send(step, due, touch)
        finally:
            self._pool.give_back(connection)

    def _receive(self, step: Receive, due: float) -> bytes:
        incoming = step.incoming
        assert isinstance(incoming, _Incoming)
        data = incoming.connection.receive(min(step.limit, incoming.remaining), due)
        incoming.remaining -= len(data)
        if self._progress is not None:
            self._progress(len(data))
        return data

    def _touch(self, count: int) -> None:
        self._timer.touch()
        if self._progress is not None:
            self._progress(count)
