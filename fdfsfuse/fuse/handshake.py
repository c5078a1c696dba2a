"""A promise to the kernel that libfuse does not know of: set-id bits are cleared here.

Before each write, and before a file is truncated, the kernel asks for ``security.capability``: a
request that costs about as much as the write. When a file system has promised to take away
capabilities and set-id bits itself (FUSE_HANDLE_KILLPRIV_V2), the kernel asks once, until it gets
new attributes of the file.

The promise is part of the answer to the kernel's first request, FUSE_INIT. libfuse makes it, and
has a name for the promise only in new versions; pyfuse3 has no way to ask for it. So the descriptor
stands for a socket instead of the device while they answer, and their answer goes to the kernel
with the promise added.

The promise is kept in `Operations.setattr`: the kernel announces a write that takes the bits away
by a setattr without any field. The protocol does not oblige it to, and pyfuse3 does not tell who
writes; so where set-id bits have an effect for others than root, the kernel goes on clearing them.
(No file of ours has capabilities.)
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

HANDLE_KILLPRIV_V2: Final = 1 << 28
"""Of ``<linux/fuse.h>``; kernels before 5.11 ignore it."""

_READ_SIZE = 8192
"""Enough for FUSE_INIT. Should libfuse have answered that already, the kernel refuses to give away
another request: it wants room for the largest write."""
_ANSWER = struct.Struct("=IiQIIII")
"""fuse_out_header, and fuse_init_out as far as ``flags``, which comes last."""


class Handshake:
    """Waits for requests in the manner of *wait_readable*, and adds *flags* to the first answer.

    `wait_readable` is to be called, by one task, before each request is read. From the moment when
    *done* is called it is not needed any more.
    """

    def __init__(
        self,
        flags: int,
        wait_readable: Callable[[int], Awaitable[None]],
        done: Callable[[], None],
    ) -> None:
        self._flags = flags
        self._wait_readable = wait_readable
        self._done = done
        self._device = -1
        self._answer: socket.socket | None = None

    async def wait_readable(self, fd: int) -> None:
        """Wait for a request on *fd*, the device, and let it stand for a socket at the first."""
        if self._answer is not None:
            self._pass_on(fd, self._answer)
            self._done()
        await self._wait_readable(fd)
        if self._answer is None:
            try:
                request = os.read(fd, _READ_SIZE)
            except OSError as exc:
                # Nobody may take a later request for the first; libfuse will meet the error, too.
                log.debug("no first request: %s", exc)
                self._done()
                return
            self._answer = self._replace(fd, request)

    def _replace(self, fd: int, request: bytes) -> socket.socket:
        """Let libfuse find *request* in a socket at *fd*. The other end is returned."""
        self._device = os.dup(fd)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            ours.send(request)
            os.dup2(theirs.fileno(), fd, inheritable=False)
        return ours

    def _pass_on(self, fd: int, answer: socket.socket) -> None:
        """Give libfuse the device back, and the kernel libfuse's answer."""
        try:
            with answer:
                given = answer.recv(_READ_SIZE)
            os.write(self._device, _add_flags(given, self._flags))
        except OSError as exc:
            log.warning("the kernel's first request is not answered: %s", exc)
        os.dup2(self._device, fd, inheritable=False)
        os.close(self._device)


def _add_flags(answer: bytes, flags: int) -> bytes:
    """The answer to FUSE_INIT with *flags* added; an error is left as it is."""
    if len(answer) < _ANSWER.size:
        return answer
    *head, wanted = _ANSWER.unpack_from(answer)
    return _ANSWER.pack(*head, wanted | flags) + answer[_ANSWER.size :]
