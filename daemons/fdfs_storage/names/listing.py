"""``M00`` and so on: directories of the objects that have no name.

What is on the disk is read leaf by leaf (``M00/0C/1F``) in a thread, once; after that memory
knows which leaves hold an unnamed object, and which directories of leaves hold none. The store's
observers and adoptions forget a leaf when its objects without name may have changed, and the next
listing reads that leaf again. Changes by mounts do not: their objects never are without a name.

A scan runs beside the loop, so objects may come and go meanwhile. Ours are told from others by
reading, in this order: the directory, the names in flight, the state. An object of ours that was
in the directory is then in flight or in the state, unless it was deleted since, so what remains
is looked at once more.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import trio

from fdfs_storage.names.checks import fail
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.reads import Reads
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location, is_object_base
from fdfsfuse.proto.names import ObjectEntry, ObjectListing

_PATH: Final = re.compile(r"(?:M([0-9A-F]{2})(?:/([0-9A-F]{2})(?:/([0-9A-F]{2}))?)?)?\Z")
_HEX_NAME: Final = re.compile(r"[0-9A-F]{2}\Z")
_KEPT_LISTS: Final = 8
_WARM_DELAY_S: Final = 20.0
_WARM_PAUSE_S: Final = 0.1

Leaf = tuple[int, str, str]
"""(store path index, ``0C``, ``1F``)."""


class Listing:
    """Lists objects without a name.

    *db* is a connection of its own, used in one thread at a time; inside *visible* it sees all
    that is committed.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        reads: Reads,
        objects: Objects,
        visible: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._db = db
        self._visible = visible
        self._reads = reads
        self._objects = objects
        self._lock = trio.Lock()
        self._known: dict[Leaf, bool] = {}
        self._empty: set[tuple[int, str]] = set()
        """Directories of leaves that are known to hold no unnamed object."""
        self._lists: dict[Leaf, list[str]] = {}
        self._changed: set[Leaf] = set()

    # --- changes ----------------------------------------------------------------------------

    def observe(self, op: str, location: Location, other: Location | None) -> None:
        """A change in the store (see `fdfs_storage.store.Observer`)."""
        if not self._objects.own and not location.base.endswith(METADATA_SUFFIX):
            self.forget(location)

    def forget(self, location: Location) -> None:
        """The objects without a name in the leaf of *location* may be others now."""
        leaf = (location.path_index, location.relative[:2], location.relative[3:5])
        # In this order: a scan in a thread notes what it found, then looks at what changed.
        self._changed.add(leaf)
        self._known.pop(leaf, None)
        self._empty.discard(leaf[:2])
        self._lists.pop(leaf, None)

    async def run(self) -> None:
        """Read the leaves once, some time after the start, so that no listing has to wait for it.

        That takes a second or two of CPU for 65,536 leaves, spread over half a minute.
        """
        await trio.sleep(_WARM_DELAY_S)
        for index in range(self._objects.store.path_count):
            root = self._objects.store.data_directory(index)
            for high in await trio.to_thread.run_sync(_subdirectories, root):
                async with self._lock:
                    with self._visible():
                        self._changed.clear()
                        await trio.to_thread.run_sync(self._any_below, index, high)
                await trio.sleep(_WARM_PAUSE_S)

    # --- listing ----------------------------------------------------------------------------

    async def answer(self, request: names.ListObjects) -> ObjectListing:
        """See `names.ListObjects`. EINVAL: no such path can be."""
        match = _PATH.match(request.path)
        if match is None or (match[1] and int(match[1], 16) >= self._objects.store.path_count):
            raise fail(errno.ENOENT if match else errno.EINVAL)
        limit = min(request.limit, names.LIST_MAX)
        path_index, high, low = match.groups()
        # One scan at a time: they share a connection, and the disk.
        async with self._lock:
            with self._visible():
                self._changed.clear()
                if low is not None:
                    leaf = (int(path_index, 16), high, low)
                    return await self._list_leaf(leaf, request.after, limit)
                found = await trio.to_thread.run_sync(self._directories, path_index, high)
        entries = [name for name in found if name > request.after]
        return ObjectListing([ObjectEntry(name) for name in entries[:limit]], len(entries) <= limit)

    async def _list_leaf(self, leaf: Leaf, after: str, limit: int) -> ObjectListing:
        bases = self._lists.get(leaf)
        if bases is None:
            bases = await trio.to_thread.run_sync(self._scan, leaf)
            if leaf not in self._changed:
                if len(self._lists) >= _KEPT_LISTS:
                    self._lists.pop(next(iter(self._lists)))
                self._lists[leaf] = bases
        behind = [base for base in bases if base > after]
        return await trio.to_thread.run_sync(self._entries, leaf, behind, limit)

    def _entries(self, leaf: Leaf, bases: list[str], limit: int) -> ObjectListing:
        """Entries for the first of *bases* that are still there. Runs in a thread."""
        entries: list[ObjectEntry] = []
        for number, base in enumerate(bases):
            try:
                entries.append(ObjectEntry(base, self._reads.unnamed_attr(_name(leaf, base))))
            except StatusError:
                continue
            if len(entries) == limit:
                return ObjectListing(entries, number + 1 == len(bases))
        return ObjectListing(entries, True)

    def _directories(self, path_index: str | None, high: str | None) -> list[str]:
        """The store paths or sub directories that hold an unnamed object. Runs in a thread."""
        if path_index is None:
            count = self._objects.store.path_count
            return [f"M{i:02X}" for i in range(count) if self._any_below(i)]
        index = int(path_index, 16)
        root = self._objects.store.data_directory(index)
        if high is None:
            return [name for name in _subdirectories(root) if self._any_below(index, name)]
        lows = _subdirectories(f"{root}/{high}")
        return [low for low in lows if self._has_unnamed((index, high, low))]

    def _any_below(self, index: int, only: str | None = None) -> bool:
        """Is there an unnamed object on the store path, or in *only* one directory of it?"""
        root = self._objects.store.data_directory(index)
        highs = [only] if only is not None else _subdirectories(root)
        return any(self._any_in(index, high, f"{root}/{high}") for high in highs)

    def _any_in(self, index: int, high: str, directory: str) -> bool:
        key = (index, high)
        if key in self._empty:
            return False
        if any(self._has_unnamed((index, high, low)) for low in _subdirectories(directory)):
            return True
        self._empty.add(key)
        if any(leaf[:2] == key for leaf in list(self._changed)):
            self._empty.discard(key)
        return False

    def _has_unnamed(self, leaf: Leaf) -> bool:
        known = self._known.get(leaf)
        if known is None:
            known = bool(self._scan(leaf))
            self._known[leaf] = known
            if leaf in self._changed:
                self._known.pop(leaf, None)
        return known

    def _scan(self, leaf: Leaf) -> list[str]:
        """Sorted bases of the unnamed objects of a leaf, from the disk. Runs in a thread."""
        index, high, low = leaf
        directory = f"{self._objects.store.data_directory(index)}/{high}/{low}"
        try:
            found = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        if not found:
            return []
        prefix = _name(leaf, "")
        ours = {name[len(prefix) :] for name in frozenset(self._objects.in_flight)}
        # '0' follows '/', so this is the range of all names that begin with the prefix.
        bounds = (prefix, prefix[:-1] + "0")
        for table in ("inode", "pending", "garbage"):
            rows = self._db.execute(
                f"SELECT file_id FROM {table} WHERE file_id >= ? AND file_id < ?", bounds
            )
            ours.update(row[0][len(prefix) :] for row in rows)
        unnamed = (base for base in found if base not in ours and is_object_base(base))
        return sorted(base for base in unnamed if _is_file(f"{directory}/{base}"))


def _name(leaf: Leaf, base: str) -> str:
    index, high, low = leaf
    return f"M{index:02X}/{high}/{low}/{base}"


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _subdirectories(path: str) -> list[str]:
    """Names of the sub directories ``00`` .. ``FF``, sorted."""
    try:
        return sorted(name for name in os.listdir(path) if _HEX_NAME.match(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
