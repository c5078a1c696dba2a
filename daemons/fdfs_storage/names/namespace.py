"""Changes of names and attributes, as POSIX has them. Called by `State.apply`.

Each function first looks whether the change is allowed and only then writes, so that a refused
one leaves no trace in the open transaction.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from fdfs_storage.names.checks import EXCHANGE, NOREPLACE, fail
from fdfs_storage.names.schema import ATTR_COLUMNS
from fdfsfuse.core import acl
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names import Attr, Renamed
from fdfsfuse.proto.names_record import Change

if TYPE_CHECKING:
    from fdfs_storage.names.state import State

LINK_MAX: Final = 65_000
ADOPTED_MODE: Final = stat.S_IFREG | 0o644
_SELECT = f"SELECT {ATTR_COLUMNS} FROM inode WHERE ino = ?"
_NAMED = (
    f"SELECT {ATTR_COLUMNS}, cookie FROM dirent JOIN inode ON inode.ino = dirent.ino"
    " WHERE parent = ? AND name = ?"
)
_MAKER = (
    "SELECT mode, gid, nlink,"
    " (SELECT value FROM xattr WHERE xattr.ino = inode.ino AND name = ?) FROM inode WHERE ino = ?"
)


def to_attr(row: tuple[Any, ...]) -> Attr:
    """An Attr of a row of ATTR_COLUMNS."""
    values: tuple[Any, ...] = (*row[:13], row[13] == 1)
    return Attr(*values)


def find_attr(db: sqlite3.Connection, ino: int) -> Attr | None:
    """The inode's attributes, None when it does not exist."""
    row = db.execute(_SELECT, (ino,)).fetchone()
    return None if row is None else to_attr(row)


def get_attr(db: sqlite3.Connection, ino: int) -> Attr:
    """The inode's attributes. Raises ESTALE."""
    attr = find_attr(db, ino)
    if attr is None:
        raise fail(errno.ESTALE)
    return attr


def find_entry(db: sqlite3.Connection, parent: int, name: bytes) -> tuple[int, int] | None:
    """(cookie, inode) of a name."""
    row: tuple[int, int] | None = db.execute(
        "SELECT cookie, ino FROM dirent WHERE parent = ? AND name = ?", (parent, name)
    ).fetchone()
    return row


def check_directory(db: sqlite3.Connection, ino: int) -> tuple[int, int, bytes]:
    """(mode, gid, default ACL) of a directory that may get entries.

    Raises ESTALE, ENOTDIR, ENOENT (removed).
    """
    row = db.execute(_MAKER, (acl.DEFAULT, ino)).fetchone()
    if row is None:
        raise fail(errno.ESTALE)
    mode, gid, nlink, default = row
    if not stat.S_ISDIR(mode):
        raise fail(errno.ENOTDIR)
    if nlink == 0:
        raise fail(errno.ENOENT)
    return mode, gid, default or b""


def _find_named(state: State, parent: int, name: bytes) -> tuple[int, Attr] | None:
    """(cookie, attributes) of a name."""
    row = state.db.execute(_NAMED, (parent, name)).fetchone()
    if row is not None and state.parents.is_ahead(row[0]):
        state.parents.settle()
        row = state.db.execute(_NAMED, (parent, name)).fetchone()
    return None if row is None else (row[14], to_attr(row))


def _require_entry(state: State, parent: int, name: bytes) -> tuple[int, Attr]:
    """(cookie, attributes) of a name that must exist. ENOENT, ENOTDIR, ESTALE."""
    entry = _find_named(state, parent, name)
    if entry is None:
        check_directory(state.db, parent)
        raise fail(errno.ENOENT)
    return entry


def _touch_inode(db: sqlite3.Connection, attr: Attr, now_ns: int) -> Attr:
    db.execute("UPDATE inode SET ctime_ns = ? WHERE ino = ?", (now_ns, attr.ino))
    return replace(attr, ctime_ns=now_ns)


