"""Reading ahead over the files of a directory: when to ask for more, and the content that came.

A program that goes through the files of a directory, in the order of its listing or of their names,
would cost one or two calls for each file. So the call for one file may bring the following ones as
well (``following`` of `names.Open`). Whether that pays is known only afterwards, so each directory
has a *credit*. Each entry that is asked for ahead of need costs some, and each that turns out to be
of use earns more. Every call that had to be made earns a little, too, so that a directory without
credit is tried again once in a while; that is what reading at random costs. A new directory begins
with credit that the ones before it have earned.

While the entries that came are being used, more are asked for. A call for an entry that did not
come waits meanwhile for what is on its way: programs that share a directory would otherwise ask for
most of its entries one by one.

Only decisions and memory: no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

import trio

from fdfsfuse.core.recent import Recent

_COST: Final = 4
"""Credit that an entry costs. One that is used earns `_USED`, and new directories `_TRUSTED`."""
_USED: Final = 16
_TRUSTED: Final = 8
_TRIED: Final = 8
"""Entries to ask for as long as it is not known whether that pays."""
_BEGIN: Final = _COST * _TRIED - 3
"""The credit of a new directory: it is tried with the third call, as each earns 1."""
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
    """Decides what to ask for ahead of need, in one volume. *most*: entries in one call."""

    def __init__(self, most: int) -> None:
        self._max = _COST * most
        self._directories: Recent[int, _Directory] = Recent(_DIRECTORIES_MAX)
        # Not with what is remembered of the directory: that may be forgotten while somebody waits.
        self._coming: dict[int, trio.Event] = {}
        self._trust = 0
        self._by_name = False

    def missed(self, directory: int, ino: int) -> Wanted:
        """A call has to be made for an entry. Returns what to ask for along with it.

        If that is anything, `came` has to be called when the answer is there, or will not come.

        Args:
            directory: the inode number of the entry's directory; 0 if it is not known.
            ino: the inode number of the entry.
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
        """What to ask for next, once half of what came last has been used. As `missed`."""
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
        """An answer came, or will not come.

        Args:
            inos: the entries that it has brought.
            end: the last of them, if more may follow; else 0.
        """
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
        """An event that is set when entries of the directory have come; None: none are coming."""
        return self._coming.get(directory)

    def used(self, directory: int, ino: int) -> None:
        """An entry was known already, perhaps because it came ahead of need."""
        found = self._directories.get(directory)
        if found is not None and ino in found.brought:
            found.brought.discard(ino)
            found.paid = True
            found.credit = min(found.credit + _USED, self._max)
            self._trust = min(self._trust + _TRUSTED, self._max)
            self._by_name = found.by_name

    def superseded(self, directory: int) -> None:
        """Spend no more on a directory whose entries are brought in another way."""
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
        """The content in this version, which is not kept any longer; None if it is not here."""
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
