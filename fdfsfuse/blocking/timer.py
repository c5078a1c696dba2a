"""When an operation has to give up."""

from __future__ import annotations

import math
import time

from fdfsfuse.errors import DeadlineExceeded


class Timer:
    """Passes when nothing moved for *timeout_s*, or *deadline_s* after it was made.

    ``due`` is a time of time.monotonic().
    """

    __slots__ = ("_end", "_timeout_s", "due")

    def __init__(self, timeout_s: float, deadline_s: float | None) -> None:
        now = time.monotonic()
        self._timeout_s = timeout_s
        self._end = math.inf if deadline_s is None else now + deadline_s
        self.due = min(now + timeout_s, self._end)

    def touch(self) -> None:
        """Something moved."""
        self.due = min(time.monotonic() + self._timeout_s, self._end)

    def passed(self, what: str) -> DeadlineExceeded:
        """What to raise when it has passed."""
        if time.monotonic() >= self._end:
            return DeadlineExceeded(f"{what}: the deadline has passed")
        return DeadlineExceeded(f"{what}: no progress for {self._timeout_s:g} s")
