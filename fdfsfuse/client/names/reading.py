"""Reading from a names session's socket: in the background, or by a call that is alone.

A background task reads whatever arrives, and wakes the callers. That is two passes through the
event loop for each call. So a call that is alone waits for its answer directly, if that is possible
(`fdfsfuse.client.directwait`), and reads it itself. So does whoever waits directly for something
else. The background task keeps waiting meanwhile; it is not woken by what has been read when trio
looks. All read and dispatch in the same way and never leave anything half done, so that it does not
matter who meets which frame.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio
from trio.lowlevel import notify_closing, wait_readable

from fdfsfuse.client.directwait import DIRECT_S, Watch

_READS_BEFORE_YIELD = 16


class Waiting(Protocol):
    """A call; ``ended`` once it has its answer."""

    ended: bool


class Reading:
    """Reads from *sock* by calling ``receive_nowait()`` when something has arrived.

    Args:
        receive_nowait: returns whether more may have arrived.
        watch: for waiting directly; None when that is not possible.
    """

    def __init__(
        self, sock: socket.socket, receive_nowait: Callable[[], bool], watch: Watch | None
    ) -> None:
        self._sock = sock
        self._receive_nowait = receive_nowait
        self._watch = watch
        self._failure: Exception | None = None
        if watch is not None:
            watch.share(self._receive)

    def read_directly(self, call: Waiting) -> None:
        """Read the answer to *call*, if nobody else has anything to do before it comes.

        Otherwise *call* has not ended then, and the background task gives it to it.
        """
        watch = self._watch
        if watch is None:
            return
        while not call.ended and self._failure is None and watch.wait(DIRECT_S):
            self._receive()

    def _receive(self) -> None:
        """Read once what has arrived, outside of the background task."""
        if self._failure is not None:
            return
        try:
            self._receive_nowait()
        except BlockingIOError:
            pass  # nothing was there in spite of poll()
        except Exception as exc:
            # The background task is the one that ends the connection.
            self._failure = exc
            notify_closing(self._sock)

    async def read_in_background(self) -> NoReturn:
        """Read what no call has read. Raises what ended the connection, whoever met it."""
        while self._failure is None:
            try:
                await wait_readable(self._sock)
                for _ in range(_READS_BEFORE_YIELD):
                    if self._failure is not None or not self._receive_nowait():
                        break
            except (BlockingIOError, trio.ClosedResourceError):
                pass  # a call has read it, or woke us to look at its failure
        raise self._failure

    def close(self, why: Exception) -> None:
        """The socket is about to be closed: nobody may use it any more."""
        self._failure = self._failure or why
        if self._watch is not None:
            self._watch.close()
