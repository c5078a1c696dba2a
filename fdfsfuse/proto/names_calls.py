"""Requests of the names protocol; see `fdfsfuse.proto.names`."""

from __future__ import annotations

import stat

import msgspec
from msgspec.structs import replace

from fdfsfuse.proto.names_answers import Attr, Message

ANY_VERSION = -1
"""``based_on`` of a change that takes nothing from the content that it replaces."""
ANY_INODE = -1
"""Whatever a name stands for is right."""


def unlinked(attr: Attr, now_ns: int) -> Attr:
    """The attributes of an inode after it has lost a name; a directory has no other."""
    nlink = 0 if stat.S_ISDIR(attr.mode) else attr.nlink - 1
    return replace(attr, nlink=nlink, ctime_ns=now_ns)


def size_of_xattrs(xattrs: dict[bytes, bytes]) -> int:
    """Bytes of names and values together."""
    return sum(len(name) + len(value) for name, value in xattrs.items())


# --- requests that read; they see committed state only ----------------------------------------


class Lookup(Message, tag=1, frozen=True):
    """-> Attr. ENOENT, ENOTDIR, ESTALE (no such parent)."""

    parent: int
    name: bytes


class GetAttr(Message, tag=2, frozen=True):
    """-> Attr. ESTALE when the inode is gone."""

    ino: int


class ReadDir(Message, tag=3, frozen=True):
    """-> Listing of up to ``limit`` entries behind ``cookie`` (0 starts), without . and ..

    Cookies rise in the order of the listing and are never reused in a directory, so a listing
    that goes on while entries come and go misses no entry that stayed.
    """

    ino: int
    cookie: int
    limit: int


class Open(Message, tag=4, frozen=True):
    """-> Opened: fresh attributes, and the whole content if it has at most ``max_data`` bytes.

    Not recorded: an inode that stays open for longer is told by Holds. ESTALE.

    ``following``: up to so many entries that follow one of the inode's names in its directory are
    told as well, in the order of the listing or ``by_name``, with their content if it has at most
    ``max_data`` bytes. The storage may tell of fewer, or not of their content, as it finds easy.
    """

    ino: int
    max_data: int
    following: int = 0
    by_name: bool = False


class ListXattrs(Message, tag=5, frozen=True):
    """-> Xattrs: all of them, the object's metadata as ``user.NAME``. ESTALE.

    For an unnamed object pass ino 0 and its ``file_id``: ENOENT when there is none.

    ``following``, ``by_name``: those of the entries that follow are told as well, as by `Open`.
    """

    ino: int
    file_id: str = ""
    following: int = 0
    by_name: bool = False


class StatFs(Message, tag=6, frozen=True):
    """-> Space of the volume: the sum of this storage's store paths."""


class LookupObject(Message, tag=7, frozen=True):
    """-> Attr of the inode that has the object, or of the unnamed object (ino 0). ENOENT.

    EINVAL when ``file_id`` is no valid file name. Garbage and pending objects are ENOENT.
    """

    file_id: str


class ListObjects(Message, tag=8, frozen=True):
    """-> ObjectListing of ``path``: '' (store paths), ``M00``, ``M00/0C`` or ``M00/0C/1F``.

    Only what holds an unnamed object, and only objects with a valid file name, sorted by name;
    entries behind ``after`` ('' starts), up to ``limit``.
    """

    path: str
    after: str
    limit: int


class Paths(Message, tag=9, frozen=True):
    """-> PathList: all paths of the inode that has the object ``file_id``. ENOENT when unnamed."""

    file_id: str


class KeepAlive(Message, tag=10, frozen=True):
    """-> Done. Any request extends the session's lease; this one does nothing else."""


class Holds(Message, tag=11, frozen=True):
    """-> Done. Inodes that this session now has open (``added``) or has closed (``removed``).

    A deleted inode lives on while a session holds it. Kept in memory only: a mount repeats all
    of its holds after it has taken up a session. Must be sent within a lease of the open().
    """

    added: list[int]
    removed: list[int]


class Recalled(Message, tag=12, frozen=True):
    """The session has dropped what ``Recall`` ``number`` named. Sent with id 0, not answered.

    ``kept`` are directories of the recall of which names other than those recalled may still be
    in use: they stay held.
    """

    number: int
    kept: list[int]


class FormerOutcome(Message, tag=13, frozen=True):
    """-> Outcome of the changing request ``id`` of the ended ``session``, opened with ``token``.

    Asked by a client whose session has ended before the answer came. A session that has not ended
    yet is ended by this: what is said not to be done will never be done. ENOENT: the session's
    outcomes were forgotten, so nobody knows. EPERM: another token. EINVAL: the asking session.
    """

    session: int
    token: bytes
    id: int


