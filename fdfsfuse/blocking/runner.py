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
        step = self.resume()
        while step is not None:
            if type(step) is Deliver:
                return step.data
            try:
                value = self._receive(step) if type(step) is Receive else self._request(step)
            except (FdfsError, TimedOut) as exc:
                step = self._failed(step, exc)
            else:
                self._timer.touch()
                step = self.resume(value)
        return None

    def _failed(self, step: Step, exc: FdfsError | TimedOut) -> Step | None:
        """Tell the plan, unless it is the whole operation whose time has passed."""
        if isinstance(exc, FdfsError) and not isinstance(exc, ConnectionProblem):
            return self.fail(step, exc)
        if time.monotonic() >= self._timer.due:
            raise self._timer.passed(self.what) from exc
        if isinstance(exc, FdfsError):
            return self.fail(step, exc)
        assert isinstance(step, Ask)
        return self.fail(step, ConnectionProblem(f"{step.address} did not answer in time"))

    def _request(self, step: Step) -> Any:
        assert isinstance(step, Request)
        now, due = time.monotonic(), self._timer.due
        due = step.limited(now, due)
        pool = self._pool
        connection = pool.borrow(
            step.address, now, due, fresh=step.fresh, probe=not step.repeatable
        )
        try:
            if type(step) is Ask:
                answer: Any = connection.ask(step, due)
            elif type(step) is Send:
                answer = connection.send(step, due, self._touch)
            else:
                assert type(step) is Open
                answer = _Incoming(pool, connection, connection.open(step, due))
        except BaseException:
            pool.give_back(connection)
            raise
        if type(step) is not Open:
            pool.give_back(connection)
        return answer

    def _receive(self, step: Receive) -> bytes:
        incoming = step.incoming
        assert isinstance(incoming, _Incoming)
        limit = min(step.limit, incoming.remaining)
        data = incoming.connection.receive(limit, self._timer.due)
        incoming.remaining -= len(data)
        if self._progress is not None:
            self._progress(len(data))
        return data

    def _touch(self, count: int) -> float:
        """Some bytes were sent; when to give up now."""
        self._timer.touch()
        if self._progress is not None:
            self._progress(count)
        return self._timer.due
