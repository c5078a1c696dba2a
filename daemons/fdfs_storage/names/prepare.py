"""From a request to the operation that goes into the log.

What a request leaves open (names of new objects, the metadata that moves along, what a file says
of itself) is decided here, on the writing connection, right before the operation is applied: the
functions run inside the open batch and see the changes before them.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from typing import Any

from fdfs_storage.names import content, namespace
from fdfs_storage.names.checks import fail
from fdfs_storage.names.content import USER, metadata_name
from fdfs_storage.names.objects import Objects, extension_of
from fdfs_storage.names.state import State
from fdfsfuse.errors import NotFoundError
from fdfsfuse.proto import metadata, names, names_record
from fdfsfuse.proto.names import Attr
from fdfsfuse.proto.names_record import Op

CREATE = 1
REPLACE = 2
METADATA_MAX = 64 << 10
"""Longest metadata text that setting xattrs may lead to."""
_OLDEST_NAME = "SELECT name, min(cookie) FROM dirent WHERE ino = ?"
"""In SQLite the other columns are those of the row that has the minimum."""


class Preparer:
    """Makes operations. Used by the engine's task only, inside a batch."""

    def __init__(self, state: State, objects: Objects) -> None:
        self._state = state
        self._db = state.db
        self._objects = objects

    def file_and_extension(self, ino: int) -> tuple[Attr, str]:
        """A regular file, and the extension for a new object: that of its oldest name, or ''.

        Raises ESTALE, EISDIR, EINVAL.
        """
        attr = self.file(ino)
        name: bytes | None = self._db.execute(_OLDEST_NAME, (ino,)).fetchone()[0]
        return attr, "" if name is None else extension_of(name)

    def file(self, ino: int) -> Attr:
        """Attributes of a regular file. ESTALE, EISDIR, EINVAL."""
        attr = self._state.get_attr(ino)
        content.check_file(attr)
        return attr

    def metadata_of(self, attr: Attr) -> bytes:
        """The metadata text that the next object of the inode starts with."""
        if attr.file_id:
            return self._objects.metadata(attr.file_id)
        rows = self._db.execute("SELECT name, value FROM xattr WHERE ino = ?", (attr.ino,))
        return metadata.encode(metadata.merge([], _fitting(rows.fetchall())))

    # --- content ----------------------------------------------------------------------------

    def store_content(
        self,
        ino: int,
        data: bytes,
        mtime_ns: int,
        *,
        replaces: str | None = None,
        based_on: int = names.ANY_VERSION,
    ) -> Op:
        """*data* as a new object, or no object for no data. Keywords: see `name_pending`."""
        attr, extension = self.file_and_extension(ino)
        _check_base(attr, replaces, based_on)
        file_id = self._objects.draw(data, time.time_ns(), extension) if data else ""
        return names_record.PutContent(
            ino, file_id, len(data), mtime_ns, False, data or None, self.metadata_of(attr)
        )

    def make_file(self, request: names.CreateFile) -> names_record.MakeFile:
        """A file that a mount has made on its own."""
        data, xattrs = request.data, request.xattrs
        file_id, text = "", b""
        if data:
            file_id = self._objects.draw(data, time.time_ns(), extension_of(request.name))
            if xattrs:
                text = metadata.encode(_fitting(xattrs.items()))
                xattrs = {n: v for n, v in xattrs.items() if metadata_name(n, v) is None}
        return names_record.MakeFile(
            request.parent,
            request.name,
            request.ino,
            request.mode,
            request.uid,
            request.gid,
            request.atime_ns,
            request.mtime_ns,
            request.ctime_ns,
            request.parent_ns,
            data,
            file_id,
            text,
            xattrs,
        )

    def new_pending(self, ino: int) -> names_record.MakePending:
        """An empty appender for the file."""
        _, extension = self.file_and_extension(ino)
        return names_record.MakePending(self._objects.draw_appender(time.time_ns(), extension))

    def name_pending(
        self,
        session: int,
        ino: int,
        file_id: str,
        size: int,
        mtime_ns: int,
        *,
        replaces: str | None = None,
        based_on: int = names.ANY_VERSION,
        same: bool = False,
    ) -> Op:
        """The pending *file_id* of *session* becomes the content; ESTALE when it is not pending.

        With *replaces*, only in place of that object ('' for none): ESTALE when there is another.
        *based_on*: see `names.StoreContent`. *same*: see `names_record.PutContent`.
        """
        attr = self.file(ino)
        row = self._db.execute(
            "SELECT session FROM pending WHERE file_id = ?", (file_id,)
        ).fetchone()
        if row is None or row[0] != session:
            raise fail(errno.ESTALE)
        _check_base(attr, replaces, based_on)
        return names_record.PutContent(
            ino, file_id, size, mtime_ns, True, None, self.metadata_of(attr), same
        )

    def resize(self, ino: int, file_id: str, mtime_ns: int) -> Op:
        """The object of an inode has been changed in place. ENOENT when it is gone.

        The size is what the file has now, whatever the change was: other mounts may have written to
        it, or cut it off, since then.
        """
        return names_record.Resize(ino, file_id, self._objects.stat(file_id).st_size, mtime_ns)

    # --- objects that get a name --------------------------------------------------------------

    def adopt(self, request: names.Adopt) -> Op:
        """A name for an object of a plain client."""
        namespace.check_unnamed(self._db, request.file_id)
        info = self._objects.stat(request.file_id)
        return names_record.AdoptObject(
            request.file_id,
            request.parent,
            request.name,
            request.replace,
            request.uid,
            request.gid,
            request.now_ns,
            info.st_size,
            info.st_mtime_ns,
            self._objects.is_appender(request.file_id),
        )

    def object_changed(self, file_id: str) -> Op | None:
        """The size and time of an object that was changed in place; None when it is gone by now."""
        try:
            info = self._objects.stat(file_id)
        except NotFoundError:
            return None
        return names_record.ObjectChanged(file_id, info.st_size, info.st_mtime_ns)

    # --- xattrs -----------------------------------------------------------------------------

    def set_xattr(self, request: names.SetXattr) -> Op:
        """An xattr goes where it fits: the object's metadata, or the table."""
        name, value = request.name, request.value
        short = metadata_name(name, value)
        file_id, in_table = self._holder(request.ino, request.file_id)
        if request.ino == 0 and short is None:
            raise fail(errno.E2BIG)
        pairs = metadata.decode(self._objects.metadata(file_id)) if file_id else []
        if request.flags:
            exists = in_table(name) or any(USER + n == name for n, _ in pairs)
            if exists and request.flags == CREATE:
                raise fail(errno.EEXIST)
            if not exists and request.flags == REPLACE:
                raise fail(errno.ENODATA)
        if file_id and short is not None:
            text = metadata.encode(metadata.merge(pairs, [(short, value)]))
            if len(text) > METADATA_MAX:
                raise fail(errno.ENOSPC)
            return _put_xattr(request, None, file_id, text)
        return _put_xattr(request, value, file_id, _without(pairs, name))

    def remove_xattr(self, request: names.RemoveXattr) -> Op:
        """An xattr goes from wherever it is. ENODATA."""
        file_id, in_table = self._holder(request.ino, request.file_id)
        pairs = metadata.decode(self._objects.metadata(file_id)) if file_id else []
        text = _without(pairs, request.name)
        if text is None and not in_table(request.name):
            raise fail(errno.ENODATA)
        return _put_xattr(request, None, file_id, text)

    def _holder(self, ino: int, file_id: str) -> tuple[str, Callable[[bytes], bool]]:
        """The object of the inode (or the unnamed one), and a test for xattrs in the table."""
        if ino == 0:
            row = self._db.execute("SELECT ino FROM inode WHERE file_id = ?", (file_id,)).fetchone()
            if row is not None:
                # It got a name while the request was on its way.
                raise fail(errno.ESTALE)
            self._objects.stat(file_id)
            return file_id, lambda name: False
        row = self._db.execute("SELECT file_id FROM inode WHERE ino = ?", (ino,)).fetchone()
        if row is None:
            raise fail(errno.ESTALE)

        def in_table(name: bytes) -> bool:
            row = self._db.execute(
                "SELECT 1 FROM xattr WHERE ino = ? AND name = ?", (ino, name)
            ).fetchone()
            return row is not None

        return row[0] or "", in_table

    # --- by request -------------------------------------------------------------------------

    def operation(self, request: Any) -> Op | Callable[[], Op] | None:
        """The operation of a request, or what makes it; None for one that takes steps first.

        CloseSession, NewObject, NameObject, MakeWritable, CommitWrite and Truncate are not
        decided here.
        """
        if type(request) in _DIRECT:
            direct: Op = request
            return direct
        if isinstance(request, names.StoreContent):
            return lambda: self.store_content(
                request.ino, request.data, request.mtime_ns, based_on=request.based_on
            )
        if isinstance(request, names.CreateFile):
            return lambda: self.make_file(request)
        if isinstance(request, names.NewObject):
            return lambda: self.new_pending(request.ino)
        if isinstance(request, names.SetXattr):
            return lambda: self.set_xattr(request)
        if isinstance(request, names.RemoveXattr):
            return lambda: self.remove_xattr(request)
        if isinstance(request, names.Adopt):
            return lambda: self.adopt(request)
        return None


