"""Open directories: listings in pages, resumable at any position that the kernel was given.

Positions: 0 is the start, 1 behind ``.``, 2 behind ``..``; then, per kind of directory,

* names: 2 + the storage's cookie. In a volume's root the store paths follow at 1 << 62.
* the root and directories of ids: 2 + a number that stands for the name, or counts entries.

One page is in memory per open directory, and it is dropped when it was consumed. The attributes in
it are as old as the page; entries that this mount has changed since are given as they are now,
entries that it has removed since are left out.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import NamedTuple

from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.context import Context, Entry
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.numbers import IdDirectory, id_directory_number
from fdfsfuse.vfs.options import Ids
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.volumes import Volumes

_STORE_PATHS_AT = 1 << 62
_UNKNOWN_NUMBER = 0xFFFFFFFF


class Row(NamedTuple):
    """An entry of a page, as fetched.

    ``number``: the inode number in this mount; None for an unnamed object, which gets its number
    when it is listed.
    """

    cookie: int
    name: bytes
    attr: Attr
    number: int | None


class Listed(NamedTuple):
    """An entry for the kernel. The listing goes on at ``next_id``.

    ``counts``: the kernel remembers the inode, so its lookup count rises; not so for the dots.
    """

    name: bytes
    entry: Entry
    next_id: int
    counts: bool


class Source(ABC):
    """Where a directory's entries come from."""

    @abstractmethod
    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        """Entries behind *cookie*, and whether there are no more. Empty only at the end."""


class RootSource(Source):
    """The volumes, in the order in which they became known."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        rows = []
        for index, volume in enumerate(self._volumes.by_name.values(), 1):
            if index > cookie:
                entry = self._volumes.volume_entry(volume)
                rows.append(Row(index, volume.name, entry.attr, entry.number))
        return rows, True


class NamesSource(Source):
    """A directory of a volume's tree.

    If all entries are known, and no more than one page, it is listed from memory, as it is at the
    start of the listing; its cookies then count entries.
    """

    def __init__(self, context: Context, volume: Volume, ino: int) -> None:
        self._context = context
        self._volume = volume
        self._ino = ino
        self._known: list[tuple[bytes, Attr]] | None = None

    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        memory, ino = self._volume.memory, self._ino
        of_inode, volume = self._context.numbers.of_inode, self._volume.number
        if not cookie:
            self._known = memory.entries(ino, names.LIST_MAX)
        if self._known is not None:
            rows = [
                Row(count, name, attr, of_inode(volume, attr.ino))
                for count, (name, attr) in enumerate(self._known[cookie:], cookie + 1)
                if not cookie or memory.lookup(ino, name) != MISSING
            ]
            return rows, True
        listing: names.Listing = await self._volume.call(names.ReadDir(ino, cookie, names.LIST_MAX))
        rows = [
            Row(entry.cookie, entry.name, entry.attr, of_inode(volume, entry.attr.ino))
            for entry in listing.entries
        ]
        return rows, listing.end or not rows


class VolumeRootSource(Source):
    """A volume's root: its names, then M00 .. ."""

    def __init__(self, context: Context, volumes: Volumes, volume: Volume) -> None:
        self._names = NamesSource(context, volume, names.ROOT_INO)
        self._ids = IdSource(volumes, volume, None)
        self._hide = context.options.ids is Ids.HIDE

    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        if cookie < _STORE_PATHS_AT:
            rows, end = await self._names.fetch(cookie)
            if rows or self._hide:
                return rows, end and self._hide
            cookie = _STORE_PATHS_AT
        rows, end = await self._ids.fetch(cookie - _STORE_PATHS_AT)
        return [row._replace(cookie=row.cookie + _STORE_PATHS_AT) for row in rows], end


class IdSource(Source):
    """Store paths (``directory`` None) or the directories below M00 and M00/HH."""

    def __init__(self, volumes: Volumes, volume: Volume, directory: IdDirectory | None) -> None:
        self._volumes = volumes
        self._volume = volume
        self._directory = directory

    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        directory = self._directory
        path, prefix = (directory.path, "") if directory else ("", "M")
        after = f"{prefix}{cookie - 1:02X}" if cookie else ""
        request = names.ListObjects(path, after, names.LIST_MAX)
        listing: names.ObjectListing = await self._volume.call(request)
        attr = self._volumes.directory_attr()
        rows = []
        for entry in listing.entries:
            value = int(entry.name.removeprefix(prefix), 16)
            child = directory.child(value) if directory else IdDirectory(0, value)
            number = id_directory_number(self._volume.number, child)
            rows.append(Row(value + 1, entry.name.encode(), attr, number))
        return rows, listing.end or not rows


