"""The names protocol: how a mount works on a volume's directory tree.

Our addition to FastDFS (documentation: docs/names-protocol.rst).
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
mount REQUEST  130   0, 1    id u64, done_below u64 (big-endian), a request struct
mount REQUEST  130   0       id u64 = 0, done_below u64, `Recalled`; not answered
store ANSWER   131   errno   id u64, the answer struct (only when the status is 0; else empty)
store MADE     136   0       first id u64, last id u64, and so on: patient requests that succeeded
mount PADDING  135   0       4096 bytes that mean nothing
store PUSH     132   0       id u64 = 0, a push struct
===== ============== ======= ====================================================================

Answers come in any order. ``id`` counts up from 1 over the life of the session; (session, id) is
the operation id of a changing request: its outcome is stored with the change, so that sending
the same id again after a broken connection gives the stored answer. ``done_below`` tells the
server that all answers of smaller ids have arrived, and their outcomes may be forgotten.

Status 1 (PATIENT) of a request says that nobody waits for its answer, and that more of these are
likely to follow: the server may leave the connection alone for some milliseconds, or until as many
bytes as a PADDING has are there. So PADDING goes behind the next frame that is not patient. Those
that change and succeed get no ANSWER each, but are told together, in ranges of ids (MADE).

All structs are MessagePack arrays whose first element is the tag. New fields are appended with
defaults; a reader ignores what it does not know. Times are ns since the epoch (may be negative),
chosen by the mount. Names, symlink targets and xattrs are bytes; file ids here are file names
without the group (``M00/00/0C/...``), because a session belongs to one group.
"""

from __future__ import annotations

import errno
import struct
from typing import get_args

import msgspec

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.names_answers import (
    Attr,
    DirEntry,
    Done,
    FollowingEntry,
    InSync,
    Listing,
    Message,
    NotPrimaryAnyMore,
    ObjectEntry,
    ObjectListing,
    ObjectMade,
    Opened,
    OpenSession,
    Outcome,
    PathList,
    Recall,
    Renamed,
    Reserved,
    SessionOpened,
    Space,
    TruncateObject,
    View,
    WriteObject,
    Xattrs,
)
from fdfsfuse.proto.names_calls import (
    ANY_INODE,
    ANY_VERSION,
    Adopt,
    CloseSession,
    CommitWrite,
    Create,
    CreateFile,
    FormerOutcome,
    GetAttr,
    Grant,
    Holds,
    KeepAlive,
    Link,
    ListObjects,
    ListXattrs,
    Lookup,
    LookupObject,
    MakeWritable,
    NameObject,
    NewObject,
    Open,
    Paths,
    ReadDir,
    Recalled,
    Remove,
    RemoveXattr,
    Rename,
    ReserveInodes,
    SetAttr,
    SetXattr,
    StatFs,
    StoreContent,
    Truncate,
    size_of_xattrs,
    unlinked,
)
from fdfsfuse.proto.structs import BAD_BYTES

__all__ = [
    "ANY_INODE",
    "ANY_VERSION",
    "Adopt",
    "Attr",
    "CloseSession",
    "CommitWrite",
    "Create",
    "CreateFile",
    "DirEntry",
    "Done",
    "FollowingEntry",
    "FormerOutcome",
    "GetAttr",
    "Grant",
    "Holds",
    "InSync",
    "KeepAlive",
    "Link",
    "ListObjects",
    "ListXattrs",
    "Listing",
    "Lookup",
    "LookupObject",
    "MakeWritable",
    "NameObject",
    "NewObject",
    "NotPrimaryAnyMore",
    "ObjectEntry",
    "ObjectListing",
    "ObjectMade",
    "Open",
    "OpenSession",
    "Opened",
    "Outcome",
    "PathList",
    "Paths",
    "ReadDir",
    "Recall",
    "Recalled",
    "Remove",
    "RemoveXattr",
    "Rename",
    "Renamed",
    "ReserveInodes",
    "Reserved",
    "SessionOpened",
    "SetAttr",
    "SetXattr",
    "Space",
    "StatFs",
    "StoreContent",
    "Truncate",
    "TruncateObject",
    "View",
    "WriteObject",
    "Xattrs",
    "size_of_xattrs",
    "unlinked",
]

