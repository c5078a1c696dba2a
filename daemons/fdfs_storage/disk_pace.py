"""Whether to wait for a disk on the event loop or in a thread.

Going to a thread and back costs more than a quick disk takes, and a slow disk holds up everybody
who is waited for on the loop.
"""

from __future__ import annotations

_IN_THREAD_FACTOR = 50
"""After slow waits the next ones are left to a thread for so many times their duration: a slow
disk stops the loop for one part in so many."""
_STALLED_S = 0.1
_SLOW_MAX = 4


class DiskPace:
    """What the last waits for a disk on the loop say about the next one.

    A wait that was slow may have been a process that took the processor. But when a third of them
    are slow, or one is so long that it was the disk in any case, the next ones are for a thread.

    Args:
        slow_s: seconds that a slow wait takes.
    """

    __slots__ = ("_in_thread_until", "_slow", "_slow_s")

    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self._slow = 0
        self._in_thread_until = 0.0

    def is_quick(self, now: float) -> bool:
        """Whether to wait on the loop; *now* in seconds of time.monotonic()."""
        return now >= self._in_thread_until

    def waited(self, start: float, end: float) -> None:
        """The loop has waited from *start* to *end*."""
        took = end - start
        if took <= self._slow_s:
            self._slow = max(0, self._slow - 1)
            return
        self._slow += 2
        if self._slow > _SLOW_MAX or took >= _STALLED_S:
            self._in_thread_until = end + took * _IN_THREAD_FACTOR
            # One more slow wait then, and it is too slow still.
            self._slow = _SLOW_MAX - 1
