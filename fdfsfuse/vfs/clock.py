"""The clock by which a mount dates what it changes: that of the kernel's local file systems.

The kernel chooses the times that ``touch`` sets, also on a mount, and it takes them from a clock of
its own, some milliseconds behind that of `time.time`. By the latter a file that is touched would be
older than one that was written to before.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Final

_MFD_NOEXEC_SEAL: Final = 8
"""Of ``<linux/memfd.h>``, for which Python has no name. Linux 6.3 and newer may insist on it."""


def now_ns() -> int:
    """The current time, in ns since 1970: not before any time that the kernel has set a file to,
    nor after any that it will set one to.

    No clock that can be read tells it: since Linux 6.13 the kernel's is at times more exact than
    CLOCK_REALTIME_COARSE.
    """
    fd = _file()
    os.utime(fd)
    return os.fstat(fd).st_mtime_ns


@cache
def _file() -> int:
    """A descriptor of a file without name and content, for the kernel to set its times."""
    try:
        return os.memfd_create("clock", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("clock")
