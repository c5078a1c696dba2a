"""The calls of a names session that have no answer yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import trio
from trio.lowlevel import Abort, ParkingLot, Task

from fdfsfuse.proto import names


class Call:
    """A request without an answer.

    ``ended`` tells whether there is one now: ``answer``, or ``error``. ``wanted`` tells whether
    anybody waits for it; that is ``task`` unless the caller reads from the socket itself, or wants
    ``on_end`` to be called with the error, or None.
    ``sent_at`` is the boottime when it was last written to a connection of this session; 0: never.
    ``former`` is asked first: what became of the call in a session that ended.
    """

    __slots__ = (
        "answer",
        "body",
        "deadline",
        "ended",
        "error",
        "former",
        "kind",
        "on_end",
        "sent_at",
        "task",
        "wanted",
    )

    def __init__(self, kind: type, body: bytes, deadline: float, wanted: bool) -> None:
        self.kind = kind
        self.body = body
        self.deadline = deadline
        self.wanted = wanted
        self.task: Task | None = None
        self.on_end: Callable[[Exception | None], None] | None = None
        self.ended = False
        self.answer: Any = None
        self.error: Exception | None = None
        self.former: names.FormerOutcome | None = None
        self.sent_at = 0.0

    def abandon(self, _: object) -> Abort:
        """The waiting task is being cancelled: from here on it must not be woken by an answer."""
        self.task = None
        return Abort.SUCCEEDED

    def finish(self, answer: Any) -> None:
        """Give the caller its answer."""
        self.answer = answer
        self._end()

    def fail(self, error: Exception) -> None:
        """Give the caller an error."""
        self.error = error
        self._end()

    def _end(self) -> None:
        self.ended = True
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)
        elif self.on_end is not None:
            self.on_end(self.error)

    def result(self) -> Any:
        """The answer, or the error raised; once the call has ended."""
        if self.error is not None:
            raise self.error
        return self.answer


class PendingCalls:
    """Calls by id, in the order of the ids, which count up from 1 for each session.

    ``size`` is the number of bytes of their requests.
    """

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._next_id = 1
        self._first_id = 1
        self._room = ParkingLot()
        self._want_room = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: object) -> bool:
        return call in self._calls.values()

    def __iter__(self) -> Iterator[tuple[int, Call]]:
        """``(id, call)`` of all at this moment; they may be removed meanwhile."""
        return iter(list(self._calls.items()))

    def first(self) -> int:
        """The smallest id; there must be one."""
        # Not the dict's first key: a dict searches it past all that were removed before.
        while self._first_id not in self._calls:
            self._first_id += 1
        return self._first_id

    def add(self, call: Call) -> int:
        """Give a call the next id."""
        number = self._next_id
        self._next_id = number + 1
        self._calls[number] = call
        self.size += len(call.body)
        return number

    def has(self, number: int) -> bool:
        """Whether there is a call of this id."""
        return number in self._calls

    def take(self, number: int) -> Call | None:
        """Remove the call of an id; None when there is none."""
        call = self._calls.pop(number, None)
        if call is not None:
            self.size -= len(call.body)
            if self._want_room:
                self._room.unpark_all()
        return call

    def between(self, first: int, last: int) -> list[tuple[int, Call]]:
        """Those with ids from *first* to *last* that are there."""
        ids = range(max(first, self._first_id), min(last + 1, self._next_id))
        return [(number, self._calls[number]) for number in ids if number in self._calls]

    def discard(self, call: Call) -> None:
        """Forget a call whose id may have changed."""
        for number, pending in self:
            if pending is call:
                self.take(number)

    def take_all(self) -> list[Call]:
        """Remove all and start to count from 1 again."""
        calls = list(self._calls.values())
        self._calls.clear()
        self._next_id = self._first_id = 1
        self.size = 0
        self._room.unpark_all()
        return calls

    def next_deadline(self) -> float:
        """The earliest deadline of all; infinite without any."""
        return min((call.deadline for call in self._calls.values()), default=math.inf)

    async def wait_room(self, size: int, limit: int) -> None:
        """Wait until *size* bytes more keep the sum below *limit*, or there is no call at all."""
        self._want_room += 1
        try:
            while self._calls and self.size + size > limit:
                await self._room.park()
        finally:
            self._want_room -= 1