class ObjectSource(Source):
    """The unnamed objects of M00/HH/HH. Cookies count entries; page starts are remembered."""

    def __init__(self, context: Context, volume: Volume, directory: IdDirectory) -> None:
        self._context = context
        self._volume = volume
        self._path = directory.path
        self._starts: list[tuple[int, str]] = [(0, "")]

    async def fetch(self, cookie: int) -> tuple[list[Row], bool]:
        count, after = next(start for start in reversed(self._starts) if start[0] <= cookie)
        rows: list[Row] = []
        end = False
        while not rows and not end:
            request = names.ListObjects(self._path, after, names.LIST_MAX)
            listing: names.ObjectListing = await self._volume.call(request)
            end = listing.end or not listing.entries
            for entry in listing.entries:
                count, after = count + 1, entry.name
                if count > cookie and entry.attr is not None:
                    attr = self._context.object_attr(entry.attr)
                    rows.append(Row(count, entry.name.encode(), attr, None))
            if count > self._starts[-1][0]:
                self._starts.append((count, after))
        return rows, end


class DirHandle:
    """An open directory. The kernel makes sure that one request at a time uses it."""

    def __init__(
        self, context: Context, number: int, volume: Volume | None, source: Source
    ) -> None:
        self._context = context
        self._volume = volume
        self._source = source
        self.number = number
        self._position = 0
        self._rows: list[Row] = []
        self._index = 0
        self._end = False
        self._fetched_at = 0.0
        self._left_s = 0.0
        self.removed: set[bytes] = set()

    def seek(self, position: int) -> None:
        """Begin a request that lists what comes after *position*: 0, or an entry's ``next_id``."""
        self._look_at_lease()
        if position != self._position:
            self._position = position
            self._rows, self._index, self._end = [], 0, False

    def next(self) -> Listed | None:
        """The next entry in memory; None if `fill` has to be called."""
        if self._position < 2:
            return self._dot()
        while self._index < len(self._rows):
            row = self._rows[self._index]
            if row.name not in self.removed:
                return self._listed(row)
            self._index += 1
        return None

    def taken(self, listed: Listed) -> None:
        """Note that the kernel took the entry."""
        self._position = listed.next_id
        if listed.counts:
            self._index += 1
            self._context.numbers.remember(listed.entry.number)

    def refused(self, listed: Listed) -> None:
        """Note that the kernel has no room for the entry now."""
        if listed.counts and not self._context.numbers.known(listed.entry.number):
            self._context.numbers.drop(listed.entry.number)

    async def fill(self) -> bool:
        """Fetch a page. Returns False if there is nothing more."""
        cookie = self._rows[-1].cookie if self._rows else self._position - 2
        if self._end:
            self._rows, self._index = [], 0
            return False
        self.removed.clear()
        fetched_at = time.monotonic()
        self._rows, self._end = await self._source.fetch(cookie)
        self._index, self._fetched_at = 0, fetched_at
        self._look_at_lease()
        return bool(self._rows)

    def _look_at_lease(self) -> None:
        """Once for all entries up to the next await: for each it would be a third of the cost."""
        self._left_s = self._volume.memory.left() if self._volume is not None else 0.0

    def _dot(self) -> Listed:
        name = b"." if self._position == 0 else b".."
        number = self.number if name == b"." else _UNKNOWN_NUMBER
        entry = Entry(number, _DOT_ATTR, 0.0, 0.0)
        return Listed(name, entry, self._position + 1, False)

    def _listed(self, row: Row) -> Listed:
        context = self._context
        number = row.number
        if number is None:
            assert self._volume is not None
            number = context.numbers.of_object(self._volume.number, row.attr.file_id)
        volume, attr = self._volume, row.attr
        if attr.ino and volume is not None:
            attr = volume.memory.last_attr(attr.ino) or attr
            parent, _ = context.numbers.inode_and_object(self.number)
            entry = context.entry(volume, attr, parent, row.name, self._left_s)
            return Listed(row.name, entry, row.cookie + 2, True)
        timeout_s = context.options.attr_timeout_s
        left_s = max(0.0, timeout_s - (time.monotonic() - self._fetched_at))
        return Listed(row.name, Entry(number, attr, left_s, left_s), row.cookie + 2, True)


_DOT_ATTR = Attr(0, 0o040755, 2, 0, 0, 0, 0, 0, 0, 0, version=0)


class DirHandles:
    """The open directories."""

    def __init__(self) -> None:
        self._next = 0
        self._handles: dict[int, DirHandle] = {}

    def open(self, handle: DirHandle) -> int:
        """Give a handle its number."""
        self._next += 1
        self._handles[self._next] = handle
        return self._next

    def get(self, number: int) -> DirHandle:
        """Raises KeyError when the handle was released."""
        return self._handles[number]

    def release(self, number: int) -> None:
        """Close a directory."""
        self._handles.pop(number, None)

    def removed(self, parent: int, name: bytes) -> None:
        """Let open listings of *parent* show a name no more: it was removed."""
        for handle in self._handles.values():
            if handle.number == parent:
                handle.removed.add(name)
