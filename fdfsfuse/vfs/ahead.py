"""Reading ahead over the files of a directory: when to ask for more, and the content that came.

Programs that take the files of a directory one after the other, in the order of its listing or of
their names, would make one or two calls for each. So the call for one of them may bring the
`following` ones as well (`names.Open`). Whether that pays shows afterwards, so each directory has
a *credit*: what is asked for costs, what turns out to be of use earns more. Without any,
a few files are tried again after every so many that had to be asked for: that is what reading at
random costs. A directory that is new begins with what the ones before it have earned.

While what came is being used, more is asked for. Who misses an entry meanwhile waits for what is on
its way: programs that share a directory would otherwise ask for most of its entries one by one.

Only decisions and memory: no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

import trio

from fdfsfuse.core.recent import Recent

_COST: Final = 4
_USED: Final = 16
_TRUSTED: Final = 8
_TRIED: Final = 8
"""Files to ask for as long as it is not known whether it pays."""
_BEGIN: Final = _COST * _TRIED - 3
"""A directory is tried with the third file that is asked for."""
_DIRECTORIES_MAX: Final = 256
_BROUGHT_MAX: Final = 1000


class Wanted(NamedTuple):
    """How many entries to ask for, in which order, and behind which inode; 0 entries: nothing."""

    entries: int
    by_name: bool
    after: int


class _Directory:
    __slots__ = (
        "batch",
        "brought",
        "by_name",
        "credit",
        "end",
        "last",
        "paid",
        "tried",
    )

    def __init__(self, credit: int, by_name: bool) -> None:
        self.credit = credit
        self.by_name = by_name
        self.tried = False
        self.paid = False
        self.last = self.end = self.batch = 0
        self.brought: set[int] = set()


class Ahead:
    """What to ask for ahead of need, of one volume. *most*: entries with one call."""

    def __init__(self, most: int) -> None:
        self._max = _COST * most
        self._directories: Recent[int, _Directory] = Recent(_DIRECTORIES_MAX)
        # Not with what is remembered of the directory: that may be forgotten while somebody waits.
        self._coming: dict[int, trio.Event] = {}
        self._trust = 0
        self._by_name = False

    def missed(self, directory: int, ino: int) -> Wanted:
        """An entry has to be asked for: what else to ask for. If anything, call `came` then.

        *directory* 0: it is not known.
        """
        if not directory:
            return Wanted(0, False, ino)
        found = self._directories.get(directory)
        if found is None:
            found = _Directory(max(_BEGIN, self._trust), self._by_name)
            self._directories[directory] = found
            self._trust //= 2
        found.credit = min(found.credit + 1, self._max)
        if not found.tried and ino < found.last:
            # Inode numbers rise in the order in which entries are made, which they are listed in.
            found.by_name = True
        found.last = ino
        return self._ask(directory, found, ino)

    def onward(self, directory: int) -> Wanted:
        """What to ask for behind what came last, of which half has been used. As `missed`."""
        found = self._directories.get(directory)
        if found is None or not found.end or 2 * len(found.brought) > found.batch:
            return Wanted(0, False, 0)
        return self._ask(directory, found, found.end)

    def _ask(self, directory: int, found: _Directory, after: int) -> Wanted:
        if directory in self._coming or found.credit < _COST * _TRIED:
            return Wanted(0, False, after)
        if found.tried and not found.paid:
            found.by_name = not found.by_name
        found.tried, found.paid = True, False
        self._coming[directory] = trio.Event()
        count = found.credit // _COST
        found.credit -= _COST * count
        return Wanted(count, found.by_name, after)

    def came(self, directory: int, inos: set[int], end: int = 0) -> None:
        """What was to be asked for came, or did not. *end*: the last, if there may be more."""
        coming = self._coming.pop(directory, None)
        if coming is not None:
            coming.set()
        found = self._directories.get(directory)
        if found is not None:
            if len(found.brought) > _BROUGHT_MAX:
                found.brought.clear()
            found.brought |= inos
            found.end, found.batch = end, len(inos)

    def coming(self, directory: int) -> trio.Event | None:
        """Set when what is being asked for in the directory has come; None: nothing is."""
        return self._coming.get(directory)

    def used(self, directory: int, ino: int) -> None:
        """An entry need not be asked for; perhaps because it was brought."""
        found = self._directories.get(directory)
        if found is not None and ino in found.brought:
            found.brought.discard(ino)
            found.paid = True
            found.credit = min(found.credit + _USED, self._max)
            self._trust = min(self._trust + _TRUSTED, self._max)
            self._by_name = found.by_name

    def superseded(self, directory: int) -> None:
        """Something else brings the entries of the directory."""
        found = self._directories.get(directory)
        if found is not None:
            found.credit = min(found.credit, _BEGIN)


class Contents:
    """Content that came ahead of open(), up to *limit* bytes; the oldest goes first.

    Content of a certain version of an inode never becomes wrong: whoever takes it says which
    version it has to be.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._contents: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self.used = 0

    def put(self, number: int, version: int, data: bytes) -> None:
        """Keep the content of an inode."""
        self.drop(number)
        self._contents[number] = (version, data)
        self.used += len(data)
        while self.used > self._limit:
            self.drop(next(iter(self._contents)))

    def has(self, number: int) -> bool:
        """Whether there is content of the inode."""
        return number in self._contents

    def take(self, number: int, version: int) -> bytes | None:
        """The content, which is not kept any longer; None when it is not here."""
        found = self._contents.get(number)
        if found is None:
            return None
        self.drop(number)
        return found[1] if found[0] == version else None

    def drop(self, number: int) -> None:
        """Free the memory of content that is of no use any more."""
        found = self._contents.pop(number, None)
        if found is not None:
            self.used -= len(found[1])

    def clear(self) -> None:
        """Forget everything."""
        self._contents.clear()
        self.used = 0
