"""Whose turn it is to read from a names session's socket.

A task of its own that reads and wakes the callers costs a second pass through the event loop for
each call: 30 us of 70. So a call that is alone reads for itself (it *leads*), and the background
task reads when nobody leads: when several calls wait, and when the session is idle. It does not
take over at once when a lone call has ended, since the next one mostly follows soon.

The two never read at the same time: ``_leader`` and ``_background_waits`` change between awaits
only. `trio.lowlevel.notify_closing` wakes whoever waits for the socket, to make it look again; the
socket is not closed by it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import trio
from trio.lowlevel import ParkingLot, notify_closing, wait_readable

LINGER_S = 0.005
"""Pushes are read at most this late after a call that has read for itself."""
_READS_BEFORE_YIELD = 16


class Waiting(Protocol):
    """A call; ``result`` is None until it has ended."""

    result: Any


class Turns:
    """Reads from *sock* by calling ``receive_nowait()`` when something has arrived."""

    def __init__(self, sock: socket.socket, receive_nowait: Callable[[], None]) -> None:
        self._sock = sock
        self._receive_nowait = receive_nowait
        self._leader: Waiting | None = None
        self._leader_waits = False
        self._background_waits = False
        self._lot = ParkingLot()
        self._parked_for_leader = False
        self._must_read = False
        self._leads = 0
        self._failure: Exception | None = None

    @property
    def free(self) -> bool:
        """Whether a call may lead."""
        return self._leader is None and self._failure is None

    async def lead(self, call: Waiting, others_wait: Callable[[], bool]) -> None:
        """Read until *call* has its result or the connection fails (then it has none)."""
        self._leader = call
        self._leads += 1
        if self._background_waits:
            self._background_waits = False
            notify_closing(self._sock)
        reads = 0
        try:
            while call.result is None and self._failure is None:
                try:
                    self._receive_nowait()
                except BlockingIOError:
                    reads = 0
                    await self._wait_as_leader()
                else:
                    reads += 1
                    if reads % _READS_BEFORE_YIELD == 0:
                        await trio.lowlevel.checkpoint()
        except Exception as exc:
            self._failure = exc
        finally:
            self._leader = None
            self._must_read = self._failure is not None or others_wait()
            if self._must_read or self._parked_for_leader:
                self._lot.unpark_all()

    async def _wait_as_leader(self) -> None:
        self._leader_waits = True
        try:
            await wait_readable(self._sock)
        except trio.ClosedResourceError:
            pass  # woken to look again
        finally:
            self._leader_waits = False

    def look_again(self, call: Waiting) -> None:
        """*call* has ended by itself (its deadline): if it leads, it need not wait any longer."""
        if self._leader is call and self._leader_waits:
            notify_closing(self._sock)

    async def read_in_background(self) -> NoReturn:
        """Read when no call does. Raises what ended the connection, whoever met it."""
        linger = False
        reads = 0
        while self._failure is None:
            if self._leader is not None:
                self._parked_for_leader = True
                try:
                    await self._lot.park()
                finally:
                    self._parked_for_leader = False
                linger = not self._must_read
            elif linger:
                linger = await self._linger()
            else:
                try:
                    self._receive_nowait()
                    reads += 1
                    if reads % _READS_BEFORE_YIELD == 0:
                        await trio.lowlevel.checkpoint()
                except BlockingIOError:
                    reads = 0
                    linger = await self._wait_in_background()
        raise self._failure

    async def _linger(self) -> bool:
        """Leave the reading to calls for a while; returns whether to do so once more."""
        seen = self._leads
        self._must_read = False
        with trio.move_on_after(LINGER_S):
            await self._lot.park()
        return not self._must_read and self._leads != seen

    async def _wait_in_background(self) -> bool:
        """Wait for the socket; returns whether a call has taken over the reading."""
        self._background_waits = True
        try:
            await wait_readable(self._sock)
        except trio.ClosedResourceError:
            return True
        finally:
            self._background_waits = False
        return False

    def close(self, why: Exception) -> None:
        """The socket is about to be closed: send everybody away from it."""
        self._failure = self._failure or why
        notify_closing(self._sock)
        self._lot.unpark_all()
