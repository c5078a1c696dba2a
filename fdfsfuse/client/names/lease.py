"""Until when what a names session was told may be relied upon."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

boottime: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds of the clock that leases are measured with; it goes on while the machine sleeps."""

_MARGIN: Final = 0.1
"""Part of the lease that is not used: clocks differ, and the kernel counts from when it reads."""


class Lease:
    """A session's lease, which its owner looks at with each request: plain attributes.

    Attributes:
        until: boottime() until which the session is certain to live at the server.
        usable_until: the same with a margin, for those who rely on what they were told.
    """

    __slots__ = ("until", "usable_until")

    def __init__(self) -> None:
        self.until = self.usable_until = 0.0

    def renew(self, sent_at: float, length_s: float) -> None:
        """What was sent at the boottime() *sent_at* was answered."""
        until = sent_at + length_s
        if until > self.until:
            self.until = until
            self.usable_until = until - length_s * _MARGIN

    def end(self) -> None:
        """There is no session any more."""
        self.until = self.usable_until = 0.0
