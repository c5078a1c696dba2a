"""The changes of a file's content since it was last stored, so that they can be made again.

Two mounts may change a file at the same time. The second one to store finds other content than the
one that it has changed. Its changes are then made again on that, as if they had all been made now:
what was cut off is cut off, bytes go to where they were written, and appended bytes go to the new
end.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

RANGES_MAX = 16_384
"""With more ranges than this the content should be stored, so that they can be forgotten."""


class Edits:
    """Ranges written, and how the size was set.

    Attributes:
        kept: at most so many bytes of the earlier content are left; None: all of them.
        floor: the size that was set last: the file is at least that long.
        tail: the offset from which on all bytes were appended; None: none were.
    """

    __slots__ = ("_ends", "_starts", "floor", "kept", "tail")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.kept: int | None = None
        self.floor = 0
        self.tail: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is left of the earlier content, whatever that was."""
        return self.kept == 0

    @property
    def crowded(self) -> bool:
        """Whether there are too many ranges to go on noting them."""
        return len(self._starts) >= RANGES_MAX

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what was written, without what was appended; in order."""
        return zip(self._starts, self._ends, strict=True)

    def append(self, offset: int) -> None:
        """Bytes were added at *offset*, the end of the content."""
        if self.tail is None:
            self.tail = offset

    def write(self, start: int, end: int, size: int) -> None:
        """The bytes from *start* to *end* were written to a content of *size* bytes."""
        if self.tail is not None and end > self.tail:
            self._settle(size)
        self._add(start, end)

    def resize(self, old: int, size: int) -> None:
        """The size was set from *old* to *size*."""
        if self.tail is not None and self.tail < size <= old:
            return  # only appended bytes are cut off, none of the earlier content
        if self.tail is not None and size > old:
            self._settle(old)
        self.tail = None
        self._cut(size)
        self.kept = size if self.kept is None else min(self.kept, size)
        self.floor = size

    def overlay(self, newest: bytes | bytearray, own: bytes | bytearray) -> bytearray:
        """*newest* with these changes, whose bytes are taken from *own*. Moves ``tail`` along."""
        result = bytearray(newest if self.kept is None else newest[: self.kept])
        _reach(result, self.floor)
        for start, end in self.ranges():
            _reach(result, end)
            result[start:end] = own[start:end]
        if self.tail is not None:
            appended = own[self.tail :]
            self.tail = len(result)
            result += appended
        return result

    def end_on(self, size: int) -> int:
        """The size of a content of *size* bytes after these changes, without appended bytes."""
        kept = size if self.kept is None else min(self.kept, size)
        return max(kept, self.floor, self._ends[-1] if self._ends else 0)

    def _settle(self, size: int) -> None:
        """Make appended bytes an ordinary range: they have been seen where they are now."""
        if self.tail is not None:
            self._add(self.tail, size)
            self.tail = None

    def _add(self, start: int, end: int) -> None:
        starts, ends = self._starts, self._ends
        if ends and start == ends[-1]:
            ends[-1] = end
            return
        # All ranges that the new one touches become one.
        first = bisect_left(ends, start)
        behind = bisect_right(starts, end)
        if first < behind:
            start, end = min(start, starts[first]), max(end, ends[behind - 1])
            starts[first:behind], ends[first:behind] = [start], [end]
        else:
            insort(starts, start)
            insort(ends, end)

    def _cut(self, size: int) -> None:
        count = bisect_left(self._starts, size)
        del self._starts[count:], self._ends[count:]
        if self._ends and self._ends[-1] > size:
            self._ends[-1] = size


def _reach(content: bytearray, size: int) -> None:
    """Make *content* at least *size* bytes long."""
    if len(content) < size:
        content.extend(bytes(size - len(content)))