VERSION = 7
"""7: a storage tells of patient requests together (MADE), and heeds the xattrs in `CreateFile`. 6:
it takes PADDING, and tells who is in sync (`InSync`). 5: it heeds the inode numbers in `Create`,
`Remove` and `Rename`. 4: it heeds ``based_on``, and grants directories. 3: it answers
`FormerOutcome`. 2: sessions hold what they were told, and are recalled. 1: they never rely on
anything."""

QUERY_VIEW = 128
OPEN_SESSION = 129
REQUEST = 130
ANSWER = 131
PUSH = 132
WRITE_OBJECT = 133
TRUNCATE_OBJECT = 134
PADDING = 135
MADE = 136

PATIENT = 1
"""Status of a REQUEST that may be left for a moment."""
PADDING_SIZE = 4096

ROOT_INO = 1
NAME_MAX = 255
SYMLINK_MAX = 4095
TIME_MIN_NS = -(1 << 63)
TIME_MAX_NS = (1 << 63) - 1
"""Times are ns since 1970 in 64 bits: the years 1677 to 2262."""
XATTR_VALUE_MAX = 65536
XATTRS_SMALL_MAX = 8 << 10
"""Names and values of the xattrs that come along with a new file, in bytes. A storage has room for
them in any case."""
SMALL_CONTENT_MAX = 1 << 20
"""Content up to this many bytes travels inside StoreContent and is never changed in place."""
WRITE_PIECES_MAX = 64
"""Further pieces of one WriteObject."""
FRAME_MAX = SMALL_CONTENT_MAX + (64 << 10)
"""Longest frame body; a longer one costs the sender its connection."""
LIST_MAX = 1024
"""Most entries in one listing answer."""
FOLLOWING_MAX = 64
"""Most entries that are told along with an `Open`, or xattrs with a `ListXattrs`."""
FOLLOWING_DATA_MAX = 512 << 10
"""Most bytes of content of such entries in one answer."""

NOT_PRIMARY = errno.EREMOTEIO
"""Status: this storage does not keep the tree (now); ask for the view again."""
SESSION_ENDED = errno.ESHUTDOWN
"""Status: the session's lease ran out and it was ended; open a new one."""
CONTENT_CHANGED = errno.EAGAIN
"""Status: the content has another version than the change is based on; look at it again."""

FRAME_IDS = struct.Struct(">QQ")
ANSWER_ID = struct.Struct(">Q")
ID_RANGE = struct.Struct(">QQ")

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
    | Grant
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
    | ReserveInodes
    | CreateFile
)
Request = ReadRequest | ChangeRequest
Push = NotPrimaryAnyMore | Recall | InSync

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
    Grant: Done,
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
    ReserveInodes: Reserved,
    CreateFile: Attr,
}
"""The answer struct of each request."""

encode = msgspec.msgpack.Encoder().encode
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_push_decoder: msgspec.msgpack.Decoder[Push] = msgspec.msgpack.Decoder(Push)
_answer_decoders: dict[type, msgspec.msgpack.Decoder[Message]] = {
    request: msgspec.msgpack.Decoder(answer) for request, answer in ANSWERS.items()
}


def decode_request(data: bytes | memoryview) -> Request:
    """Decode the struct of a REQUEST frame. Raises ProtocolError on any other bytes."""
    try:
        return _request_decoder.decode(data)
    except BAD_BYTES as exc:
        raise ProtocolError(f"bad names request: {exc}") from exc


def decode_answer(request: type, data: bytes | memoryview) -> Message:
    """Decode the answer struct that belongs to a request of type *request*."""
    try:
        return _answer_decoders[request].decode(data)
    except BAD_BYTES as exc:
        raise ProtocolError(f"bad answer to {request.__name__}: {exc}") from exc


def decode_push(data: bytes | memoryview) -> Push:
    """Decode the struct of a PUSH frame."""
    try:
        return _push_decoder.decode(data)
    except BAD_BYTES as exc:
        raise ProtocolError(f"bad push: {exc}") from exc
