"""A file's data made durable by the kernel while the thread that asked for it does other work.

By the asynchronous I/O of Linux (io_submit(2), IOCB_CMD_FDSYNC). A thread of ours, even one of the
C library (aio_fsync(3)), costs more: it has to be woken, and to wake who waits for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

# Not in the C library: io_setup, io_destroy, io_getevents, io_submit.
_NUMBERS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
_FDSYNC: Final = 3

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Request(ctypes.Structure):
    """``struct iocb`` of <linux/aio_abi.h>, little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):
    """``struct io_event``."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class BackgroundSync:
    """One fdatasync at a time: `start`, then `wait`. Without the first, or where the kernel cannot
    do it in the background, `wait` does it all. Close it.
    """

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        self._request = _Request(opcode=_FDSYNC)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._event = _Event()
        self._running = False
        numbers = _NUMBERS.get(platform.machine()) if struct.calcsize("P") == 8 else None
        self._possible = numbers is not None
        if numbers is not None:
            setup, self._destroy, self._get_events, self._submit = numbers
            self._possible = not _syscall(setup, 1, ctypes.byref(self._context))

    def start(self, fd: int) -> None:
        """Begin to make durable what was written to *fd* by now. None is under way."""
        if self._possible:
            self._request.fd = fd
            self._running = _syscall(self._submit, self._context, 1, self._requests) == 1
            self._possible = self._running  # not every file system can

    def wait(self, fd: int) -> None:
        """Wait until what was written to *fd* before `start` is durable; without one, until all is.

        Raises:
            OSError: it could not be made so.
        """
        if not self._running:
            os.fdatasync(fd)
            return
        code = self.finish()
        if code:
            raise OSError(code, os.strerror(code))

    def finish(self) -> int:
        """Wait for what was started, if anything was: 0 or an errno."""
        if not self._running:
            return 0
        event = ctypes.byref(self._event)
        while _syscall(self._get_events, self._context, 1, 1, event, None) != 1:
            if ctypes.get_errno() != errno.EINTR:
                raise OSError(ctypes.get_errno(), "io_getevents")
        self._running = False
        return -int(self._event.result)

    def close(self) -> None:
        """Let go of what the kernel keeps for it; waits for what is under way."""
        if self._context:
            _syscall(self._destroy, self._context)
            self._context.value = 0
        self._running = self._possible = False
