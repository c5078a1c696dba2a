"""The names protocol: how a mount works on a volume's directory tree.

Our addition to FastDFS (DESIGN: sections 5 and 8; user documentation: docs/names-protocol.rst).
All commands have codes from 128 up, which a stock server refuses with status 22.

Plain exchanges, one request and one response on any connection to a storage::

    QUERY_VIEW     128   body empty                      -> View
    OPEN_SESSION   129   body OpenSession                -> SessionOpened; then frames, see below
    WRITE_OBJECT   133   u32 head length, WriteObject, then the bytes of its pieces -> empty
    TRUNCATE_OBJECT 134  TruncateObject                  -> empty

A *session* starts with OPEN_SESSION. From then on its connection carries frames in both
directions: the usual 10-byte header and a body.

===== ============== ======= ====================================================================
from  command        status  body
===== ============== ======= ====================================================================
mount REQUEST  130   0       id u64, done_below u64 (big-endian), a request struct
mount REQUEST  130   0       id u64 = 0, done_below u64, `Recalled`; not answered
store ANSWER   131   errno   id u64, the answer struct (only when the status is 0; else empty)
store PUSH     132   0       id u64 = 0, a push struct
===== ============== ======= ====================================================================

Answers come in any order. ``id`` counts up from 1 over the life of the session; (session, id) is
the operation id of a changing request: its outcome is stored with the change, so that sending
the same id again after a broken connection gives the stored answer. ``done_below`` tells the
server that all answers of smaller ids have arrived, and their outcomes may be forgotten.

All structs are MessagePack arrays whose first element is the tag. New fields are appended with
defaults; a reader ignores what it does not know. Times are ns since the epoch (may be negative),
chosen by the mount. Names, symlink targets and xattrs are bytes; file ids here are file names
without the group (``M00/00/0C/...``), because a session belongs to one group.
"""

from __future__ import annotations

import errno
import struct
from typing import TypeVar, get_args

import msgspec

from fdfsfuse.errors import ProtocolError

VERSION = 4
"""4: a storage heeds ``based_on``. 3: it answers `FormerOutcome`. 2: sessions hold what they were
told, and are recalled. 1: they never rely on anything."""

QUERY_VIEW = 128
OPEN_SESSION = 129
REQUEST = 130
ANSWER = 131
PUSH = 132
WRITE_OBJECT = 133
TRUNCATE_OBJECT = 134

ROOT_INO = 1
NAME_MAX = 255
SYMLINK_MAX = 4095
XATTR_VALUE_MAX = 65536
SMALL_CONTENT_MAX = 1 << 20
"""Content up to this many bytes travels inside StoreContent and is never changed in place."""
WRITE_PIECES_MAX = 64
"""Further pieces of one WriteObject."""
FRAME_MAX = SMALL_CONTENT_MAX + (64 << 10)
"""Longest frame body; a longer one costs the sender its connection."""
LIST_MAX = 1024
"""Most entries in one listing answer."""

NOT_PRIMARY = errno.EREMOTEIO
"""Status: this storage does not keep the tree (now); ask for the view again."""
SESSION_ENDED = errno.ESHUTDOWN
"""Status: the session's lease ran out and it was ended; open a new one."""
CONTENT_CHANGED = errno.EAGAIN
"""Status: the content has another version than the change is based on; look at it again."""
ANY_VERSION = -1
"""``based_on`` of a change that takes nothing from the content that it replaces."""

FRAME_IDS = struct.Struct(">QQ")
ANSWER_ID = struct.Struct(">Q")


class _Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


class View(_Message, frozen=True):
    """Who keeps the group's tree: ``number`` counts up, ``primary`` and ``members`` are ids.

    ``volume_id`` is 32 hex digits drawn when the tree was founded. A storage that has no tree
    answers QUERY_VIEW with status 2.
    """

    number: int
    primary: str
    members: list[str]
    volume_id: str


