"""The steps that plans are made of.

=========  ============================================  =======================================
step       is carried out by                             its result
=========  ============================================  =======================================
Ask        sending a request, receiving its answer       the body of the answer
Send       the same, with a long body                    the body of the answer
Open       sending a request, receiving the header       an `Incoming`; the plan ends it
Receive    receiving some of the body                    1 to ``limit`` bytes, b"" at its end
Deliver    handing bytes to whoever wanted them          nothing
=========  ============================================  =======================================

The first four end with FdfsError: StatusError, ConnectionProblem or ProtocolError. Who carries out
the steps sends a request once more when that is safe (`Request.may_repeat`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from fdfsfuse.client.address import Address
from fdfsfuse.client.sources import Source, is_replayable
from fdfsfuse.errors import ConnectionBroken, FdfsError

ANSWER_MAX = 256 << 10
"""Default limit of an answer that is kept in memory, in bytes."""
SKIP = -1
"""A `Request.max_answer`: the answer has no body, and one that is there is skipped."""

T = TypeVar("T")


@dataclass(slots=True)
class Request:
    """What the steps that send a request have in common.

    Attributes:
        head: the body of the request, or what comes before its long part.
        max_answer: a longer body of the answer is a ProtocolError; `SKIP`.
        flags: the last byte of the request's header.
        repeatable: being carried out twice does no harm.
        limit_s: longest time for this step alone; ConnectionProblem after that.
        others: how many can be asked in its place if it fails; with a limit, each of them has its
            share of the time that is left.
        fresh: use a new connection, and drop the idle ones: they have proved stale.
    """

    address: Address
    command: int
    head: bytes
    max_answer: int = ANSWER_MAX
    flags: int = 0
    repeatable: bool = False
    limit_s: float | None = None
    others: int = 0
    fresh: bool = False

    @property
    def replayable(self) -> bool:
        """Whether the request can be sent again from its start."""
        return True

    def limited(self, now: float, due: float) -> float:
        """When to give up this step, of an operation that has to be done by *due*."""
        if self.limit_s is None:
            return due
        return now + min(self.limit_s, (due - now) / (self.others + 1))

    def may_repeat(self, error: FdfsError) -> bool:
        """Whether to send it once more after *error*: when a stale connection was the cause.

        A kept connection that breaks before any byte of the answer has come was most likely closed
        while it was idle. The request is repeated when it may be carried out twice, or cannot have
        been carried out because the peer never got all of it.
        """
        return (
            isinstance(error, ConnectionBroken)
            and error.stale
            and not self.fresh
            and self.replayable
            and (self.repeatable or error.unsent)
        )


class Ask(Request):
    """A request that fits into memory, as does its answer."""

    __slots__ = ()


@dataclass(slots=True)
class Send(Request):
    """A request with ``size`` bytes of ``source`` behind its head."""

    source: Source = b""
    size: int = 0

    @property
    def replayable(self) -> bool:
        """False for an iterator, some of which may be gone."""
        return is_replayable(self.source)


class Open(Request):
    """A request whose answer is received bit by bit."""

    __slots__ = ()


class Incoming(Protocol):
    """The body of an answer that is received bit by bit."""

    remaining: int

    def end(self) -> None:
        """Give the connection back, or close it when bytes remain."""


class Receive(NamedTuple):
    """Receive up to ``limit`` bytes."""

    incoming: Incoming
    limit: int


class Deliver(NamedTuple):
    """Hand ``data`` over."""

    data: bytes


Step: TypeAlias = "Ask | Send | Open | Receive | Deliver"
Plan: TypeAlias = Generator[Step, Any, T]
