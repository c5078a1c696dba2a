"""Messages between clients and storages; encode and decode of each sit together.

Source: protocol/wire.md section 4. ``decode`` checks what can be checked without a storage at
hand and raises ProtocolError, which a storage answers with status 22; the rest (group, store
path, existence) is the handlers' work. Requests that carry file content have a *head*: what
comes before the content, so that content never has to be in memory as a whole.

==== ================ ===================== ==========================================
code command          request               response
==== ================ ===================== ==========================================
11   UPLOAD           UploadHead, content   StoredFile
12   DELETE           FileRequest           empty
13   SET_METADATA     SetMetadata           empty
14   DOWNLOAD         Download              content
15   GET_METADATA     FileRequest           metadata text
20   CREATE_LINK      CreateLink [2]_       StoredFile
21   UPLOAD_SLAVE     SlaveHead, content    StoredFile
22   FILE_INFO        FileRequest [1]_      FileInfo
23   UPLOAD_APPENDER  UploadHead, content   StoredFile
24   APPEND           AppendHead, content   empty
34   MODIFY           ModifyHead, content   empty
36   TRUNCATE         Truncate              empty
38   REGENERATE       Regenerate [2]_       StoredFile
82   QUIT             anything              none, the server closes
111  ACTIVE_TEST      empty                 empty
==== ================ ===================== ==========================================

.. [1] with flags in the header's status byte: 1 = no crc of appenders and slaves, 2 = do not log
   a missing file.
.. [2] in `fdfsfuse.proto.derived`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.fileid import EXTENSION, NORMAL_NAME_LENGTH, PREFIX
from fdfsfuse.proto.header import (
    EXTENSION_SIZE,
    FILE_NAME_MAX,
    GROUP_NAME_SIZE,
    HEADER_SIZE,
    PREFIX_SIZE,
    RESPONSE,
    pack_header,
    pack_text,
    unpack_group,
    unpack_text,
)


class StorageCommand(IntEnum):
    """Command codes that clients send to storages."""

    UPLOAD = 11
    DELETE = 12
    SET_METADATA = 13
    DOWNLOAD = 14
    GET_METADATA = 15
    CREATE_LINK = 20
    UPLOAD_SLAVE = 21
    FILE_INFO = 22
    UPLOAD_APPENDER = 23
    APPEND = 24
    MODIFY = 34
    TRUNCATE = 36
    REGENERATE = 38
    QUIT = 82
    ACTIVE_TEST = 111


ANY_STORE_PATH = 255
"""Store path index of an upload that leaves the choice to the storage."""
NO_CRC = 1
QUIET_WHEN_MISSING = 2

IP_SIZES = (16, 46)
UPLOAD_HEAD_SIZE = 15
SLAVE_HEAD_SIZE = 38
APPEND_HEAD_SIZE = 16
MODIFY_HEAD_SIZE = 24
DOWNLOAD_HEAD_SIZE = 32
"""Bytes of the fixed part of a head; the name, if any, follows."""
RANGE_SIZE = 16
"""Bytes of offset and length of a `Download`, which the group follows."""

OVERWRITE = b"O"
MERGE = b"M"

_UPLOAD = struct.Struct(">Bq6s")
_unpack_upload = _UPLOAD.unpack_from
_SLAVE = struct.Struct(">qq16s6s")
_SET_METADATA = struct.Struct(">qqc16s")
_RANGE = struct.Struct(">qq")
_APPEND = struct.Struct(">qq")
_MODIFY = struct.Struct(">qqq")
_INFO = struct.Struct(">qq4xI")
_CRC32_POSITIVE_MAX = 0x7FFFFFFF
_new = tuple.__new__
"""Makes a named tuple for half of what calling its class costs: requests are decoded into them."""


def decode_file_name(raw: bytes) -> str:
    """A file name field of any length as text. Raises ProtocolError unless it is 1..127 ASCII."""
    if not 0 < len(raw) <= FILE_NAME_MAX:
        raise ProtocolError(f"a file name has 1 to {FILE_NAME_MAX} bytes, not {len(raw)}")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"file name {raw!r} is not ASCII") from exc


@functools.lru_cache(maxsize=256)
def decode_extension(field: bytes) -> str:
    """The text of an extension field. Raises ProtocolError when it has a character of no name.

    A server sees few different ones: the text comes from a cache.
    """
    text = unpack_text(field)
    if not EXTENSION.match(text):
        raise ProtocolError(f"bad extension {text!r}")
    return text


class FileRequest(NamedTuple):
    """Body of 12, 15 and 22: group 16, then the file name.

    Trailing NULs behind the name are tolerated, as the reference does for 14 and 22.
    """

    group: str
    name: str

    def encode(self) -> bytes:
        """The body."""
        return pack_text(self.group, GROUP_NAME_SIZE) + self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> FileRequest:
        """Raises ProtocolError."""
        if len(body) <= GROUP_NAME_SIZE:
            raise ProtocolError(f"body of {len(body)} bytes has no file name")
        name = decode_file_name(body[GROUP_NAME_SIZE:].rstrip(b"\0"))
        return _new(cls, (unpack_group(body[:GROUP_NAME_SIZE]), name))


class StoredFile(NamedTuple):
    """Response to uploads: group 16, then the new file name."""

    group: str
    name: str

    def encode(self) -> bytes:
        """The body."""
        return pack_text(self.group, GROUP_NAME_SIZE) + self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> StoredFile:
        """Raises ProtocolError."""
        return _new(cls, FileRequest.decode(body))


class UploadHead(NamedTuple):
    """Head of 11 and 23, 15 bytes: store path index 1 (255: any), size 8, extension 6.

    ``size`` bytes of content follow.
    """

    path_index: int
    size: int
    extension: str

    def encode(self) -> bytes:
        """The 15 bytes."""
        return _UPLOAD.pack(self.path_index, self.size, pack_text(self.extension, EXTENSION_SIZE))

    @classmethod
    def decode(cls, head: bytes, body_length: int) -> UploadHead:
        """Decode the begin, 15 bytes or more, of a body of *body_length*. Raises ProtocolError."""
        if not UPLOAD_HEAD_SIZE <= len(head) <= body_length:
            raise ProtocolError(f"an upload of {body_length} bytes is too short")
        index, size, extension = _unpack_upload(head)
        if size != body_length - UPLOAD_HEAD_SIZE:
            raise ProtocolError(f"size {size} in an upload of {body_length} bytes")
        return _new(cls, (index, size, decode_extension(extension)))


@dataclass(frozen=True, slots=True)
class SlaveHead:
    """Head of 21: name length 8, size 8, prefix 16, extension 6, master name.

    ``size`` bytes of content follow.
    """

    master: str
    size: int
    prefix: str
    extension: str

    def encode(self) -> bytes:
        """38 bytes and the name."""
        name = self.master.encode("ascii")
        prefix = pack_text(self.prefix, PREFIX_SIZE)
        extension = pack_text(self.extension, EXTENSION_SIZE)
        return _SLAVE.pack(len(name), self.size, prefix, extension) + name

    @classmethod
    def name_length(cls, fixed: bytes, body_length: int) -> int:
        """Length of the name behind the first 38 bytes. Raises ProtocolError."""
        if len(fixed) != SLAVE_HEAD_SIZE or body_length <= SLAVE_HEAD_SIZE:
            raise ProtocolError(f"a slave upload of {body_length} bytes is too short")
        length, size, _, _ = _SLAVE.unpack(fixed)
        if not 10 < length <= FILE_NAME_MAX:
            raise ProtocolError(f"master name of {length} bytes")
        if size < 0 or size != body_length - SLAVE_HEAD_SIZE - length:
            raise ProtocolError(f"size {size} in a slave upload of {body_length} bytes")
        return int(length)

    @classmethod
    def decode(cls, head: bytes, body_length: int) -> SlaveHead:
        """Decode 38 bytes and the name behind them. Raises ProtocolError."""
        fixed = head[:SLAVE_HEAD_SIZE]
        length = cls.name_length(fixed, body_length)
        if len(head) != SLAVE_HEAD_SIZE + length:
            raise ProtocolError("a slave upload is cut off in the master name")
        _, size, prefix_field, extension = _SLAVE.unpack(fixed)
        prefix = unpack_text(prefix_field)
        if not PREFIX.match(prefix):
            raise ProtocolError(f"bad prefix {prefix!r}")
        return cls(
            decode_file_name(head[SLAVE_HEAD_SIZE:]), size, prefix, decode_extension(extension)
        )


class SetMetadata(NamedTuple):
    """Body of 13: name length 8, text length 8, flag 1, group 16, name, metadata text.

    ``merge`` False replaces the metadata, True adds to it (see `fdfsfuse.proto.metadata`).
    """

    group: str
    name: str
    text: bytes
    merge: bool = False

    def encode(self) -> bytes:
        """The body."""
        name = self.name.encode("ascii")
        flag = MERGE if self.merge else OVERWRITE
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _SET_METADATA.pack(len(name), len(self.text), flag, group) + name + self.text

    @classmethod
    def decode(cls, body: bytes) -> SetMetadata:
        """Raises ProtocolError."""
        fixed = _SET_METADATA.size
        if len(body) <= fixed:
            raise ProtocolError(f"metadata request of {len(body)} bytes is too short")
        name_length, text_length, flag, group = _SET_METADATA.unpack_from(body)
        if not 0 < name_length <= FILE_NAME_MAX:
            raise ProtocolError(f"file name of {name_length} bytes")
        if flag not in (OVERWRITE, MERGE):
            raise ProtocolError(f"metadata flag {flag!r}")
        if text_length < 0 or text_length != len(body) - fixed - name_length:
            raise ProtocolError(f"metadata length {text_length} in a body of {len(body)} bytes")
        end = fixed + name_length
        return cls(
            unpack_group(group), decode_file_name(body[fixed:end]), body[end:], flag == MERGE
        )


class Download(NamedTuple):
    """Body of 14: offset 8, length 8 (0: to the end), group 16, name.

    A length beyond the end is cut. An offset at or beyond the end is refused, so an empty file
    cannot be downloaded.
    """

    group: str
    name: str
    offset: int = 0
    length: int = 0

    def encode(self) -> bytes:
        """The body."""
        group = pack_text(self.group, GROUP_NAME_SIZE)
        return _RANGE.pack(self.offset, self.length) + group + self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> Download:
        """Raises ProtocolError. Trailing NULs behind the name are tolerated."""
        offset, length = decode_range(body)
        group = unpack_group(body[RANGE_SIZE:DOWNLOAD_HEAD_SIZE])
        name = decode_file_name(body[DOWNLOAD_HEAD_SIZE:].rstrip(b"\0"))
        return _new(cls, (group, name, offset, length))


def decode_range(body: bytes) -> tuple[int, int]:
    """Offset and length of a `Download`; nothing else of it is checked. Raises ProtocolError."""
    if len(body) <= DOWNLOAD_HEAD_SIZE:
        raise ProtocolError(f"download request of {len(body)} bytes is too short")
    offset, length = _RANGE.unpack_from(body)
    if offset < 0 or length < 0:
        raise ProtocolError(f"download of {length} bytes at {offset}")
    return offset, length


class FileInfo(NamedTuple):
    """Response to 22: size 8, mtime 8 (Unix seconds), crc32 8 (sign-extended), source ip 16/46.

    ``crc32`` is 0 for appenders and slaves if it was not asked for. ``source_ip`` is empty when
    the storage does not know it.
    """

    size: int
    mtime: int
    crc32: int
    source_ip: str

    def encode(self, ip_size: int) -> bytes:
        """The body, with an ip field of *ip_size* bytes (16 or 46)."""
        ip_field = pack_text(self.source_ip, ip_size)
        pack = file_info_packer(ip_size)
        return pack(self.size, self.mtime, self.crc32, ip_field)[HEADER_SIZE:]

    @classmethod
    def decode(cls, body: bytes) -> FileInfo:
        """Raises ProtocolError. Both ip sizes are known by the body's length."""
        if len(body) - _INFO.size not in IP_SIZES:
            raise ProtocolError(f"file info of {len(body)} bytes")
        size, mtime, crc = _INFO.unpack_from(body)
        if size < 0:
            raise ProtocolError(f"file size {size}")
        return cls(size, mtime, crc, unpack_text(body[_INFO.size :]))