class OpenSession(_Message, frozen=True):
    """Open a session, or take up ``session`` again after its connection broke.

    ``session`` 0 opens a new one. ``token`` (16 random bytes chosen by the mount) must be the same
    when a session is taken up. ``client`` describes the mount to people: ``host:/mnt:pid``.
    ``version`` 1: the client keeps nothing that it was told, so nothing is recalled from it.
    ``lease_s``: a shorter lease than the storage would grant; 0 for what it grants.
    """

    version: int
    session: int
    token: bytes
    client: str
    lease_s: float = 0.0


class SessionOpened(_Message, frozen=True):
    """The session, its lease in seconds and the view that the primary acts in."""

    version: int
    session: int
    lease_s: float
    view: View


class Attr(_Message, frozen=True):
    """One inode. ``ino`` 0 is an unnamed object, of which only size, times and file_id are known.

    ``mode`` includes the file type. ``file_id`` is '' while a file has no object (empty file,
    directory, ...). ``version`` counts the changes of content. ``target`` is a symlink's.
    ``in_place`` tells that the object is an appender that WRITE_OBJECT may change.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    file_id: str = ""
    target: bytes = b""
    in_place: bool = False


# --- requests that read; they see committed state only ----------------------------------------


class Lookup(_Message, tag=1, frozen=True):
    """-> Attr. ENOENT, ENOTDIR, ESTALE (no such parent)."""

    parent: int
    name: bytes


class GetAttr(_Message, tag=2, frozen=True):
    """-> Attr. ESTALE when the inode is gone."""

    ino: int


class ReadDir(_Message, tag=3, frozen=True):
    """-> Listing of up to ``limit`` entries behind ``cookie`` (0 starts), without . and ..

    Cookies rise in the order of the listing and are never reused in a directory, so a listing
    that goes on while entries come and go misses no entry that stayed.
    """

    ino: int
    cookie: int
    limit: int


class DirEntry(_Message, frozen=True):
    """A directory entry; listing goes on behind it with ``cookie``."""

    cookie: int
    name: bytes
    attr: Attr


class Listing(_Message, frozen=True):
    """Entries in cookie order; ``end`` tells that there are no more."""

    entries: list[DirEntry]
    end: bool


class Open(_Message, tag=4, frozen=True):
    """-> Opened: fresh attributes, and the whole content if it has at most ``max_data`` bytes.

    Not recorded: an inode that stays open for longer is told by Holds. ESTALE.
    """

    ino: int
    max_data: int


class Opened(_Message, frozen=True):
    """``data`` is None when the content is longer than asked for (or could not be read here)."""

    attr: Attr
    data: bytes | None = None


class ListXattrs(_Message, tag=5, frozen=True):
    """-> Xattrs: all of them, the object's metadata as ``user.NAME``. ESTALE.

    For an unnamed object pass ino 0 and its ``file_id``: ENOENT when there is none.
    """

    ino: int
    file_id: str = ""


class Xattrs(_Message, frozen=True):
    """Names with their namespace (``user.width``) and values."""

    xattrs: dict[bytes, bytes]


class StatFs(_Message, tag=6, frozen=True):
    """-> Space of the volume: the sum of this storage's store paths."""


class Space(_Message, frozen=True):
    """Bytes; ``available_bytes`` is what uploads may still use (reserved space taken off).

    ``files`` counts inodes.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int
    files: int


class LookupObject(_Message, tag=7, frozen=True):
    """-> Attr of the inode that has the object, or of the unnamed object (ino 0). ENOENT.

    EINVAL when ``file_id`` is no valid file name. Garbage and pending objects are ENOENT.
    """

    file_id: str


class ListObjects(_Message, tag=8, frozen=True):
    """-> ObjectListing of ``path``: '' (store paths), ``M00``, ``M00/0C`` or ``M00/0C/1F``.

    Only what holds an unnamed object, and only objects with a valid file name, sorted by name;
    entries behind ``after`` ('' starts), up to ``limit``.
    """

    path: str
    after: str
    limit: int


class ObjectEntry(_Message, frozen=True):
    """``name`` is the last part of the path; ``attr`` is None for directories."""

    name: str
    attr: Attr | None = None


class ObjectListing(_Message, frozen=True):
    """Entries sorted by name; ``end`` tells that there are no more."""

    entries: list[ObjectEntry]
    end: bool


class Paths(_Message, tag=9, frozen=True):
    """-> PathList: all paths of the inode that has the object ``file_id``. ENOENT when unnamed."""

    file_id: str


class PathList(_Message, frozen=True):
    """Absolute paths inside the volume, e.g. ``b"/photos/a.jpg"``."""

    paths: list[bytes]


class KeepAlive(_Message, tag=10, frozen=True):
    """-> Done. Any request extends the session's lease; this one does nothing else."""