def _check_removable(db: sqlite3.Connection, attr: Attr, directory: bool) -> None:
    """May the name of *attr* go, given that a *directory* (or not) is to go or replaces it?"""
    if stat.S_ISDIR(attr.mode):
        if not directory:
            raise fail(errno.EISDIR)
        if db.execute("SELECT 1 FROM dirent WHERE parent = ? LIMIT 1", (attr.ino,)).fetchone():
            raise fail(errno.ENOTEMPTY)
    elif directory:
        raise fail(errno.ENOTDIR)


def drop_link(state: State, attr: Attr, now_ns: int) -> Attr:
    """Take one name off an inode; without one it becomes an orphan."""
    attr = names.unlinked(attr, now_ns)
    state.db.execute(
        "UPDATE inode SET nlink = ?, ctime_ns = ? WHERE ino = ?", (attr.nlink, now_ns, attr.ino)
    )
    if attr.nlink == 0:
        state.add_garbage(attr.ino, None)
    return attr


def get_xattr(db: sqlite3.Connection, ino: int, name: bytes) -> bytes:
    """An xattr in the table, empty when there is none."""
    row = db.execute("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name)).fetchone()
    return b"" if row is None else bytes(row[0])


def put_xattr(db: sqlite3.Connection, ino: int, name: bytes, value: bytes) -> None:
    """Set an xattr in the table."""
    db.execute("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (ino, name, value))


def create(state: State, index: int, change: Change, op: names.Create) -> Attr:
    """A new inode under a new name."""
    db = state.db
    parent_mode, parent_gid, default = state.parents.check(op.parent)
    is_directory = stat.S_ISDIR(op.mode)
    ino = op.ino or state.next_ino
    if op.ino:
        check_reserved(state, op.ino)
    attr = op.made_in(parent_mode, parent_gid, ino)
    access = b""
    if default and not stat.S_ISLNK(op.mode):
        entries, mode = acl.inherit(acl.decode(default), attr.mode | op.mode)
        access = b"" if acl.is_minimal(entries) else acl.encode(entries)
        attr = replace(attr, mode=mode)
    now = op.now_ns
    add_inode(
        state,
        (op.parent, index, op.name, ino),
        (
            ino,
            attr.mode,
            attr.nlink,
            op.uid,
            attr.gid,
            op.rdev,
            attr.size,
            now,
            now,
            now,
            0,
            None,
            op.target,
        ),
    )
    if not op.ino:
        state.next_ino = ino + 1
    if access:
        put_xattr(db, ino, acl.ACCESS, access)
    if default and is_directory:
        put_xattr(db, ino, acl.DEFAULT, default)
    state.parents.touch(op.parent, now, is_directory)
    return attr


def check_reserved(state: State, ino: int) -> None:
    """Raise EINVAL unless the number was reserved once."""
    if ino >= state.next_ino:
        raise fail(errno.EINVAL, "inode number")


def add_inode(
    state: State, entry: tuple[int, int, bytes, int], inode: tuple[int | bytes | str | None, ...]
) -> None:
    """A new inode under a new name. *entry*, *inode*: the rows, but without ``in_place``.

    Raises EEXIST, or EINVAL: the inode's number is in use.
    """
    db = state.db
    try:
        # The unique indexes find what exists already; a statement that fails has done nothing.
        db.execute("INSERT INTO dirent VALUES (?, ?, ?, ?)", entry)
    except sqlite3.IntegrityError:
        raise fail(errno.EEXIST) from None
    try:
        db.execute("INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", inode)
    except sqlite3.IntegrityError:
        db.execute("DELETE FROM dirent WHERE parent = ? AND cookie = ?", entry[:2])
        raise fail(errno.EINVAL, "inode number") from None
    state.inodes += 1


def _check_inode(found: int, wanted: int) -> None:
    if wanted not in (names.ANY_INODE, found):
        raise fail(errno.ESTALE, "another inode")


def remove(state: State, index: int, change: Change, op: names.Remove) -> Attr:
    """unlink and rmdir."""
    db = state.db
    cookie, attr = _require_entry(state, op.parent, op.name)
    _check_inode(attr.ino, op.ino)
    _check_removable(db, attr, op.directory)
    db.execute("DELETE FROM dirent WHERE parent = ? AND cookie = ?", (op.parent, cookie))
    state.parents.touch(op.parent, op.now_ns, -int(op.directory))
    return drop_link(state, attr, op.now_ns)


def link(state: State, index: int, change: Change, op: names.Link) -> Attr:
    """A further name."""
    db = state.db
    attr = get_attr(db, op.ino)
    if stat.S_ISDIR(attr.mode):
        raise fail(errno.EPERM)
    state.parents.check(op.parent)
    if attr.nlink == 0:
        raise fail(errno.ENOENT)
    if find_entry(db, op.parent, op.name):
        raise fail(errno.EEXIST)
    if attr.nlink >= LINK_MAX:
        raise fail(errno.EMLINK)
    db.execute("INSERT INTO dirent VALUES (?, ?, ?, ?)", (op.parent, index, op.name, op.ino))
    state.parents.touch(op.parent, op.now_ns)
    db.execute(
        "UPDATE inode SET nlink = nlink + 1, ctime_ns = ? WHERE ino = ?", (op.now_ns, op.ino)
    )
    return replace(attr, nlink=attr.nlink + 1, ctime_ns=op.now_ns)


def set_attr(state: State, index: int, change: Change, op: names.SetAttr) -> Attr:
    """chmod, chown, utimens."""
    db = state.db
    attr = op.applied_to(get_attr(db, op.ino))
    if op.mode is not None:
        access = get_xattr(db, op.ino, acl.ACCESS)
        if access:
            entries = acl.after_chmod(acl.decode(access), attr.mode)
            put_xattr(db, op.ino, acl.ACCESS, acl.encode(entries))
    db.execute(
        "UPDATE inode SET mode = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ?"
        " WHERE ino = ?",
        (attr.mode, attr.uid, attr.gid, attr.atime_ns, attr.mtime_ns, attr.ctime_ns, op.ino),
    )
    return attr


def _check_not_below(db: sqlite3.Connection, directory: int, ino: int) -> None:
    """EINVAL when the directory *ino* is *directory* or lies above it."""
    while directory != names.ROOT_INO:
        if directory == ino:
            raise fail(errno.EINVAL)
        row = db.execute("SELECT parent FROM dirent WHERE ino = ?", (directory,)).fetchone()
        if row is None:
            raise fail(errno.ENOENT)
        directory = row[0]


def rename(state: State, index: int, change: Change, op: names.Rename) -> Renamed:
    """renameat2 with no flag, NOREPLACE or EXCHANGE."""
    db = state.db
    cookie, source = _require_entry(state, op.parent, op.name)
    moves = op.parent != op.new_parent
    if moves:
        state.parents.check(op.new_parent)
    entry = _find_named(state, op.new_parent, op.new_name)
    _check_inode(source.ino, op.ino)
    _check_inode(entry[1].ino if entry is not None else 0, op.replaces)
    if entry is not None and op.flags == NOREPLACE:
        raise fail(errno.EEXIST)
    if entry is None and op.flags == EXCHANGE:
        raise fail(errno.ENOENT)
    if entry is not None and entry[1].ino == source.ino:
        return Renamed(source)
    source_is_directory = stat.S_ISDIR(source.mode)
    if source_is_directory and moves:
        _check_not_below(db, op.new_parent, source.ino)
    if entry is not None and op.flags == EXCHANGE:
        return _exchange(state, op, (cookie, source), entry)
    subdirs = int(source_is_directory)
    target: Attr | None = None
    if entry is not None:
        new_cookie, target = entry
        _check_removable(db, target, source_is_directory)
        db.execute("DELETE FROM dirent WHERE parent = ? AND cookie = ?", (op.parent, cookie))
        db.execute(
            "UPDATE dirent SET ino = ? WHERE parent = ? AND cookie = ?",
            (source.ino, op.new_parent, new_cookie),
        )
        target = drop_link(state, target, op.now_ns)
    else:
        db.execute(
            "UPDATE dirent SET parent = ?, cookie = ?, name = ? WHERE parent = ? AND cookie = ?",
            (op.new_parent, index, op.new_name, op.parent, cookie),
        )
    if moves:
        state.parents.touch(op.parent, op.now_ns, -subdirs)
        state.parents.touch(op.new_parent, op.now_ns, 0 if target is not None else subdirs)
    else:
        state.parents.touch(op.parent, op.now_ns, -subdirs if target is not None else 0)
    return Renamed(_touch_inode(db, source, op.now_ns), target)


def _exchange(
    state: State, op: names.Rename, source: tuple[int, Attr], target: tuple[int, Attr]
) -> Renamed:
    """Both names stay where they are and swap what they stand for."""
    db = state.db
    (source_cookie, moved), (target_cookie, other) = source, target
    delta = int(stat.S_ISDIR(other.mode)) - int(stat.S_ISDIR(moved.mode))
    if stat.S_ISDIR(other.mode) and op.parent != op.new_parent:
        _check_not_below(db, op.parent, other.ino)
    swap = "UPDATE dirent SET ino = ? WHERE parent = ? AND cookie = ?"
    db.execute(swap, (other.ino, op.parent, source_cookie))
    db.execute(swap, (moved.ino, op.new_parent, target_cookie))
    state.parents.touch(op.parent, op.now_ns, delta)
    state.parents.touch(op.new_parent, op.now_ns, -delta)
    return Renamed(_touch_inode(db, moved, op.now_ns), _touch_inode(db, other, op.now_ns))


def adopt(state: State, index: int, change: Change, op: names_record.AdoptObject) -> Renamed:
    """A name, and with it an inode, for an object that has none."""
    db = state.db
    check_unnamed(db, op.file_id)
    state.parents.check(op.parent)
    entry = find_entry(db, op.parent, op.name)
    replaced: Attr | None = None
    if entry is not None:
        if not op.replace:
            raise fail(errno.EEXIST)
        replaced = get_attr(db, entry[1])
        _check_removable(db, replaced, False)
    ino = state.new_ino()
    if entry is not None and replaced is not None:
        db.execute(
            "UPDATE dirent SET ino = ? WHERE parent = ? AND cookie = ?",
            (ino, op.parent, entry[0]),
        )
        replaced = drop_link(state, replaced, op.now_ns)
    else:
        db.execute("INSERT INTO dirent VALUES (?, ?, ?, ?)", (op.parent, index, op.name, ino))
    state.parents.touch(op.parent, op.now_ns)
    db.execute(
        "INSERT INTO inode VALUES (?, ?, 1, ?, ?, 0, ?, ?, ?, ?, 0, ?, x'', ?)",
        (
            ino,
            ADOPTED_MODE,
            op.uid,
            op.gid,
            op.size,
            op.mtime_ns,
            op.mtime_ns,
            op.now_ns,
            op.file_id,
            int(op.in_place),
        ),
    )
    return Renamed(get_attr(db, ino), replaced)


def check_unnamed(db: sqlite3.Connection, file_id: str) -> None:
    """EBUSY when the object has a name, ESTALE when it is garbage or pending."""
    row = db.execute("SELECT nlink FROM inode WHERE file_id = ?", (file_id,)).fetchone()
    if row is not None:
        raise fail(errno.EBUSY if row[0] else errno.ESTALE)
    for table in ("garbage", "pending"):
        if db.execute(f"SELECT 1 FROM {table} WHERE file_id = ?", (file_id,)).fetchone():
            raise fail(errno.ESTALE)