def file_info_packer(ip_size: int) -> Callable[[int, int, int, bytes], bytes]:
    """Makes whole responses with a `FileInfo` of size, mtime, crc32 and a packed ip field."""
    pack = struct.Struct(f">{HEADER_SIZE}sqqiI{ip_size}s").pack
    header = pack_header(_INFO.size + ip_size, RESPONSE)

    def pack_file_info(size: int, mtime: int, crc32: int, ip_field: bytes) -> bytes:
        sign = -1 if crc32 > _CRC32_POSITIVE_MAX else 0
        return pack(header, size, mtime, sign, crc32, ip_field)

    return pack_file_info


@dataclass(frozen=True, slots=True)
class AppendHead:
    """Head of 24: name length 8, data length 8, name. ``length`` bytes of data follow."""

    name: str
    length: int

    def encode(self) -> bytes:
        """16 bytes and the name."""
        name = self.name.encode("ascii")
        return _APPEND.pack(len(name), self.length) + name

    @classmethod
    def name_length(cls, fixed: bytes, body_length: int) -> int:
        """Length of the name behind the first 16 bytes. Raises ProtocolError."""
        if len(fixed) != APPEND_HEAD_SIZE or body_length <= APPEND_HEAD_SIZE:
            raise ProtocolError(f"an append of {body_length} bytes is too short")
        length, data_length = _APPEND.unpack(fixed)
        if data_length != body_length - APPEND_HEAD_SIZE - _appender_length(length):
            raise ProtocolError(f"data length {data_length} in an append of {body_length} bytes")
        return int(length)

    @classmethod
    def decode(cls, head: bytes, body_length: int) -> AppendHead:
        """Decode 16 bytes and the name behind them. Raises ProtocolError."""
        length = cls.name_length(head[:APPEND_HEAD_SIZE], body_length)
        if len(head) != APPEND_HEAD_SIZE + length:
            raise ProtocolError("an append is cut off in the name")
        return cls(decode_file_name(head[APPEND_HEAD_SIZE:]), body_length - len(head))