class Holds(_Message, tag=11, frozen=True):
    """-> Done. Inodes that this session now has open (``added``) or has closed (``removed``).

    A deleted inode lives on while a session holds it. Kept in memory only: a mount repeats all
    of its holds after it has taken up a session. Must be sent within a lease of the open().
    """

    added: list[int]
    removed: list[int]


class Recalled(_Message, tag=12, frozen=True):
    """The session has dropped what ``Recall`` ``number`` named. Sent with id 0, not answered.

    ``kept`` are directories of the recall of which names other than those recalled may still be
    in use: they stay held.
    """

    number: int
    kept: list[int]


class FormerOutcome(_Message, tag=13, frozen=True):
    """-> Outcome of the changing request ``id`` of the ended ``session``, opened with ``token``.

    Asked by a client whose session has ended before the answer came. A session that has not ended
    yet is ended by this: what is said not to be done will never be done. ENOENT: the session's
    outcomes were forgotten, so nobody knows. EPERM: another token. EINVAL: the asking session.
    """

    session: int
    token: bytes
    id: int


class Outcome(_Message, frozen=True):
    """``answer``: the encoded answer struct of a change that was made; None when it was not."""

    answer: bytes | None


# --- requests that change; each becomes one log record ------------------------------------------


class Create(_Message, tag=32, frozen=True):
    """-> Attr of a new inode under (parent, name): file, directory, symlink, fifo, device.

    ``mode`` has the type and the permissions; ``umask`` is taken off them unless the parent has a
    default ACL, which is inherited. A set-group-id parent hands on its group (and the bit, to
    directories). EEXIST, ENOENT or ESTALE (parent deleted), ENOTDIR,
    ENAMETOOLONG, EPERM (a reserved name ``M00`` .. ``MFF`` in the root).
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


class Remove(_Message, tag=33, frozen=True):
    """unlink, or rmdir when ``directory``. -> Attr as it is afterwards (nlink may be 0).

    ENOENT, EISDIR, ENOTDIR, ENOTEMPTY.
    """

    parent: int
    name: bytes
    directory: bool
    now_ns: int


class Rename(_Message, tag=34, frozen=True):
    """POSIX rename. -> Renamed. ``flags`` as renameat2: 1 NOREPLACE, 2 EXCHANGE.

    EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL (directory into itself), ENOENT, EPERM (reserved).
    Two names of one inode: nothing happens, as POSIX says.
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    now_ns: int


class Renamed(_Message, frozen=True):
    """The inode that moved, and the one that lost ``new_name`` (or was exchanged), if any."""

    moved: Attr
    replaced: Attr | None = None


class Link(_Message, tag=35, frozen=True):
    """A further name for an inode. -> Attr. EEXIST, EPERM (directory), ESTALE, EMLINK (65,000)."""

    ino: int
    parent: int
    name: bytes
    now_ns: int


class Adopt(_Message, tag=36, frozen=True):
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


class SetAttr(_Message, tag=37, frozen=True):
    """chmod, chown, utimens; None leaves a field as it is. -> Attr. ctime becomes now. ESTALE.

    An access ACL follows the mode.
    """

    ino: int
    now_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(_Message, tag=38, frozen=True):
    """-> Done. ``name`` with its namespace. What metadata can hold goes to the object's metadata.

    ``system.posix_acl_access`` and ``..._default`` are ACLs (`fdfsfuse.core.acl`; EINVAL for what
    is none); the mode follows an access ACL.

    ``flags`` as setxattr: 1 CREATE (EEXIST), 2 REPLACE (ENODATA). E2BIG: value over 64 KiB, or an
    unnamed object (ino 0, ``file_id``) and metadata cannot hold it. ERANGE: name over 255 bytes.
    """

    ino: int
    name: bytes
    value: bytes
    flags: int
    now_ns: int
    file_id: str = ""


