"""A change on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from fdfsfuse.core.names_log import Position
from fdfsfuse.proto.names_record import Change, Op

Reply = Callable[[int, bytes], None]
"""Called with status and encoded answer struct when a change is decided. Must not raise."""


class Work:
    """A change on its way.

    ``make`` is the operation, or a function that decides it from the state just before it is
    applied; it may raise StatusError, or give None: all is done, there is nothing to record.
    ``repeatable``: the id may have been seen before, so look for a stored outcome.
    """

    __slots__ = ("done_below", "id", "make", "repeatable", "reply", "session", "size")

    def __init__(
        self,
        make: Op | Callable[[], Op | None],
        reply: Reply,
        *,
        session: int = 0,
        id: int = 0,
        done_below: int = 0,
        size: int = 0,
        repeatable: bool = False,
    ) -> None:
        self.make = make
        self.reply = reply
        self.session = session
        self.id = id
        self.done_below = done_below
        self.size = size
        self.repeatable = repeatable


class Applied(NamedTuple):
    """A change that was applied at *position*, and what it was answered."""

    position: Position
    change: Change
    work: Work
    outcome: Any


class Answer(Protocol):
    """A place for the answer of a change that is to be given later."""

    answer: tuple[int, bytes]
