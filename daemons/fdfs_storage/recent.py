"""Contents of the files that were made last, so that they are not read again to be pushed.

A small file goes to the peers within a millisecond of its upload. Finding, opening and reading it
for that costs more than sending it does. The files stay the truth: what is not here is read there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_BYTES_MAX: Final = 4 << 20
_COUNT_MAX: Final = 4096
_CONTENT_MAX: Final = 64 << 10
"""Larger content goes from the file to the socket without passing through our memory."""
Content = bytes | memoryview


class RecentContents:
    """Whole contents by file name; the oldest are forgotten."""

    def __init__(self, bytes_max: int = _BYTES_MAX, count_max: int = _COUNT_MAX) -> None:
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._contents: OrderedDict[str, Content] = OrderedDict()
        self._bytes = 0

    def note(self, name: str, content: Content | None) -> None:
        """The file has *content* now; None: it has changed, or was deleted."""
        contents = self._contents
        old = contents.pop(name, None)
        if old is not None:
            self._bytes -= len(old)
        if content is None or len(content) > _CONTENT_MAX:
            return
        contents[name] = content
        self._bytes += len(content)
        while self._bytes > self._bytes_max or len(contents) > self._count_max:
            self._bytes -= len(contents.popitem(last=False)[1])

    def get(self, name: str) -> Content | None:
        """The content, None when it is not here."""
        return self._contents.get(name)