class RemoveXattr(_Message, tag=39, frozen=True):
    """-> Done. ENODATA when there is none of that name."""

    ino: int
    name: bytes
    now_ns: int
    file_id: str = ""


class StoreContent(_Message, tag=40, frozen=True):
    """Make ``data`` (up to SMALL_CONTENT_MAX) the whole content. -> Attr.

    The storage stores it as a new object, whose extension is that of the file's name, and the
    old object becomes garbage, its metadata copied. Empty data leaves the inode with no object.
    CONTENT_CHANGED when the inode's version is not ``based_on``, unless that is ANY_VERSION.
    """

    ino: int
    data: bytes
    mtime_ns: int
    based_on: int = ANY_VERSION


class NewObject(_Message, tag=41, frozen=True):
    """Make an empty appender that belongs to this session until it is named. -> ObjectMade."""

    ino: int


class ObjectMade(_Message, frozen=True):
    """The pending object. Its content goes to this storage by WRITE_OBJECT with the view."""

    file_id: str
    view: int


class NameObject(_Message, tag=42, frozen=True):
    """Make the pending ``file_id`` the content of the inode. -> Attr. ESTALE: it was collected.

    The storage makes the object durable before it answers. ``size`` must be the object's size.
    ``based_on`` as in StoreContent.
    """

    ino: int
    file_id: str
    size: int
    mtime_ns: int
    based_on: int = ANY_VERSION


class MakeWritable(_Message, tag=43, frozen=True):
    """Turn the inode's object into an appender that may be changed in place. -> Attr.

    The first caller causes a copy on the server; later ones get the same object.
    """

    ino: int


class CommitWrite(_Message, tag=44, frozen=True):
    """Publish what WRITE_OBJECT and TRUNCATE_OBJECT changed: durable, new size, time, version.

    -> Attr. ``file_id`` is the object that was written to; ESTALE when the inode has another now.
    The published size is that of the object's file, not ``size``: others may have written behind
    it or truncated it meanwhile.
    """

    ino: int
    file_id: str
    size: int
    mtime_ns: int


class Truncate(_Message, tag=45, frozen=True):
    """Set the size of a file, with zero bytes where it grows. -> Attr. EFBIG, EINVAL, EISDIR.

    The Attr may name another object than before, or none (size 0): WRITE_OBJECT to the old one
    is refused from then on.
    """

    ino: int
    size: int
    mtime_ns: int


class CloseSession(_Message, tag=46, frozen=True):
    """End the session: its pending objects become garbage, its holds are dropped. -> Done."""


class Done(_Message, frozen=True):
    """The answer that says nothing but success."""


# --- pushes ---------------------------------------------------------------------------------------


class NotPrimaryAnyMore(_Message, tag=1, frozen=True):
    """This storage gave up the tree; open requests will not be answered here."""


class Recall(_Message, tag=2, frozen=True):
    """Somebody else has changed something: drop it, then answer with ``Recalled`` ``number``.

    The change is acknowledged when all sessions that held it have answered, or cannot hold it any
    more. What is named here is not held from then on. A connection that was taken up gets its
    unanswered recalls first of all.

    ``attrs``: inodes whose attributes (or xattrs) changed. ``content``: those of them whose
    content changed. ``names``: (directory, name) of entries that came, went or point elsewhere; the
    directory is in ``attrs``. ``unused``: inodes that the storage would like to be rid of.
    ``everything``: the storage does not know what the session holds (it was restarted).
    """

    number: int
    attrs: list[int]
    content: list[int]
    names: list[tuple[int, bytes]]
    unused: list[int]
    everything: bool = False


# --- plain exchanges on data connections ----------------------------------------------------------


