"""Records of the names log: what one change of a volume's tree looks like on disk.

Our addition to FastDFS (docs/names-protocol.rst). A record in a log file:

=== ==== ======= =================================================================
off size field   meaning
=== ==== ======= =================================================================
0   4    length  of the payload in bytes, unsigned big-endian, 1 .. PAYLOAD_MAX
4   4    crc32   CRC-32 (as in zlib) of the length field and of all that follows here
8   8    view    number of the view in which the record was made, unsigned
16  8    index   position in the log, unsigned; rises by 1 from record to record
24  ..   payload a MessagePack `Change`
=== ==== ======= =================================================================

The payload holds all that the change depends on besides the state (times, ids, file names that
were chosen), so that applying it gives the same state everywhere and every time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from isal import isal_zlib

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto import names
from fdfsfuse.proto.structs import BAD_BYTES

HEADER_SIZE = 24
PAYLOAD_MAX = names.FRAME_MAX + (256 << 10)
"""Longest payload: the largest content in a request, and the metadata of its object."""

_HEADER = struct.Struct(">IIQQ")
_CHECKED = struct.Struct(">IQQ")


class _Op(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of the operations that have no request struct of the same content."""


class AdoptObject(_Op, tag=64, frozen=True):
    """`names.Adopt` with what the object's file said: size, mtime, whether it is an appender."""

    file_id: str
    parent: int
    name: bytes
    replace: bool
    uid: int
    gid: int
    now_ns: int
    size: int
    mtime_ns: int
    in_place: bool


class PutXattr(_Op, tag=65, frozen=True):
    """An xattr of ``ino`` set (``value`` in the xattr table) or taken out of it (None).

    ``metadata`` is the whole metadata text that the object ``file_id`` has afterwards, None when
    it stays as it is. ``ino`` 0: an unnamed object. ``granted``: see `names.SetXattr`.
    """

    ino: int
    name: bytes
    value: bytes | None
    file_id: str
    metadata: bytes | None
    now_ns: int
    granted: bool = False


class PutContent(_Op, tag=66, frozen=True):
    """``file_id`` ('' for none) becomes the object of ``ino``; its old object becomes garbage.

    ``data`` is the content of an object that is made from this record, None when the object
    exists already (pending, or in_place and made empty here). ``metadata`` is the whole metadata
    text of the object; without an object its pairs become xattrs of the inode. ``same``: the
    content itself does not change (a copy that may be written to), so neither version nor ctime.
    """

    ino: int
    file_id: str
    size: int
    mtime_ns: int
    in_place: bool
    data: bytes | None
    metadata: bytes
    same: bool = False


class MakePending(_Op, tag=67, frozen=True):
    """An empty appender ``file_id`` for the session of the record; session 0: for the storage."""

    file_id: str


class Resize(_Op, tag=68, frozen=True):
    """The content of the object ``file_id`` of ``ino`` was changed in place."""

    ino: int
    file_id: str
    size: int
    mtime_ns: int


class StartSession(_Op, tag=69, frozen=True):
    """A new session; its number is the index of the record."""

    token: bytes
    client: str


class EndSession(_Op, tag=70, frozen=True):
    """``session`` has ended: its pending objects become garbage."""

    session: int


class ForgetSessions(_Op, tag=71, frozen=True):
    """Ended sessions whose results need not be kept any longer."""

    sessions: list[int]


class Collect(_Op, tag=72, frozen=True):
    """Rows of the garbage table (by id) whose objects are about to be deleted for good."""

    rows: list[int]


class Forget(_Op, tag=73, frozen=True):
    """Rows of the garbage table whose objects ``file_ids`` have been deleted."""

    rows: list[int]
    file_ids: list[str]


class ObjectDeleted(_Op, tag=74, frozen=True):
    """A plain client deleted the object of an inode: all its names go."""

    file_id: str


class ObjectChanged(_Op, tag=75, frozen=True):
    """A plain client changed the object of an inode: new size and time."""

    file_id: str
    size: int
    mtime_ns: int


class DropPending(_Op, tag=76, frozen=True):
    """A pending object of the storage itself turned out not to be needed: it becomes garbage."""

    file_id: str


class ObjectRenamed(_Op, tag=77, frozen=True):
    """A plain client made the appender ``old`` the normal file ``new``, with the same content."""

    old: str
    new: str


