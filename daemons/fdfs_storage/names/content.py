"""Changes of content, xattrs, sessions and garbage. Called by `State.apply`; see `namespace`."""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from fdfs_storage.names import namespace
from fdfs_storage.names.checks import fail
from fdfsfuse.core import acl
from fdfsfuse.proto import metadata, names_record
from fdfsfuse.proto.names import Attr, Done, ObjectMade
from fdfsfuse.proto.names_record import Change

if TYPE_CHECKING:
    import sqlite3

    from fdfs_storage.names.state import State

USER: Final = b"user."
XATTRS_MAX: Final = 512 << 10
"""Most bytes that the xattrs of an inode may have in the table, so that they fit one answer."""


class ById(NamedTuple):
    """What a change by a plain client came to: the inode (0: none), and the names it lost."""

    ino: int
    links: list[tuple[int, bytes]]


def metadata_name(name: bytes, value: bytes) -> bytes | None:
    """The name of an xattr in the object's metadata, None when metadata cannot hold it."""
    if name.startswith(USER) and metadata.fits(name[len(USER) :], value):
        return name[len(USER) :]
    return None


def put_xattr(state: State, index: int, change: Change, op: names_record.PutXattr) -> Done:
    """An xattr set or removed. ESTALE. ENOSPC: the inode has too many."""
    if op.ino == 0:
        return Done()
    db = state.db
    if op.value is not None:
        used = db.execute(
            "SELECT ifnull(sum(length(name) + length(value)), 0) FROM xattr"
            " WHERE ino = ? AND name != ?",
            (op.ino, op.name),
        ).fetchone()[0]
        if used + len(op.name) + len(op.value) > XATTRS_MAX:
            raise fail(errno.ENOSPC)
    touched = db.execute("UPDATE inode SET ctime_ns = ? WHERE ino = ?", (op.now_ns, op.ino))
    if not touched.rowcount:
        raise fail(errno.ESTALE)
    if op.value is None or (op.name == acl.ACCESS and _put_access(db, op.ino, op.value)):
        db.execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (op.ino, op.name))
    else:
        namespace.put_xattr(db, op.ino, op.name, op.value)
    return Done()


def _put_access(db: sqlite3.Connection, ino: int, value: bytes) -> bool:
    """Let the mode follow an access ACL; True when it says everything, so nothing need be kept."""
    entries = acl.decode(value)
    db.execute(
        "UPDATE inode SET mode = mode & ~511 | ? WHERE ino = ?", (acl.permissions(entries), ino)
    )
    return acl.is_minimal(entries)


def check_file(attr: Attr) -> None:
    """Only regular files have content. EISDIR, EINVAL."""
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL)


def put_content(state: State, index: int, change: Change, op: names_record.PutContent) -> Attr:
    """Another object, or none, for an inode."""
    db = state.db
    attr = state.get_attr(op.ino)
    check_file(attr)
    if op.file_id:
        if op.data is None:
            db.execute("DELETE FROM pending WHERE file_id = ?", (op.file_id,))
        if not attr.file_id:
            _drop_fitting(db, op.ino)
    else:
        for name, value in metadata.decode(op.metadata):
            db.execute(
                "INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (op.ino, USER + name, value)
            )
    ctime_ns, version = _ctime_ns(attr, op.mtime_ns), attr.version + 1
    if op.same:
        ctime_ns, version = attr.ctime_ns, attr.version
    file_id = op.file_id or None
    db.execute(
        "UPDATE inode SET size = ?, mtime_ns = ?, ctime_ns = ?, version = ?, file_id = ?,"
        " in_place = ? WHERE ino = ?",
        (op.size, op.mtime_ns, ctime_ns, version, file_id, int(op.in_place), op.ino),
    )
    if attr.file_id:
        state.add_garbage(op.ino, attr.file_id)
    return replace(
        attr,
        size=op.size,
        mtime_ns=op.mtime_ns,
        ctime_ns=ctime_ns,
        version=version,
        file_id=op.file_id,
        in_place=op.in_place,
    )


def _drop_fitting(db: sqlite3.Connection, ino: int) -> None:
    """Remove the xattrs that the metadata of the first object holds from now on."""
    rows = db.execute("SELECT name, value FROM xattr WHERE ino = ?", (ino,)).fetchall()
    for name, value in rows:
        if metadata_name(name, value) is not None:
            db.execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name))


def make_pending(
    state: State, index: int, change: Change, op: names_record.MakePending
) -> ObjectMade:
    """An object of a session that has no inode yet."""
    state.db.execute("INSERT INTO pending VALUES (?, ?)", (op.file_id, change.session))
    return ObjectMade(op.file_id, state.position.view)


def drop_pending(state: State, index: int, change: Change, op: names_record.DropPending) -> Done:
    """A pending object is not needed."""
    gone = state.db.execute("DELETE FROM pending WHERE file_id = ?", (op.file_id,)).rowcount
    if gone:
        state.add_garbage(0, op.file_id)
    return Done()


def resize(state: State, index: int, change: Change, op: names_record.Resize) -> Attr:
    """New size and time of content that was changed in place. ESTALE: another object by now."""
    attr = state.get_attr(op.ino)
    check_file(attr)
    if attr.file_id != op.file_id:
        raise fail(errno.ESTALE)
    state.db.execute(
        "UPDATE inode SET size = ?, mtime_ns = ?, ctime_ns = ?, version = version + 1"
        " WHERE ino = ?",
        (op.size, op.mtime_ns, _ctime_ns(attr, op.mtime_ns), op.ino),
    )
    return namespace.get_attr(state.db, op.ino)


def _ctime_ns(attr: Attr, mtime_ns: int) -> int:
    """The ctime after a change of content, as mounts show it before the content is stored.

    Storing it must not change what ``stat`` said to programs that compare it, as git does.
    """
    return max(attr.ctime_ns, mtime_ns)