_DIRECT = frozenset(
    (
        names.Create,
        names.Remove,
        names.Rename,
        names.Link,
        names.SetAttr,
        names.ReserveInodes,
    )
)
"""Requests that are recorded as they are."""


def _check_base(attr: Attr, replaces: str | None, based_on: int) -> None:
    """Is the content still what a change of it is made for?"""
    if replaces is not None and attr.file_id != replaces:
        raise fail(errno.ESTALE)
    if based_on not in (names.ANY_VERSION, attr.version):
        raise fail(names.CONTENT_CHANGED)


def _fitting(xattrs: Iterable[tuple[bytes, bytes]]) -> metadata.Pairs:
    """Those of *xattrs* that metadata can hold, by their names there."""
    return [
        (name[len(USER) :], value)
        for name, value in xattrs
        if metadata_name(name, value) is not None
    ]


def _put_xattr(
    request: names.SetXattr | names.RemoveXattr,
    value: bytes | None,
    file_id: str,
    text: bytes | None,
) -> Op:
    return names_record.PutXattr(
        request.ino, request.name, value, file_id, text, request.now_ns, request.granted
    )


def _without(pairs: metadata.Pairs, name: bytes) -> bytes | None:
    """The text of *pairs* without the xattr *name*; None when it is not among them."""
    rest = [(n, v) for n, v in pairs if USER + n != name]
    return metadata.encode(rest) if len(rest) != len(pairs) else None
