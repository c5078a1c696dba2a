"""The connections to one address that are kept for the next request; both pools use it.

An address at which nobody answered is remembered, too: trackers go on naming a storage for a while
that has died, and each request would wait for it as long as the first.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

CONNECTIONS_MAX = 64
IDLE_MAX = 16
IDLE_MAX_S = 60.0

SLOW_S = 1.0
"""Connecting that failed later than this failed because nobody answered."""
DEAD_FOR_S = 30.0
"""For how long it is remembered that nobody answered; and how often it is tried as long as usual
meanwhile: the way to one that is back may be slow."""
DEAD_TIMEOUT_S = 0.5
"""How long it is tried meanwhile; one that is back answers within a round trip."""
DEAD_RETRY_S = 2.0
"""How often it is tried meanwhile: other requests fail at once."""


class Kept(Protocol):
    """What a pool needs of a connection."""

    idle_since: float
    reused: bool
    usable: bool

    def alive(self) -> bool:
        """True when the peer has neither closed it nor sent anything unasked."""

    def close(self) -> None:
        """Close it."""


C = TypeVar("C", bound=Kept)


class Shelf(Generic[C]):
    """Idle connections, newest last; ``total`` counts the borrowed ones too.

    Times are seconds of any steady clock. The newest is taken first, so that the number of
    connections follows the load; what nobody takes for *max_idle_s* is closed.
    """

    __slots__ = (
        "_answered",
        "_dead_until",
        "_idle",
        "_max_idle",
        "_max_idle_s",
        "_next_long_try",
        "_next_try",
        "total",
    )

    def __init__(self, max_idle: int, max_idle_s: float) -> None:
        self._idle: deque[C] = deque()
        self._max_idle = max_idle
        self._max_idle_s = max_idle_s
        self._answered = self._dead_until = float("-inf")
        self._next_try = self._next_long_try = float("-inf")
        self.total = 0

    def connect_timeout(self, now: float, usual_s: float) -> float:
        """For how long to try to connect; 0: nobody has answered just now, so fail at once.

        Tell `connected` or `not_connected` afterwards.
        """
        if now >= self._dead_until:
            return usual_s
        if now < self._next_try:
            return 0.0
        # One at a time finds out.
        self._next_try = now + DEAD_RETRY_S
        if now >= self._next_long_try:
            self._next_long_try = now + DEAD_FOR_S
            return usual_s
        return min(usual_s, DEAD_TIMEOUT_S)

    def connected(self, now: float) -> None:
        """Somebody answers."""
        self._answered = now
        self._dead_until = float("-inf")

    def not_connected(self, began: float, now: float) -> None:
        """Connecting failed, or was given up."""
        if began <= self._answered:
            return  # somebody else was answered meanwhile
        was_dead = began < self._dead_until
        if was_dead or now - began >= SLOW_S:
            if not was_dead:
                self._next_long_try = now + DEAD_FOR_S
            self._dead_until = now + DEAD_FOR_S
            self._next_try = now + DEAD_RETRY_S

    def take(self, now: float, probe: bool = True) -> C | None:
        """A connection, or None; a live one with *probe*.

        A request that may be repeated needs no probe: it finds out by itself, and is repeated.
        """
        oldest = now - self._max_idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and (not probe or connection.alive()):
                return connection
            self._drop(connection)
        return None

    def put(self, connection: C, now: float) -> None:
        """Keep a connection that was borrowed, or drop it."""
        if not connection.usable:
            self._drop(connection)
            return
        connection.idle_since = now
        connection.reused = True
        idle = self._idle
        idle.append(connection)
        if len(idle) > self._max_idle or idle[0].idle_since < now - self._max_idle_s:
            self._drop(idle.popleft())

    def clear(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._drop(self._idle.popleft())

    def _drop(self, connection: C) -> None:
        connection.close()
        self.total -= 1
