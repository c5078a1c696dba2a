"""Answers to requests that read. They see committed state only.

Mostly through the writing connection, whose page cache is warm; while a batch is open there,
through one of their own.

All of them run on the loop thread, between two awaits, and none waits for a disk except where a
method says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterable
from typing import Any, Final

from fdfs_storage.names.checks import fail
from fdfs_storage.names.content import USER
from fdfs_storage.names.namespace import check_directory, find_attr, get_attr, to_attr
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.schema import ATTR_COLUMNS
from fdfs_storage.names.state import State
from fdfsfuse.proto import metadata, names
from fdfsfuse.proto.names import Attr, DirEntry, FollowingEntry, Listing, Opened, Xattrs

UNNAMED_MODE: Final = stat.S_IFREG | 0o644
PATHS_MAX: Final = 1000
_DEPTH_MAX: Final = 10_000
_LOOKUP: Final = (
    f"SELECT {ATTR_COLUMNS} FROM dirent JOIN inode ON inode.ino = dirent.ino"
    " WHERE parent = ? AND name = ?"
)
_LIST: Final = (
    f"SELECT cookie, name, {ATTR_COLUMNS} FROM dirent JOIN inode ON inode.ino = dirent.ino"
    " WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)
_PLACE: Final = "SELECT parent, cookie, name FROM dirent WHERE ino = ?"
_FOLLOWING: Final = (
    f"SELECT name, {ATTR_COLUMNS} FROM dirent JOIN inode ON inode.ino = dirent.ino"
    " WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)
_FOLLOWING_BY_NAME: Final = (
    f"SELECT name, {ATTR_COLUMNS} FROM dirent JOIN inode ON inode.ino = dirent.ino"
    " WHERE parent = ? AND name > ? ORDER BY name LIMIT ?"
)
_LIST_TARGET: Final = 2 + 12
_LISTING_BYTES: Final = 512 << 10
"""Names and targets in one answer, so that it stays well below FRAME_MAX."""
_WARM_S: Final = 0.02
"""So long may what follows keep an answer back: on slow disks it is little that comes ahead."""
_XATTRS_S: Final = 0.005
"""So long may looking for the metadata of further files take, for which the loop waits."""
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)


def _size(xattrs: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in xattrs.items())


class WouldBlock(Exception):
    """The content is not in the page cache: read it in a thread."""


class Reads:
    """Reads of the committed tree: on *state*'s connection between batches, else on *db*."""

    def __init__(
        self, db: sqlite3.Connection, objects: Objects, state: State | None = None
    ) -> None:
        self._own_db = db
        self._objects = objects
        self._state = state

    @property
    def _db(self) -> sqlite3.Connection:
        state = self._state
        return self._own_db if state is None or state.in_batch else state.db

    def lookup(self, request: names.Lookup) -> Attr:
        """See `names.Lookup`."""
        row = self._db.execute(_LOOKUP, (request.parent, request.name)).fetchone()
        if row is None:
            check_directory(self._db, request.parent)
            raise fail(errno.ENOENT)
        return to_attr(row)

    def get_attr(self, request: names.GetAttr) -> Attr:
        """See `names.GetAttr`."""
        return get_attr(self._db, request.ino)

    def read_dir(self, request: names.ReadDir) -> Listing:
        """See `names.ReadDir`."""
        limit = min(request.limit, names.LIST_MAX)
        rows = self._db.execute(_LIST, (request.ino, request.cookie, limit + 1)).fetchall()
        if not rows:
            attr = get_attr(self._db, request.ino)
            if not stat.S_ISDIR(attr.mode):
                raise fail(errno.ENOTDIR)
        entries: list[DirEntry] = []
        size = 0
        for row in rows[:limit]:
            size += len(row[1]) + len(row[_LIST_TARGET])
            if size > _LISTING_BYTES and entries:
                return Listing(entries, False)
            entries.append(DirEntry(row[0], row[1], to_attr(row[2:])))
        return Listing(entries, len(rows) <= limit)

    def open(self, request: names.Open, *, partly: bool = False) -> Opened:
        """See `names.Open`.

        Raises:
            WouldBlock: content has to come from the disk; *partly*: the file's own. Of what follows
                as much is told then as is in memory.
        """
        attr = get_attr(self._db, request.ino)
        data = self._content(attr, _NOWAIT) if self.wants_data(attr, request) else None
        if not request.following:
            return Opened(attr, data)
        return Opened(attr, data, *self._following(request, attr, partly))

    def _following(
        self, request: names.Open, opened: Attr, partly: bool
    ) -> tuple[int, list[FollowingEntry]]:
        parent, found = self._named_after(request, opened)
        entries: list[FollowingEntry] = []
        for name, attr in found:
            data: bytes | None = None
            if self.wants_data(attr, request):
                try:
                    data = self._content(attr, _NOWAIT)
                except WouldBlock:
                    if not partly:
                        raise
                    # Where one is not in memory, others hardly are.
                    entries.append(FollowingEntry(name, attr, None))
                    break
            entries.append(FollowingEntry(name, attr, data))
        return parent, entries

    def _named_after(
        self, request: names.Open, opened: Attr
    ) -> tuple[int, list[tuple[bytes, Attr]]]:
        """The directory of *opened*, and what follows it there as far as one answer may tell."""
        parent, rows = self._rows_after(request)
        found: list[tuple[bytes, Attr]] = []
        # Beside the content that was asked for: the whole answer has to fit a frame.
        own = opened.size if self.wants_data(opened, request) else 0
        left = min(names.FOLLOWING_DATA_MAX, names.SMALL_CONTENT_MAX - own)
        for row in rows:
            attr = to_attr(row[1:])
            left -= attr.size if self.wants_data(attr, request) else len(attr.target)
            if left < 0:
                break
            found.append((row[0], attr))
        return parent, found

    def _rows_after(
        self, request: names.Open | names.ListXattrs
    ) -> tuple[int, list[tuple[Any, ...]]]:
        """The directory of the inode, and name and attributes of the entries that follow it."""
        place = self._db.execute(_PLACE, (request.ino,)).fetchone()
        if place is None:
            return 0, []
        parent, cookie, name = place
        query, behind = (_FOLLOWING_BY_NAME, name) if request.by_name else (_FOLLOWING, cookie)
        limit = min(request.following, names.FOLLOWING_MAX)
        return parent, self._db.execute(query, (parent, behind, limit)).fetchall()

    def contents(self, request: names.Open) -> list[tuple[str, int]]:
        """Path and size of what the answer to *request* is to carry; of the inode itself first."""
        attrs = [get_attr(self._db, request.ino)]
        if request.following:
            attrs += [attr for _, attr in self._named_after(request, attrs[0])[1]]
        return [
            (self._objects.path(attr.file_id), attr.size)
            for attr in attrs
            if attr.file_id and self.wants_data(attr, request)
        ]

    def wants_data(self, attr: Attr, request: names.Open) -> bool:
        """True when the answer to *request* carries the content."""
        return stat.S_ISREG(attr.mode) and attr.size <= min(
            request.max_data, names.SMALL_CONTENT_MAX
        )

    def _content(self, attr: Attr, flags: int) -> bytes | None:
        if not attr.file_id:
            return b""
        try:
            return read_content(self._objects.path(attr.file_id), attr.size, flags)
        except BlockingIOError:
            raise WouldBlock from None
        except OSError:
            return None

    def xattrs(self, request: names.ListXattrs) -> Xattrs:
        """See `names.ListXattrs`."""
        if request.ino == 0:
            self.lookup_object(names.LookupObject(request.file_id))
            return Xattrs(self._metadata(request.file_id))
        found = self._xattrs_of(get_attr(self._db, request.ino))
        return Xattrs(found, self._following_xattrs(request, found) if request.following else {})

    def _following_xattrs(
        self, request: names.ListXattrs, own: dict[bytes, bytes]
    ) -> dict[int, dict[bytes, bytes]]:
        following: dict[int, dict[bytes, bytes]] = {}
        left = _LISTING_BYTES - _size(own)
        until = time.monotonic() + _XATTRS_S
        for row in self._rows_after(request)[1]:
            attr = to_attr(row[1:])
            found = self._xattrs_of(attr)
            left -= _size(found)
            if left < 0:
                break
            following[attr.ino] = found
            if time.monotonic() > until:
                break
        return following

    def _xattrs_of(self, attr: Attr) -> dict[bytes, bytes]:
        rows = self._db.execute("SELECT name, value FROM xattr WHERE ino = ?", (attr.ino,))
        found: dict[bytes, bytes] = dict(rows.fetchall())
        if attr.file_id:
            found.update(self._metadata(attr.file_id))
        return found

    def _metadata(self, file_id: str) -> dict[bytes, bytes]:
        text = self._objects.stored_metadata(file_id)
        return {USER + name: value for name, value in metadata.decode(text)}

    # --- objects ----------------------------------------------------------------------------

    def lookup_object(self, request: names.LookupObject) -> Attr:
        """See `names.LookupObject`."""
        file_id = request.file_id
        self._objects.locate(file_id)
        row = self._db.execute(
            f"SELECT {ATTR_COLUMNS} FROM inode WHERE file_id = ?", (file_id,)
        ).fetchone()
        if row is not None:
            attr = to_attr(row)
            if attr.nlink == 0:
                raise fail(errno.ENOENT)
            return attr
        if self.is_hidden(file_id):
            raise fail(errno.ENOENT)
        return self.unnamed_attr(file_id)

    def is_hidden(self, file_id: str) -> bool:
        """True for objects of ours that are no inode's: in flight, pending, garbage."""
        if file_id in self._objects.in_flight:
            return True
        for table in ("pending", "garbage"):
            query = f"SELECT 1 FROM {table} WHERE file_id = ?"
            if self._db.execute(query, (file_id,)).fetchone():
                return True
        return False

    def unnamed_attr(self, file_id: str) -> Attr:
        """Attributes of an object without inode, from its file. ENOENT."""
        info = self._objects.stat(file_id)
        return Attr(
            ino=0,
            mode=UNNAMED_MODE,
            nlink=1,
            uid=0,
            gid=0,
            rdev=0,
            size=info.st_size,
            atime_ns=info.st_atime_ns,
            mtime_ns=info.st_mtime_ns,
            ctime_ns=info.st_ctime_ns,
            version=0,
            file_id=file_id,
            in_place=self._objects.is_appender(file_id),
        )

    def paths(self, request: names.Paths) -> names.PathList:
        """See `names.Paths`; 1000 paths or 512 KiB at most."""
        self._objects.locate(request.file_id)
        row = self._db.execute(
            "SELECT ino FROM inode WHERE file_id = ?", (request.file_id,)
        ).fetchone()
        if row is None:
            raise fail(errno.ENOENT)
        links = self._db.execute(
            "SELECT parent, name FROM dirent WHERE ino = ? LIMIT ?", (row[0], PATHS_MAX)
        ).fetchall()
        if not links:
            raise fail(errno.ENOENT)
        paths: list[bytes] = []
        size = 0
        for parent, name in links:
            paths.append(self._path(parent, name))
            size += len(paths[-1])
            if size > _LISTING_BYTES:
                break
        return names.PathList(paths)

    def _path(self, parent: int, name: bytes) -> bytes:
        parts = [name]
        while parent != names.ROOT_INO and len(parts) < _DEPTH_MAX:
            row = self._db.execute(
                "SELECT parent, name FROM dirent WHERE ino = ?", (parent,)
            ).fetchone()
            if row is None:
                raise fail(errno.ENOENT)
            parent, name = row
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))

    def writable_object(self, file_id: str) -> bool:
        """True when WRITE_OBJECT may change the object: pending, or named and in place."""
        row = self._db.execute(
            "SELECT in_place FROM inode WHERE file_id = ?", (file_id,)
        ).fetchone()
        if row is not None:
            return bool(row[0])
        query = "SELECT 1 FROM pending WHERE file_id = ?"
        return self._db.execute(query, (file_id,)).fetchone() is not None

    def has_inode(self, file_id: str) -> bool:
        """True when the object is the content of an inode."""
        query = "SELECT 1 FROM inode WHERE file_id = ?"
        return self._db.execute(query, (file_id,)).fetchone() is not None

    def knows_object(self, file_id: str) -> bool:
        """True when the object is an inode's, pending or garbage."""
        return self.has_inode(file_id) or self.is_hidden(file_id)

    def ended_token(self, session: int) -> bytes | None:
        """The token of an ended session whose outcomes are still kept."""
        row = self._db.execute(
            "SELECT token FROM session WHERE session = ? AND ended = 1", (session,)
        ).fetchone()
        return None if row is None else row[0]

    def result(self, session: int, number: int) -> bytes | None:
        """The stored answer of a request that was carried out. Not for a `Reads` without state."""
        assert self._state is not None
        return self._state.results.find_committed(self._db, session, number)

    def find_attr(self, ino: int) -> Attr | None:
        """The committed attributes of an inode."""
        return find_attr(self._db, ino)


def warm(contents: Iterable[tuple[str, int]]) -> None:
    """Bring contents into the page cache, the first one at least, for up to about `_WARM_S`.

    For a thread: it waits for the disk.
    """
    end = time.monotonic() + _WARM_S
    for path, size in contents:
        with contextlib.suppress(OSError):
            read_content(path, size)
        if time.monotonic() > end:
            return


def read_content(path: str, size: int, flags: int = 0) -> bytes | None:
    """The first *size* bytes of a file; None when it has less.

    Raises:
        BlockingIOError: with RWF_NOWAIT in *flags*, they are not all in the page cache.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not flags:
            data = os.read(fd, size) if size else b""
            return data if len(data) == size else None
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], 0, flags)
        except BlockingIOError:
            raise
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            return read_content(path, size)
        if count < size:
            if os.fstat(fd).st_size >= size:
                raise BlockingIOError
            return None
        return bytes(buffer)
    finally:
        os.close(fd)
