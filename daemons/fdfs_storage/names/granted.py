"""Grants, and files that a mount has made on its own under one.

The changes are called by `State.apply`; see `namespace`. The inode numbers of such files were
reserved before, by a record, so that no number is used twice, whatever becomes of mount and
storage.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
from typing import TYPE_CHECKING, Any

from fdfs_storage.names import namespace
from fdfs_storage.names.checks import fail
from fdfsfuse.core import acl
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names_record import Change

if TYPE_CHECKING:
    from fdfs_storage.names.state import State


def reserve_inodes(
    state: State, index: int, change: Change, op: names.ReserveInodes
) -> names.Reserved:
    """Numbers for files to come."""
    first = state.next_ino
    state.next_ino = first + op.count
    state.db.execute("INSERT INTO inode_block VALUES (?, ?, ?)", (first, op.count, change.session))
    return names.Reserved(first, op.count)


def make_file(state: State, index: int, change: Change, op: names_record.MakeFile) -> names.Attr:
    """A file with attributes and content, under a new name."""
    ino = op.ino
    state.parents.check(op.parent)
    namespace.check_reserved(state, ino)
    mode, size = stat.S_IFREG | op.mode, len(op.data)
    times = (op.atime_ns, op.mtime_ns, op.ctime_ns)
    # A mount shows an empty file of version 0 until the storage has the file.
    namespace.add_inode(
        state,
        (op.parent, index, op.name, ino),
        (ino, mode, 1, op.uid, op.gid, 0, size, *times, 1, op.file_id or None, b""),
    )
    for name, value in op.xattrs.items():
        namespace.put_xattr(state.db, ino, name, value)
    state.parents.touch(op.parent, op.parent_ns)
    return names.Attr(ino, mode, 1, op.uid, op.gid, 0, size, *times, 1, op.file_id)


def check_grantable(db: sqlite3.Connection, ino: int) -> None:
    """May files be made there without asking? EAGAIN, and as `namespace.check_directory`."""
    namespace.check_directory(db, ino)
    if namespace.get_xattr(db, ino, acl.DEFAULT):
        raise fail(errno.EAGAIN)


def under_a_grant(op: Any) -> bool:
    """Whether a mount sent this of what it had done on its own, or answered already.

    Then nobody else can have had a grant where it changes something.
    """
    if isinstance(op, names.Create):
        return op.ino != 0
    if isinstance(op, names.Remove | names.Rename):
        return op.ino != names.ANY_INODE
    if isinstance(op, names.SetAttr | names_record.PutXattr):
        return op.granted
    return isinstance(op, names_record.MakeFile)


def changes_in(db: sqlite3.Connection, op: Any) -> tuple[int, ...]:
    """The directories that *op* changes: theirs are the grants that it has to wait for."""
    if isinstance(op, names.SetAttr | names_record.PutXattr):
        return (op.ino,)
    if isinstance(op, names.Remove):
        return (op.parent, *_target(db, op.parent, op.name)) if op.directory else (op.parent,)
    if isinstance(op, names.Rename):
        moved, replaced = _target(db, op.parent, op.name), _target(db, op.new_parent, op.new_name)
        return (op.parent, op.new_parent, *moved, *replaced)
    if isinstance(op, _IN_PARENT):
        return (op.parent,)
    return ()


def _target(db: sqlite3.Connection, parent: int, name: bytes) -> tuple[int, ...]:
    """What a name stands for: perhaps a directory, which must not look empty when it is to go."""
    entry = namespace.find_entry(db, parent, name)
    return () if entry is None else (entry[1],)


_IN_PARENT = (names.Create, names.Link, names_record.AdoptObject, names_record.MakeFile)
