"""Messages by which a storage gives its changes to the others of its group.

Source: protocol/cluster.md section 5; big-endian. ``timestamp`` is that of the sender's binlog
record, in Unix seconds. Names are file names with ``Mxx/``. What comes before file content is
called *head*. ``decode`` raises ProtocolError, which a storage answers with status 22.

==== ================ ===================== =========================================
code command          request               response
==== ================ ===================== =========================================
9    REPORT_SERVER_ID storage id 16         empty
16   CREATE           FileHead, content     empty; 17 = it is there already
17   DELETE           DeleteFile            empty; 2 = there is none
18   UPDATE           FileHead, content     empty
19   LINK             TwoNames              empty
25   APPEND           RangeHead, content    empty; 17 = done already, 2 = bytes are missing
35   MODIFY           RangeHead, content    empty; 2 = bytes are missing
37   TRUNCATE         RangeHead [1]_        empty; 17 = it has another size
40   RENAME           TwoNames              empty (C servers: the request); 17, 2
150  HELLO            Hello                 HelloAnswer
==== ================ ===================== =========================================

.. [1] with the old and the new size instead of offset and length, and no content.

A 16 whose header has status `SKIP_CONTENT` ends after the name: the receiver only logs it.

A 16 or 18 whose header has status `SPARSE` leaves the holes of the file out, for which we send no
zeros: behind the head come extents in their order, each an offset i64, a length i64 and so many
bytes. All else is zero, up to the size in the head. Not for files that have a CRC-32 in their
name, nor to receivers of version 1 of HELLO.

HELLO is ours: a C server refuses it with 22. After it requests may be sent without waiting for
answers, which come in order. Its bodies are MessagePack arrays; new fields are appended with
defaults.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.header import (
    FILE_NAME_MAX,
    GROUP_NAME_SIZE,
    STORAGE_ID_SIZE,
    pack_text,
    unpack_group,
    unpack_text,
)


class SyncCommand(IntEnum):
    """Command codes that storages send to storages."""

    REPORT_SERVER_ID = 9
    CREATE = 16
    DELETE = 17
    UPDATE = 18
    LINK = 19
    APPEND = 25
    MODIFY = 35
    TRUNCATE = 37
    RENAME = 40
    HELLO = 150


SKIP_CONTENT = 17
"""Status byte of a 16 without content."""
SPARSE = 18
"""Status byte of a 16 or 18 without holes."""
FILE_HEAD_SIZE = 36
RANGE_HEAD_SIZE = 44
"""Bytes of a head before the name."""
EXTENT_HEAD_SIZE = 16
HELLO_MAX = 1024
VERSION = 2
"""2: it takes SPARSE."""

_FILE = struct.Struct(">qqi16s")
_RANGE = struct.Struct(">qqqi16s")
_DELETE = struct.Struct(">i16s")
_TWO_NAMES = struct.Struct(">qqi16s")
_EXTENT = struct.Struct(">qq")


def _name(raw: bytes) -> str:
    if not 0 < len(raw) <= FILE_NAME_MAX:
        raise ProtocolError(f"a file name has 1 to {FILE_NAME_MAX} bytes, not {len(raw)}")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"file name {raw!r} is not ASCII") from exc


def name_length(fixed: bytes, head_size: int) -> int:
    """Length of the name behind the first *head_size* bytes of a 16, 18, 25, 35 or 37.

    Raises:
        ProtocolError: *fixed* is shorter, or no name can be that long.
    """
    if len(fixed) != head_size:
        raise ProtocolError(f"a head of {len(fixed)} bytes, not {head_size}")
    length = int.from_bytes(fixed[:8], "big", signed=True)
    if not 0 < length <= FILE_NAME_MAX:
        raise ProtocolError(f"a file name has 1 to {FILE_NAME_MAX} bytes, not {length}")
    return length


@dataclass(frozen=True, slots=True)
class FileHead:
    """Head of 16 and 18: name length i64, file size i64, timestamp i32, group 16, name."""

    name: str
    size: int
    timestamp: int
    group: str

    def encode(self) -> bytes:
        """36 bytes and the name."""
        name = self.name.encode("ascii")
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _FILE.pack(len(name), self.size, self.timestamp, group) + name

    @classmethod
    def decode(cls, head: bytes, content_length: int) -> FileHead:
        """Decode a whole head; *content_length* bytes follow, 0 if that is not the content."""
        if len(head) <= FILE_HEAD_SIZE:
            raise ProtocolError(f"a head of {len(head)} bytes has no file name")
        length, size, timestamp, group = _FILE.unpack_from(head)
        if length != len(head) - FILE_HEAD_SIZE or size < 0 or content_length not in (0, size):
            raise ProtocolError(f"a file of {size} bytes comes with {content_length}")
        return cls(_name(head[FILE_HEAD_SIZE:]), size, timestamp, unpack_group(group))


_WHOLE = struct.Struct(">qBBqqi16s")


def pack_file_request(
    command: SyncCommand, name: str, size: int, timestamp: int, group_field: bytes
) -> bytes:
    """Header and `FileHead` of a 16 or 18, in one go: it is packed for every file of a group."""
    raw = name.encode("ascii")
    length = len(raw)
    return (
        _WHOLE.pack(
            FILE_HEAD_SIZE + length + size, command, 0, length, size, timestamp, group_field
        )
        + raw
    )


def pack_extent(offset: int, length: int) -> bytes:
    """What comes before the bytes of an extent."""
    return _EXTENT.pack(offset, length)


def unpack_extent(head: bytes, start: int, size: int, rest: int) -> tuple[int, int]:
    """(offset, length) of an extent.

    Args:
        start: where the one before ends.
        size: of the file.
        rest: bytes of the body behind *head*.

    Raises:
        ProtocolError: it begins before *start*, or ends behind the file or the body.
    """
    if len(head) != EXTENT_HEAD_SIZE:
        raise ProtocolError("the request ends inside of the head of an extent")
    offset, length = _EXTENT.unpack(head)
    if offset < start or not 0 < length <= min(rest, size - offset):
        raise ProtocolError(f"an extent of {length} bytes at {offset}, behind {start}")
    return offset, length


@dataclass(frozen=True, slots=True)
class RangeHead:
    """Head of 25, 35, 37: name length i64, two numbers i64, timestamp i32, group 16, name.

    The numbers are offset and length, or old and new size (37).
    """

    name: str
    first: int
    second: int
    timestamp: int
    group: str

    def encode(self) -> bytes:
        """44 bytes and the name."""
        name = self.name.encode("ascii")
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _RANGE.pack(len(name), self.first, self.second, self.timestamp, group) + name

    @classmethod
    def decode(cls, head: bytes) -> RangeHead:
        """Decode a whole head. Whether content follows is for the caller to check."""
        if len(head) <= RANGE_HEAD_SIZE:
            raise ProtocolError(f"a head of {len(head)} bytes has no file name")
        length, first, second, timestamp, group = _RANGE.unpack_from(head)
        if length != len(head) - RANGE_HEAD_SIZE or first < 0 or second < 0:
            raise ProtocolError(f"a change of {second} bytes at {first}")
        return cls(_name(head[RANGE_HEAD_SIZE:]), first, second, timestamp, unpack_group(group))


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """Body of 17: timestamp i32, group 16, name."""

    name: str
    timestamp: int
    group: str

    def encode(self) -> bytes:
        """20 bytes and the name."""
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _DELETE.pack(self.timestamp, group) + self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> DeleteFile:
        """Raises ProtocolError."""
        if len(body) <= _DELETE.size:
            raise ProtocolError(f"a body of {len(body)} bytes has no file name")
        timestamp, group = _DELETE.unpack_from(body)
        return cls(_name(body[_DELETE.size :]), timestamp, unpack_group(group))


@dataclass(frozen=True, slots=True)
class TwoNames:
    """Body of 19 and 40: two name lengths i64, timestamp i32, group 16, the two names.

    ``name`` is the link or the new name, ``other`` the target or the old name.
    """

    name: str
    other: str
    timestamp: int
    group: str

    def encode(self) -> bytes:
        """36 bytes and the names."""
        name, other = self.name.encode("ascii"), self.other.encode("ascii")
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _TWO_NAMES.pack(len(name), len(other), self.timestamp, group) + name + other

    @classmethod
    def decode(cls, body: bytes) -> TwoNames:
        """Raises ProtocolError."""
        if len(body) <= _TWO_NAMES.size:
            raise ProtocolError(f"a body of {len(body)} bytes has no file names")
        first, second, timestamp, group = _TWO_NAMES.unpack_from(body)
        if first <= 0 or second <= 0 or first + second != len(body) - _TWO_NAMES.size:
            raise ProtocolError(f"names of {first} and {second} bytes in {len(body)}")
        middle = _TWO_NAMES.size + first
        names = _name(body[_TWO_NAMES.size : middle]), _name(body[middle:])
        return cls(*names, timestamp, unpack_group(group))


def encode_server_id(storage_id: str) -> bytes:
    """Body of 9, 16 bytes."""
    return pack_text(storage_id, STORAGE_ID_SIZE)


def decode_server_id(body: bytes) -> str:
    """The id in a 9. Raises ProtocolError for other lengths and an empty id."""
    storage_id = unpack_text(body)
    if len(body) != STORAGE_ID_SIZE or not storage_id:
        raise ProtocolError(f"{body!r} is no storage id")
    return storage_id


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Body of 150: who sends its changes on this connection. It stands for a 9 as well."""

    version: int
    group: str
    storage_id: str


class HelloAnswer(msgspec.Struct, array_like=True, frozen=True):
    """Response of 150. ``boot_id`` names the time since the receiver's machine was started.

    When it has changed, the receiver may have lost the last of what it acknowledged.
    """

    version: int
    boot_id: str