def start_session(state: State, index: int, change: Change, op: names_record.StartSession) -> Done:
    """A session, numbered by its record."""
    state.db.execute("INSERT INTO session VALUES (?, ?, ?, 0)", (index, op.token, op.client))
    return Done()


def end_session(state: State, index: int, change: Change, op: names_record.EndSession) -> Done:
    """The end of a session (0: leftovers of the storage itself): its pending objects go."""
    db = state.db
    db.execute("UPDATE session SET ended = 1 WHERE session = ?", (op.session,))
    for (file_id,) in db.execute(
        "SELECT file_id FROM pending WHERE session = ? ORDER BY file_id", (op.session,)
    ).fetchall():
        state.add_garbage(0, file_id)
    db.execute("DELETE FROM pending WHERE session = ?", (op.session,))
    db.execute("DELETE FROM inode_block WHERE session = ?", (op.session,))
    return Done()


def forget_sessions(
    state: State, index: int, change: Change, op: names_record.ForgetSessions
) -> Done:
    """Results of ended sessions are not needed any more."""
    for session in op.sessions:
        ended = state.db.execute(
            "DELETE FROM session WHERE session = ? AND ended = 1", (session,)
        ).rowcount
        if ended:
            state.results.forget(session)
    return Done()


def collect(state: State, index: int, change: Change, op: names_record.Collect) -> Done:
    """Decide that garbage is deleted: from here on its objects cannot be named again."""
    db = state.db
    rows = db.execute(
        f"SELECT id, ino, file_id FROM garbage WHERE collected = 0 AND id {_among(op.rows)}",
        op.rows,
    ).fetchall()
    orphans = {ino: row_id for row_id, ino, file_id in rows if file_id is None}
    inos, among = list(orphans), _among(orphans)
    objects = db.execute(
        f"SELECT ino, file_id FROM inode WHERE file_id IS NOT NULL AND ino {among}", inos
    ).fetchall()
    state.inodes -= db.execute(f"DELETE FROM inode WHERE ino {among}", inos).rowcount
    db.execute(f"DELETE FROM xattr WHERE ino {among}", inos)
    collected = [(file_id, row_id) for row_id, _, file_id in rows if file_id is not None]
    collected += [(file_id, orphans.pop(ino)) for ino, file_id in objects]
    db.executemany("UPDATE garbage SET file_id = ?, collected = 1 WHERE id = ?", collected)
    empty = list(orphans.values())
    db.execute(f"DELETE FROM garbage WHERE id {_among(empty)}", empty)
    return Done()


def _among(values: Collection[int]) -> str:
    """A condition with a place for each of *values*: of a batch, so there are not too many."""
    return f"IN ({','.join('?' * len(values))})"


def forget(state: State, index: int, change: Change, op: names_record.Forget) -> Done:
    """The objects of these rows are deleted."""
    state.db.executemany(
        "DELETE FROM garbage WHERE id = ? AND collected = 1", [(row_id,) for row_id in op.rows]
    )
    return Done()


def object_deleted(
    state: State, index: int, change: Change, op: names_record.ObjectDeleted
) -> ById:
    """A plain client deleted an object of ours: the inode loses its names."""
    db, now = state.db, change.time_ns
    db.execute("DELETE FROM pending WHERE file_id = ?", (op.file_id,))
    db.execute("DELETE FROM garbage WHERE file_id = ?", (op.file_id,))
    row = db.execute("SELECT ino, nlink FROM inode WHERE file_id = ?", (op.file_id,)).fetchone()
    if row is None:
        return ById(0, [])
    ino, nlink = row
    links = db.execute("SELECT parent, name FROM dirent WHERE ino = ?", (ino,)).fetchall()
    for parent, _ in links:
        db.execute("UPDATE inode SET mtime_ns = ?, ctime_ns = ? WHERE ino = ?", (now, now, parent))
    db.execute("DELETE FROM dirent WHERE ino = ?", (ino,))
    db.execute(
        "UPDATE inode SET nlink = 0, size = 0, file_id = NULL, in_place = 0, ctime_ns = ?,"
        " version = version + 1 WHERE ino = ?",
        (now, ino),
    )
    if nlink:
        state.add_garbage(ino, None)
    return ById(ino, links)


def object_changed(
    state: State, index: int, change: Change, op: names_record.ObjectChanged
) -> ById:
    """A plain client changed the object of an inode."""
    row = state.db.execute("SELECT ino FROM inode WHERE file_id = ?", (op.file_id,)).fetchone()
    if row is None:
        return ById(0, [])
    state.db.execute(
        "UPDATE inode SET size = ?, mtime_ns = ?, ctime_ns = ?, version = version + 1"
        " WHERE ino = ?",
        (op.size, op.mtime_ns, change.time_ns, row[0]),
    )
    return ById(row[0], [])


def object_renamed(
    state: State, index: int, change: Change, op: names_record.ObjectRenamed
) -> ById:
    """A plain client made an appender of ours a normal file: the inode follows it.

    As pending or garbage it is not ours any more: a client has a use for it.
    """
    state.db.execute("DELETE FROM pending WHERE file_id = ?", (op.old,))
    state.db.execute("DELETE FROM garbage WHERE file_id = ?", (op.old,))
    row = state.db.execute("SELECT ino FROM inode WHERE file_id = ?", (op.old,)).fetchone()
    if row is None:
        return ById(0, [])
    state.db.execute(
        "UPDATE inode SET file_id = ?, in_place = 0, ctime_ns = ?, version = version + 1"
        " WHERE ino = ?",
        (op.new, change.time_ns, row[0]),
    )
    return ById(row[0], [])
