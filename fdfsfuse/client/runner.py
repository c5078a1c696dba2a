"""Carrying out plans with trio."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fdfsfuse.client.bodies import INLINE_SEND
from fdfsfuse.client.connection import AnswerStream, Connection
from fdfsfuse.client.plans.running import Running
from fdfsfuse.client.plans.steps import Ask, Deliver, Open, Plan, Receive, Request, Send, Step, T
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.sources import Progress
from fdfsfuse.errors import ConnectionProblem, DeadlineExceeded, FdfsError


class TrioRun(Running[T]):
    """A plan that is carried out with connections of *pool*.

    Args:
        timeout_s: most seconds without any progress.
        deadline_s: most seconds altogether.
        progress: called with the number of bytes sent or received since the last call.
    """

    __slots__ = ("_due", "_end", "_pool", "_progress", "_scope", "_timeout_s")

    def __init__(
        self,
        pool: Pool,
        what: str,
        plan: Plan[T],
        timeout_s: float = math.inf,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(what, plan)
        self._pool = pool
        self._timeout_s = timeout_s
        self._end = math.inf if deadline_s is None else trio.current_time() + deadline_s
        self._progress = progress

    async def run(self, deliver: Callable[[bytes], Awaitable[object]] | None = None) -> T:
        """Carry out the whole plan; *deliver* is given what it delivers."""
        try:
            while (data := await self.advance()) is not None:
                assert deliver is not None
                await deliver(data)
        finally:
            self.close()
        return self.result

    async def advance(self) -> bytes | None:
        """Carry out the plan up to its next `Deliver`; None at its end.

        Raises:
            DeadlineExceeded: nothing moved for ``timeout_s``, or ``deadline_s`` is over.
        """
        progress = True
        step = self.resume()
        while step is not None and type(step) is not Deliver:
            deadline = self._deadline_of(step, progress)
            progress = False
            try:
                value = await self._perform(step, deadline)
            except DeadlineExceeded:
                step = self._pass_deadline(step)
            except FdfsError as exc:
                step = self.fail(step, exc)
            else:
                progress = True
                step = self.resume(value)
        return None if step is None else step.data

    def _deadline_of(self, step: Step, progress: bool) -> float:
        """When *step* has to be done, with or without *progress* by the one before it."""
        now = trio.current_time()
        if type(step) is Receive and now >= self._end:
            raise self._too_late()  # as long as bytes come, receiving need never wait
        if progress:
            self._due = min(now + self._timeout_s, self._end)
        return step.limited(now, self._due) if type(step) is Ask else self._due

    def _pass_deadline(self, step: Step) -> Step | None:
        """Raise, unless it was only the limit of *step* that passed; then what is next."""
        now = trio.current_time()
        if isinstance(step, Ask) and step.limit_s is not None and now < self._due:
            return self.fail(step, ConnectionProblem(f"{step.address} did not answer in time"))
        if now >= self._end:
            raise self._too_late()
        raise DeadlineExceeded(f"{self.what}: no progress for {self._timeout_s:g} s")

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self.what}: the deadline has passed")

    async def _perform(self, step: Step, deadline: float) -> Any:
        """Carry out one step. Raises DeadlineExceeded when it takes too long."""
        if type(step) is Receive:
            assert isinstance(step.incoming, AnswerStream)
            data = await step.incoming.receive_some(step.limit, deadline)
            if self._progress is not None:
                self._progress(len(data))
            await trio.lowlevel.checkpoint()
            return data
        assert isinstance(step, Request)
        pool, probe = self._pool, not step.repeatable
        connection = None if step.fresh else pool.borrow_nowait(step.address, probe=probe)
        if connection is None:
            with trio.move_on_at(deadline):
                connection = await pool.borrow(step.address, fresh=step.fresh, probe=probe)
            if connection is None:
                raise DeadlineExceeded(f"no connection to {step.address} in time")
        try:
            if type(step) is Send:
                answer: Any = await self._send(connection, step, deadline)
            else:
                connection.deadline = deadline
                if type(step) is Ask:
                    answer = await connection.request(
                        step.command, step.head, max_answer=step.max_answer, status=step.flags
                    )
                else:
                    answer = await connection.start_stream(step.command, step.head, pool.give_back)
        except BaseException:
            pool.give_back(connection)
            raise
        if type(step) is not Open:
            pool.give_back(connection)
        return answer

    async def _send(self, connection: Connection, step: Send, deadline: float) -> bytes:
        if type(step.source) is bytes and step.size <= INLINE_SEND:
            connection.deadline = deadline
            return await connection.send_stream(
                step.command, step.head, step.source, step.size, max_answer=step.max_answer
            )
        # What the bytes come from may wait, too; and each piece that is sent is progress.
        with trio.CancelScope(deadline=deadline) as self._scope:
            return await connection.send_stream(
                step.command,
                step.head,
                step.source,
                step.size,
                max_answer=step.max_answer,
                progress=self._touch,
            )
        raise DeadlineExceeded(f"{step.address} did not take the request in time")

    def _touch(self, count: int) -> None:
        """Something moved."""
        self._due = min(trio.current_time() + self._timeout_s, self._end)
        self._scope.deadline = self._due
        if self._progress is not None:
            self._progress(count)


async def run_plan(pool: Pool, what: str, plan: Plan[T]) -> T:
    """Carry out a plan without a deadline of its own."""
    return await TrioRun(pool, what, plan).run()