class MakeFile(_Op, tag=78, frozen=True):
    """`names.CreateFile` with the name that was drawn for its object ('' without ``data``).

    ``metadata`` is the object's, ``xattrs`` are those that it does not hold.
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
    file_id: str
    metadata: bytes = b""
    xattrs: dict[bytes, bytes] = msgspec.field(default_factory=dict)


Op = (
    names.Create
    | names.Remove
    | names.Rename
    | names.Link
    | names.SetAttr
    | AdoptObject
    | PutXattr
    | PutContent
    | MakePending
    | Resize
    | StartSession
    | EndSession
    | ForgetSessions
    | Collect
    | Forget
    | ObjectDeleted
    | ObjectChanged
    | DropPending
    | ObjectRenamed
    | MakeFile
    | names.ReserveInodes
)


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The payload of a record.

    ``session`` and ``id`` name the request (0, 0: the storage's own doing). Outcomes of requests
    of the session below ``done_below`` may be forgotten. ``time_ns``: the storage's clock, ns since
    the epoch.
    """

    session: int
    id: int
    done_below: int
    time_ns: int
    op: Op


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of the log: ``payload`` is an encoded `Change`."""

    view: int
    index: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """Where reading ended. ``offset``: end of the last good record. ``lost``: bytes behind it.

    ``problem`` says what is wrong there, '' at a clean end (then ``lost`` is 0).
    """

    offset: int
    lost: int
    problem: str


encode_change = msgspec.msgpack.Encoder().encode
_change_decoder: msgspec.msgpack.Decoder[Change] = msgspec.msgpack.Decoder(Change)


def decode_change(payload: bytes | memoryview) -> Change:
    """Decode a payload. Raises ProtocolError."""
    try:
        return _change_decoder.decode(payload)
    except BAD_BYTES as exc:
        raise ProtocolError(f"bad names record: {exc}") from exc


def pack_header(view: int, index: int, payload: bytes) -> bytes:
    """The 24 bytes that go before *payload*.

    Raises:
        UsageError: the payload is empty or longer than PAYLOAD_MAX.
    """
    length = len(payload)
    if not 1 <= length <= PAYLOAD_MAX:
        raise UsageError(f"a names record of {length} bytes cannot be written")
    crc = isal_zlib.crc32(payload, isal_zlib.crc32(_CHECKED.pack(length, view, index)))
    return _HEADER.pack(length, crc, view, index)


def pack(record: Record) -> bytes:
    """A whole record."""
    return pack_header(record.view, record.index, record.payload) + record.payload


class Reader:
    """Reads the records of one log file, given whole.

    Iterating ends at the first record that is not complete and right; then `tail` tells where
    that was and how many bytes lie behind it: 0 when they are all zero.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.tail = Tail(0, 0, "")

    def __iter__(self) -> Iterator[Record]:
        data, offset = self._data, 0
        expected: int | None = None
        while offset < len(data):
            problem, end = self._check(offset)
            if not problem:
                _, _, view, index = _HEADER.unpack_from(data, offset)
                if expected is not None and index != expected:
                    problem = f"record {index} where {expected} belongs"
            if problem:
                # Zeros are what the file was lengthened with, ahead of records to come.
                lost = len(data) - offset
                if data.count(0, offset) == lost:
                    lost, problem = 0, ""
                self.tail = Tail(offset, lost, problem)
                return
            expected = index + 1
            payload = data[offset + HEADER_SIZE : end]
            offset = end
            self.tail = Tail(offset, 0, "")
            yield Record(view, index, payload)

    def _check(self, offset: int) -> tuple[str, int]:
        """What is wrong with the record at *offset* ('' for nothing), and where it ends."""
        data = self._data
        if len(data) - offset < HEADER_SIZE:
            return "a record header is cut off", offset
        length, crc, view, index = _HEADER.unpack_from(data, offset)
        if not 1 <= length <= PAYLOAD_MAX:
            return f"a record length of {length} is not possible", offset
        end = offset + HEADER_SIZE + length
        if end > len(data):
            return "a record is cut off", offset
        checked = isal_zlib.crc32(_CHECKED.pack(length, view, index))
        with memoryview(data) as view_of_data:
            actual = isal_zlib.crc32(view_of_data[offset + HEADER_SIZE : end], checked)
        if actual != crc:
            return f"the checksum of record {index} is wrong", offset
        return "", end