class Grant(Message, tag=14, frozen=True):
    """-> Done: this session may make files in directory ``ino`` on its own, until that is recalled.

    Such a file gets a number of `ReserveInodes` and is told to the storage by `CreateFile`, at the
    latest when the grant is recalled. EAGAIN: not now, because another session holds the directory,
    or because files inherit an ACL there. ENOENT, ENOTDIR, ESTALE.
    """

    ino: int


# --- requests that change; each becomes one log record ------------------------------------------


class Create(Message, tag=32, frozen=True):
    """-> Attr of a new inode under (parent, name): file, directory, symlink, fifo, device.

    ``mode`` has the type and the permissions; ``umask`` is taken off them unless the parent has a
    default ACL, which is inherited. A set-group-id parent hands on its group (and the bit, to
    directories). EEXIST, ENOENT or ESTALE (parent deleted), ENOTDIR,
    ENAMETOOLONG, EPERM (a reserved name ``M00`` .. ``MFF`` in the root).

    ``ino``: a reserved number for it, or 0; EINVAL as in `CreateFile`. A directory of such a number
    is granted to the session (`Grant`).
    """

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    now_ns: int
    rdev: int = 0
    target: bytes = b""
    umask: int = 0
    ino: int = 0

    def made_in(self, directory_mode: int, directory_gid: int, ino: int) -> Attr:
        """The new inode's attributes in a directory without a default ACL."""
        mode, gid = self.mode, self.gid
        is_directory = stat.S_ISDIR(mode)
        if directory_mode & stat.S_ISGID:
            gid = directory_gid
            if is_directory:
                mode |= stat.S_ISGID
        if not stat.S_ISLNK(mode):
            mode &= ~self.umask
        times = (self.now_ns, self.now_ns, self.now_ns)
        nlink, size = 2 if is_directory else 1, len(self.target)
        return Attr(ino, mode, nlink, self.uid, gid, self.rdev, size, *times, 0, "", self.target)


class Remove(Message, tag=33, frozen=True):
    """unlink, or rmdir when ``directory``. -> Attr as it is afterwards (nlink may be 0).

    ENOENT, EISDIR, ENOTDIR, ENOTEMPTY. ESTALE when the name stands for another inode than ``ino``.
    """

    parent: int
    name: bytes
    directory: bool
    now_ns: int
    ino: int = ANY_INODE


