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

    Attributes:
        make: the operation, or a function that decides it from the state just before it is applied.
            The function may raise StatusError, or return None: everything is done, nothing is to
            be recorded. None for a change that takes steps first (`operations.Operations`).
        reply: called once with the outcome.
        session, id, done_below: of the request; 0 for a change of the storage's own.
        size: bytes of the request.
        repeatable: a request with this id may have been carried out before, so a stored outcome is
            looked for.
    """

    __slots__ = ("done_below", "id", "make", "repeatable", "reply", "session", "size")

    def __init__(
        self,
        make: Op | Callable[[], Op | None] | None,
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
    """A change that was applied at *position*, and the answer to it, not encoded."""

    position: Position
    change: Change
    work: Work
    outcome: Any


class Answer(Protocol):
    """A place for the answer of a change that is to be given later."""

    answer: tuple[int, bytes]