@dataclass(frozen=True, slots=True)
class ModifyHead:
    """Head of 34: name length 8, offset 8, data length 8, name. ``length`` bytes follow.

    ``offset`` is at most the file's size; the data may go past the end.
    """

    name: str
    offset: int
    length: int

    def encode(self) -> bytes:
        """24 bytes and the name."""
        name = self.name.encode("ascii")
        return _MODIFY.pack(len(name), self.offset, self.length) + name

    @classmethod
    def name_length(cls, fixed: bytes, body_length: int) -> int:
        """Length of the name behind the first 24 bytes. Raises ProtocolError."""
        if len(fixed) != MODIFY_HEAD_SIZE or body_length <= MODIFY_HEAD_SIZE:
            raise ProtocolError(f"a modification of {body_length} bytes is too short")
        length, offset, data_length = _MODIFY.unpack(fixed)
        rest = body_length - MODIFY_HEAD_SIZE - _appender_length(length)
        if offset < 0 or data_length != rest:
            raise ProtocolError(f"{data_length} bytes at {offset} in a body of {body_length} bytes")
        return int(length)

    @classmethod
    def decode(cls, head: bytes, body_length: int) -> ModifyHead:
        """Decode 24 bytes and the name behind them. Raises ProtocolError."""
        fixed = head[:MODIFY_HEAD_SIZE]
        length = cls.name_length(fixed, body_length)
        if len(head) != MODIFY_HEAD_SIZE + length:
            raise ProtocolError("a modification is cut off in the name")
        offset = _MODIFY.unpack(fixed)[1]
        return cls(decode_file_name(head[MODIFY_HEAD_SIZE:]), offset, body_length - len(head))


@dataclass(frozen=True, slots=True)
class Truncate:
    """Body of 36: name length 8, new size 8, name; further bytes are ignored."""

    name: str
    size: int

    def encode(self) -> bytes:
        """The body."""
        name = self.name.encode("ascii")
        return _APPEND.pack(len(name), self.size) + name

    @classmethod
    def decode(cls, body: bytes) -> Truncate:
        """Raises ProtocolError."""
        if len(body) <= APPEND_HEAD_SIZE:
            raise ProtocolError(f"a truncation of {len(body)} bytes is too short")
        length, size = _APPEND.unpack_from(body)
        end = APPEND_HEAD_SIZE + _appender_length(length)
        if size < 0 or end > len(body):
            raise ProtocolError(f"truncation to {size}, name of {length} bytes")
        return cls(decode_file_name(body[APPEND_HEAD_SIZE:end]), size)


def _appender_length(length: int) -> int:
    """Check the length of an appender's name: 44..127."""
    if not NORMAL_NAME_LENGTH <= length <= FILE_NAME_MAX:
        raise ProtocolError(f"appender name of {length} bytes")
    return length