class Rename(Message, tag=34, frozen=True):
    """POSIX rename. -> Renamed. ``flags`` as renameat2: 1 NOREPLACE, 2 EXCHANGE.

    EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL (directory into itself), ENOENT, EPERM (reserved).
    Two names of one inode: nothing happens, as POSIX says. ESTALE when the name stands for another
    inode than ``ino``, or the new one for another than ``replaces`` (0: it must not be there).
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    now_ns: int
    ino: int = ANY_INODE
    replaces: int = ANY_INODE


class Link(Message, tag=35, frozen=True):
    """A further name for an inode. -> Attr. EEXIST, EPERM (directory), ESTALE, EMLINK (65,000)."""

    ino: int
    parent: int
    name: bytes
    now_ns: int


class Adopt(Message, tag=36, frozen=True):
    """Give the unnamed object ``file_id`` a name. -> Renamed. EEXIST unless ``replace``.

    ``mv`` (replace as rename does) and ``ln`` out of ``M00``. EBUSY when it has a name by now,
    ENOENT when it is gone, ESTALE when it is garbage. Mode 0644; mtime is the object's.
    """

    file_id: str
    parent: int
    name: bytes
    replace: bool
    uid: int
    gid: int
    now_ns: int


class SetAttr(Message, tag=37, frozen=True):
    """chmod, chown, utimens; None leaves a field as it is. -> Attr. ctime becomes now. ESTALE.

    An access ACL follows the mode. ``granted``: of a directory that the session has the grant of,
    or of what it has made there since.
    """

    ino: int
    now_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    granted: bool = False

    def applied_to(self, attr: Attr) -> Attr:
        """*attr* as it is afterwards."""
        mode = attr.mode
        if self.mode is not None:
            mode = stat.S_IFMT(mode) | stat.S_IMODE(self.mode)
        return replace(
            attr,
            mode=mode,
            uid=attr.uid if self.uid is None else self.uid,
            gid=attr.gid if self.gid is None else self.gid,
            atime_ns=attr.atime_ns if self.atime_ns is None else self.atime_ns,
            mtime_ns=attr.mtime_ns if self.mtime_ns is None else self.mtime_ns,
            ctime_ns=self.now_ns,
        )


class SetXattr(Message, tag=38, frozen=True):
    """-> Done. ``name`` with its namespace. What metadata can hold goes to the object's metadata.

    ``system.posix_acl_access`` and ``..._default`` are ACLs (`fdfsfuse.core.acl`; EINVAL for what
    is none); the mode follows an access ACL.

    ``flags`` as setxattr: 1 CREATE (EEXIST), 2 REPLACE (ENODATA). E2BIG: value over 64 KiB, or an
    unnamed object (ino 0, ``file_id``) and metadata cannot hold it. ERANGE: name over 255 bytes.
    ``granted`` as in SetAttr.
    """

    ino: int
    name: bytes
    value: bytes
    flags: int
    now_ns: int
    file_id: str = ""
    granted: bool = False

    def applied_to(self, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """*xattrs* as they are afterwards, unless the name is that of an ACL."""
        return {**xattrs, self.name: self.value}


class RemoveXattr(Message, tag=39, frozen=True):
    """-> Done. ENODATA when there is none of that name. ``granted`` as in SetAttr."""

    ino: int
    name: bytes
    now_ns: int
    file_id: str = ""
    granted: bool = False

    def applied_to(self, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """*xattrs* as they are afterwards."""
        return {name: value for name, value in xattrs.items() if name != self.name}


class StoreContent(Message, tag=40, frozen=True):
    """Make ``data`` (up to SMALL_CONTENT_MAX) the whole content. -> Attr.

    The storage stores it as a new object, whose extension is that of the file's name, and the
    old object becomes garbage, its metadata copied. Empty data leaves the inode with no object.
    CONTENT_CHANGED when the inode's version is not ``based_on``, unless that is ANY_VERSION.
    """

    ino: int
    data: bytes
    mtime_ns: int
    based_on: int = ANY_VERSION


class NewObject(Message, tag=41, frozen=True):
    """Make an empty appender that belongs to this session until it is named. -> ObjectMade."""

    ino: int


class NameObject(Message, tag=42, frozen=True):
    """Make the pending ``file_id`` the content of the inode. -> Attr. ESTALE: it was collected.

    The storage makes the object durable before it answers. ``size`` must be the object's size.
    ``based_on`` as in StoreContent.
    """

    ino: int
    file_id: str
    size: int
    mtime_ns: int
    based_on: int = ANY_VERSION


class MakeWritable(Message, tag=43, frozen=True):
    """Turn the inode's object into an appender that may be changed in place. -> Attr.

    The first caller causes a copy on the server; later ones get the same object.
    """

    ino: int


class CommitWrite(Message, tag=44, frozen=True):
    """Publish what WRITE_OBJECT and TRUNCATE_OBJECT changed: durable, new size, time, version.

    -> Attr. ``file_id`` is the object that was written to; ESTALE when the inode has another now.
    The published size is that of the object's file, not ``size``: others may have written behind
    it or truncated it meanwhile.
    """

    ino: int
    file_id: str
    size: int
    mtime_ns: int


class Truncate(Message, tag=45, frozen=True):
    """Set the size of a file, with zero bytes where it grows. -> Attr. EFBIG, EINVAL, EISDIR.

    The Attr may name another object than before, or none (size 0): WRITE_OBJECT to the old one
    is refused from then on.
    """

    ino: int
    size: int
    mtime_ns: int


class CloseSession(Message, tag=46, frozen=True):
    """End the session: its pending objects become garbage, its holds are dropped. -> Done."""


class ReserveInodes(Message, tag=47, frozen=True):
    """-> Reserved: ``count`` (1 .. 65,536) inode numbers for `CreateFile`, never used again."""

    count: int


class CreateFile(Message, tag=48, frozen=True):
    """A regular file with name, attributes and content as they are to be. -> Attr.

    What a mount has made under a `Grant` of ``parent``; without one it is a plain exclusive create.
    ``ino`` is a reserved number, ``mode`` the permissions with nothing to be taken off.
    ``parent_ns``: the times of the directory afterwards. ``data`` as in `StoreContent`. ``xattrs``:
    none of an ACL, and XATTRS_SMALL_MAX bytes of names and values together (E2BIG).
    EEXIST, ENOENT or ESTALE (parent deleted), ENOTDIR, ENAMETOOLONG, EPERM (a reserved name);
    EINVAL when the number was not reserved or is in use.
    """

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent_ns: int
    data: bytes
    xattrs: dict[bytes, bytes] = msgspec.field(default_factory=dict)
