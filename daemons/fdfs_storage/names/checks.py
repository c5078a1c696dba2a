"""What a request must be like before it is looked at any further.

Permissions are the business of the kernel that mounted the volume; the structure of the tree is
ours: whatever a client sends, no name, number or length that the state cannot hold gets past
these checks.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from fdfsfuse.core import acl
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
UINT32_MAX = (1 << 32) - 1
FILE_SIZE_MAX = INT64_MAX - (1 << 32)
"""Leaves room for offsets that are computed from sizes."""
NOREPLACE = 1
EXCHANGE = 2
XATTR_NAME_MAX = 255
RESERVED_XATTRS = b"user.fdfs."
FILE_TYPES = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
)
_RESERVED_MAX = 65_536
_HEX = frozenset(b"0123456789ABCDEFabcdef")
_NAMESPACES = (b"user.", b"trusted.", b"security.")


def fail(status: int, what: str = "") -> StatusError:
    """The exception that becomes the status of the answer."""
    return StatusError(status, what)


def name(value: bytes) -> None:
    """A name of a directory entry: 1..255 bytes, no slash, no NUL, not . or .."""
    if len(value) > names.NAME_MAX:
        raise fail(errno.ENAMETOOLONG)
    if not value or value in (b".", b"..") or b"/" in value or b"\0" in value:
        raise fail(errno.EINVAL, "name")


def is_reserved(parent: int, value: bytes) -> bool:
    """True for ``M00`` .. ``MFF`` in the root, where the objects are listed by file id."""
    return (
        parent == names.ROOT_INO
        and len(value) == 3
        and value[0] == 0x4D
        and value[1] in _HEX
        and value[2] in _HEX
    )


def _int64(*values: int | None) -> None:
    for value in values:
        if value is not None and not INT64_MIN <= value <= INT64_MAX:
            raise fail(errno.EINVAL, "number")


def _ids(*values: int | None) -> None:
    for value in values:
        if value is not None and not 0 <= value <= UINT32_MAX:
            raise fail(errno.EINVAL, "id")


def _ino(*values: int) -> None:
    for value in values:
        if not 0 <= value <= INT64_MAX:
            raise fail(errno.ESTALE)


def _file_id(value: str) -> None:
    if len(value) > 127 or not value.isascii():
        raise fail(errno.EINVAL, "file id")


def _limit(limit: int, cookie: int = 0) -> None:
    if not 1 <= limit <= INT64_MAX:
        raise fail(errno.EINVAL, "limit")
    if not 0 <= cookie <= INT64_MAX:
        raise fail(errno.EINVAL, "cookie")


def _lookup(request: names.Lookup) -> None:
    _ino(request.parent)
    name(request.name)


def _read_dir(request: names.ReadDir) -> None:
    _ino(request.ino)
    _limit(request.limit, request.cookie)


def _open(request: names.Open) -> None:
    _ino(request.ino)
    if request.max_data < 0:
        raise fail(errno.EINVAL, "max_data")
    _following(request.following)


def _following(count: int) -> None:
    if count < 0:
        raise fail(errno.EINVAL, "following")


def _list_xattrs(request: names.ListXattrs) -> None:
    _ino(request.ino)
    _file_id(request.file_id)
    _following(request.following)


def _list_objects(request: names.ListObjects) -> None:
    _file_id(request.path)
    _limit(request.limit)


def _holds(request: names.Holds) -> None:
    _ino(*request.added, *request.removed)


def _former_outcome(request: names.FormerOutcome) -> None:
    _int64(request.session)
    _int64(request.id)


def _create(request: names.Create) -> None:
    name(request.name)
    _ino(request.parent, request.ino)
    _ids(request.uid, request.gid)
    _int64(request.now_ns)
    mode = request.mode
    file_type = mode & 0o170000
    if not 0 <= mode <= 0o177777 or file_type not in FILE_TYPES:
        raise fail(errno.EINVAL, "mode")
    if not 0 <= request.rdev <= INT64_MAX:
        raise fail(errno.EINVAL, "rdev")
    if not 0 <= request.umask <= 0o777:
        raise fail(errno.EINVAL, "umask")
    if file_type == stat.S_IFLNK:
        if not request.target:
            raise fail(errno.ENOENT, "target")
        if len(request.target) > names.SYMLINK_MAX:
            raise fail(errno.ENAMETOOLONG)
        if b"\0" in request.target:
            raise fail(errno.EINVAL, "target")
    elif request.target:
        raise fail(errno.EINVAL, "target")
    if is_reserved(request.parent, request.name):
        raise fail(errno.EPERM)


def _create_file(request: names.CreateFile) -> None:
    name(request.name)
    _ino(request.parent, request.ino)
    _ids(request.uid, request.gid)
    _int64(request.atime_ns, request.mtime_ns, request.ctime_ns, request.parent_ns)
    if not 0 <= request.mode <= 0o7777:
        raise fail(errno.EINVAL, "mode")
    if len(request.data) > names.SMALL_CONTENT_MAX:
        raise fail(errno.EFBIG)
    if request.ino <= names.ROOT_INO:
        raise fail(errno.EINVAL, "inode number")
    if is_reserved(request.parent, request.name):
        raise fail(errno.EPERM)
    if request.xattrs:
        _xattrs(request.xattrs)


def _xattrs(xattrs: dict[bytes, bytes]) -> None:
    """Those of a new file."""
    for key in xattrs:
        xattr_name(key)
        if key in (acl.ACCESS, acl.DEFAULT):
            raise fail(errno.EINVAL, "an ACL")
    if names.size_of_xattrs(xattrs) > names.XATTRS_SMALL_MAX:
        raise fail(errno.E2BIG)


def _reserve_inodes(request: names.ReserveInodes) -> None:
    if not 1 <= request.count <= _RESERVED_MAX:
        raise fail(errno.EINVAL, "count")


def _expected(*inos: int) -> None:
    for ino in inos:
        if ino != names.ANY_INODE:
            _ino(ino)


def _remove(request: names.Remove) -> None:
    name(request.name)
    _ino(request.parent)
    _expected(request.ino)
    _int64(request.now_ns)


def _rename(request: names.Rename) -> None:
    name(request.name)
    name(request.new_name)
    _ino(request.parent, request.new_parent)
    _expected(request.ino, request.replaces)
    _int64(request.now_ns)
    if request.flags not in (0, NOREPLACE, EXCHANGE):
        raise fail(errno.EINVAL, "flags")
    if is_reserved(request.new_parent, request.new_name):
        raise fail(errno.EPERM)


def _link(request: names.Link) -> None:
    name(request.name)
    _ino(request.ino, request.parent)
    _int64(request.now_ns)
    if is_reserved(request.parent, request.name):
        raise fail(errno.EPERM)


def _adopt(request: names.Adopt) -> None:
    name(request.name)
    _file_id(request.file_id)
    _ino(request.parent)
    _ids(request.uid, request.gid)
    _int64(request.now_ns)
    if is_reserved(request.parent, request.name):
        raise fail(errno.EPERM)


def _set_attr(request: names.SetAttr) -> None:
    _ino(request.ino)
    _ids(request.uid, request.gid)
    _int64(request.now_ns, request.atime_ns, request.mtime_ns)
    if request.mode is not None and not 0 <= request.mode <= 0o177777:
        raise fail(errno.EINVAL, "mode")


def xattr_name(value: bytes) -> None:
    """The name of an xattr that may be set: with a namespace, 255 bytes at most, not ours."""
    if len(value) > XATTR_NAME_MAX:
        raise fail(errno.ERANGE)
    if b"\0" in value:
        raise fail(errno.EINVAL, "xattr name")
    named = any(value.startswith(space) and len(value) > len(space) for space in _NAMESPACES)
    if not named and value not in (acl.ACCESS, acl.DEFAULT):
        raise fail(errno.EOPNOTSUPP)
    if value.startswith(RESERVED_XATTRS):
        raise fail(errno.EPERM)


def _set_xattr(request: names.SetXattr) -> None:
    xattr_name(request.name)
    _ino(request.ino)
    _file_id(request.file_id)
    _int64(request.now_ns)
    if len(request.value) > names.XATTR_VALUE_MAX:
        raise fail(errno.E2BIG)
    if request.flags not in (0, 1, 2):
        raise fail(errno.EINVAL, "flags")
    if request.name in (acl.ACCESS, acl.DEFAULT):
        try:
            acl.decode(request.value)
        except ValueError as exc:
            raise fail(errno.EINVAL, str(exc)) from None


def _remove_xattr(request: names.RemoveXattr) -> None:
    xattr_name(request.name)
    _ino(request.ino)
    _file_id(request.file_id)
    _int64(request.now_ns)


def _size(size: int) -> None:
    if size < 0:
        raise fail(errno.EINVAL, "size")
    if size > FILE_SIZE_MAX:
        raise fail(errno.EFBIG)


def _store_content(request: names.StoreContent) -> None:
    _ino(request.ino)
    _int64(request.mtime_ns)
    if len(request.data) > names.SMALL_CONTENT_MAX:
        raise fail(errno.EFBIG)


def _name_object(request: names.NameObject | names.CommitWrite) -> None:
    _ino(request.ino)
    _file_id(request.file_id)
    _size(request.size)
    _int64(request.mtime_ns)


def _truncate(request: names.Truncate) -> None:
    _ino(request.ino)
    _size(request.size)
    _int64(request.mtime_ns)


CHECKS: dict[type, Callable[..., None]] = {
    names.Lookup: _lookup,
    names.GetAttr: lambda r: _ino(r.ino),
    names.ReadDir: _read_dir,
    names.Open: _open,
    names.ListXattrs: _list_xattrs,
    names.LookupObject: lambda r: _file_id(r.file_id),
    names.ListObjects: _list_objects,
    names.Paths: lambda r: _file_id(r.file_id),
    names.Holds: _holds,
    names.FormerOutcome: _former_outcome,
    names.Create: _create,
    names.Remove: _remove,
    names.Rename: _rename,
    names.Link: _link,
    names.Adopt: _adopt,
    names.SetAttr: _set_attr,
    names.SetXattr: _set_xattr,
    names.RemoveXattr: _remove_xattr,
    names.StoreContent: _store_content,
    names.NewObject: lambda r: _ino(r.ino),
    names.NameObject: _name_object,
    names.MakeWritable: lambda r: _ino(r.ino),
    names.CommitWrite: _name_object,
    names.Truncate: _truncate,
    names.Grant: lambda r: _ino(r.ino),
    names.ReserveInodes: _reserve_inodes,
    names.CreateFile: _create_file,
}
"""The check of each request type; it raises StatusError."""


def check(request: names.Request) -> None:
    """Raise StatusError when *request* is nothing that could be carried out."""
    checker = CHECKS.get(type(request))
    if checker is not None:
        checker(request)