class WriteObject(_Message, frozen=True):
    """Head of WRITE_OBJECT: ``length`` bytes at ``offset`` of an appender, holes allowed.

    ``more`` are (offset, length) of further pieces, at most WRITE_PIECES_MAX: their bytes follow in
    this order. They are written one after the other; after a failure those before it may be there.
    Only a pending or a named, in-place object; ``view`` must be the storage's view. 2 no such
    object (any more), 22 not allowed, NOT_PRIMARY wrong view.
    """

    file_id: str
    view: int
    offset: int
    length: int
    more: list[tuple[int, int]] = []

    def pieces(self) -> list[tuple[int, int]]:
        """(offset, length) of all pieces."""
        return [(self.offset, self.length), *self.more]


class TruncateObject(_Message, frozen=True):
    """Set the size of an appender, as WriteObject may change it."""

    file_id: str
    view: int
    size: int


ReadRequest = (
    Lookup
    | GetAttr
    | ReadDir
    | Open
    | ListXattrs
    | StatFs
    | LookupObject
    | ListObjects
    | Paths
    | KeepAlive
    | Holds
    | Recalled
    | FormerOutcome
)
ChangeRequest = (
    Create
    | Remove
    | Rename
    | Link
    | Adopt
    | SetAttr
    | SetXattr
    | RemoveXattr
    | StoreContent
    | NewObject
    | NameObject
    | MakeWritable
    | CommitWrite
    | Truncate
    | CloseSession
)
Request = ReadRequest | ChangeRequest
Push = NotPrimaryAnyMore | Recall

CHANGES: tuple[type, ...] = get_args(ChangeRequest)

ANSWERS: dict[type, type] = {
    Lookup: Attr,
    GetAttr: Attr,
    ReadDir: Listing,
    Open: Opened,
    ListXattrs: Xattrs,
    StatFs: Space,
    LookupObject: Attr,
    ListObjects: ObjectListing,
    Paths: PathList,
    KeepAlive: Done,
    Holds: Done,
    FormerOutcome: Outcome,
    Create: Attr,
    Remove: Attr,
    Rename: Renamed,
    Link: Attr,
    Adopt: Renamed,
    SetAttr: Attr,
    SetXattr: Done,
    RemoveXattr: Done,
    StoreContent: Attr,
    NewObject: ObjectMade,
    NameObject: Attr,
    MakeWritable: Attr,
    CommitWrite: Attr,
    Truncate: Attr,
    CloseSession: Done,
}
"""The answer struct of each request."""

_T = TypeVar("_T")

# Fields that we do not know are skipped by msgspec recursively, so deep nesting ends there.
_BAD_BYTES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

encode = msgspec.msgpack.Encoder().encode
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_push_decoder: msgspec.msgpack.Decoder[Push] = msgspec.msgpack.Decoder(Push)
_answer_decoders: dict[type, msgspec.msgpack.Decoder[_Message]] = {
    request: msgspec.msgpack.Decoder(answer) for request, answer in ANSWERS.items()
}


def decode_request(data: bytes | memoryview) -> Request:
    """Decode the struct of a REQUEST frame. Raises ProtocolError on any other bytes."""
    try:
        return _request_decoder.decode(data)
    except _BAD_BYTES as exc:
        raise ProtocolError(f"bad names request: {exc}") from exc


def decode_answer(request: type, data: bytes | memoryview) -> _Message:
    """Decode the answer struct that belongs to a request of type *request*."""
    try:
        return _answer_decoders[request].decode(data)
    except _BAD_BYTES as exc:
        raise ProtocolError(f"bad answer to {request.__name__}: {exc}") from exc


def decode_push(data: bytes | memoryview) -> Push:
    """Decode the struct of a PUSH frame."""
    try:
        return _push_decoder.decode(data)
    except _BAD_BYTES as exc:
        raise ProtocolError(f"bad push: {exc}") from exc


def decode_struct(kind: type[_T], data: bytes | memoryview) -> _T:
    """Decode the body of a plain exchange (View, OpenSession, WriteObject, ...)."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except _BAD_BYTES as exc:
        raise ProtocolError(f"bad {kind.__name__}: {exc}") from exc
