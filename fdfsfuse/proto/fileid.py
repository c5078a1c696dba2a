"""File ids: ``group1/M00/00/1A/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt``.

Source: protocol/file-id.md. The *file name* (also: remote filename) is everything behind the
group. Layout of the 20 bytes that its 27 base64 characters encode:

=== ==== ========= ==================================================================
off size field     meaning
=== ==== ========= ==================================================================
0   4    source    IPv4 address in network order, or storage id as little-endian u32
4   4    timestamp Unix seconds, big-endian, signed
8   8    size      size and flags, big-endian (section 2 there)
16  4    crc32     zlib CRC-32 of the content, or random; big-endian
=== ==== ========= ==================================================================
"""

from __future__ import annotations

import binascii
import enum
import functools
import ipaddress
import re
import struct
from typing import Any, NamedTuple

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.header import FILE_NAME_MAX, GROUP_NAME_SIZE, pack_text

NORMAL_NAME_LENGTH = 44
TRUNK_NAME_LENGTH = 60
_NORMAL_RELATIVE_LENGTH = NORMAL_NAME_LENGTH - len("M00/")
MAX_NUMERIC_STORAGE_ID = 0xFFFFFF
METADATA_SUFFIX = "-m"

_SIZE_IN_LOW_BITS = 1 << 63
_RAW = struct.Struct(">4siQI")
_HALVES = struct.Struct(">4siIII")
"""`_RAW` with the size in two numbers: Python takes much longer for numbers of 64 bits."""
_ORIGIN = struct.Struct(">4s4xB7xI")
_unpack_usual = struct.Struct("20s3s3s").unpack_from
"""Group and store path, and both sub directories, each with its slash."""
_ORDINARY = _SIZE_IN_LOW_BITS >> 56
"""The byte of flags of a file that is neither an appender nor large nor in a trunk file."""
_TRUNK = struct.Struct(">iii")
_TRUNK_BIT = 1 << 59
_APPENDER_BIT = 1 << 58
_SIZE_HALF = _SIZE_IN_LOW_BITS >> 32
_APPENDER_HALF = (_SIZE_IN_LOW_BITS | _APPENDER_BIT) >> 32
RANDOM_MASK = (1 << 23) - 1
"""The random bits of a name: bits 32 to 54 of its size."""
_LOW_32 = 0xFFFFFFFF
_new = tuple.__new__
"""Makes a named tuple for half of what calling its class costs."""
_POWERS = tuple(10**digits for digits in range(7))

_BASE64_LENGTH = 27
_TO_STANDARD_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")
"""From the alphabet of names to that of `binascii`, which skips ``!``: then bytes are missing."""
_FROM_STANDARD_BASE64 = bytes.maketrans(b"+/", b"-_")
_HEX = tuple(f"{number:02X}" for number in range(256))
STORE_PATHS = tuple(f"M{number:02X}/" for number in range(256))
"""What file names on a store path begin with."""
_STORE_PATH_INDEX = {text: number for number, text in enumerate(STORE_PATHS)}
_GROUP = re.compile(r"[A-Za-z0-9]{1,16}\Z")
_USUAL_NAME = re.compile(
    r"M[0-9A-F]{2}/[0-9A-F]{2}/[0-9A-F]{2}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,116}\Z"
)
_SUB_DIRECTORIES = frozenset(f"{text}/".encode() for text in _HEX)
_USUAL_TO_ITSELF = bytes(c if re.match(rb"[\w.-]", bytes([c])) else ord(".") for c in range(256))
"""For `bytes.translate`: what consists of letters, digits and ``._-`` stays what it is."""
_USUAL_MIN = GROUP_NAME_SIZE + len("M00/00/00/...")
_USUAL_MAX = GROUP_NAME_SIZE + FILE_NAME_MAX
# Blanks and control characters would break the lines of the binlog; no storage makes such names.
_RELATIVE = re.compile(r"[0-9A-F]{2}/[0-9A-F]{2}/[!-.0-~]+\Z")
EXTENSION = re.compile(r"[A-Za-z0-9._-]{0,6}\Z")
PREFIX = re.compile(r"[A-Za-z0-9._-]{1,16}\Z")


class FileKind(enum.Enum):
    """What a file name says about its file; the value is the reference's type code."""

    NORMAL = 1
    APPENDER = 2
    SLAVE = 4


class Location(NamedTuple):
    """Where a file name points on a storage: checked, so that no path escapes the store path.

    A tuple, as is `NameInfo`: each request makes some, and a frozen dataclass costs twice as much.

    ``path_index`` is 0..255; ``relative`` is the path below ``STORE_PATH/data/``:
    ``00/1A/xxxx``, printable ASCII without blanks.
    """

    path_index: int
    relative: str

    @property
    def high(self) -> int:
        """The first sub directory, 0..255."""
        return int(self.relative[:2], 16)

    @property
    def low(self) -> int:
        """The second sub directory, 0..255."""
        return int(self.relative[3:5], 16)

    @property
    def directory(self) -> str:
        """Both sub directories: ``00/1A``."""
        return self.relative[:5]

    @property
    def base(self) -> str:
        """The last part, without slashes."""
        return self.relative[6:]

    @property
    def name(self) -> str:
        """The file name with its store path: ``M00/00/1A/xxxx``."""
        return STORE_PATHS[self.path_index] + self.relative


def sub_directory(high: int, low: int) -> str:
    """The `Location.directory` of two numbers 0..255."""
    return f"{_HEX[high]}/{_HEX[low]}"


class NameInfo(NamedTuple):
    """The decoded 20 bytes of a file name.

    ``source`` is the storage id or the IPv4 address as text. ``size`` and ``crc32`` describe the
    content of normal files only (appenders: size 0 and the crc of the initial content; slaves:
    those of the master).
    """

    source: str
    source_is_id: bool
    timestamp: int
    size: int
    crc32: int
    kind: FileKind
    in_trunk: bool


def check_group_name(group: str) -> str:
    """Return *group* if it is 1 to 16 of ``[A-Za-z0-9]``, else raise UsageError."""
    if not _GROUP.match(group):
        raise UsageError(
            f"{group!r} is not a group name: it must be 1 to {GROUP_NAME_SIZE} letters and digits"
        )
    return group


def split_file_id(file_id: str) -> tuple[str, str]:
    """``group1/M00/...`` -> (``group1``, ``M00/...``).

    Raises:
        UsageError: there is no group, or the name is empty, too long or not ASCII.
    """
    group, slash, name = file_id.partition("/")
    if not slash or not name or len(name) > FILE_NAME_MAX or not file_id.isascii():
        raise UsageError(f"{file_id!r} is not a file id such as group1/M00/00/00/xxxx.jpg")
    return check_group_name(group), name


def parse_location(name: str, path_count: int) -> Location:
    """Check a file name as storages do (wire.md section 4) and say where it points.

    A name whose first character is not ``M`` is a legacy name on store path 0.

    Raises:
        ProtocolError: the name is malformed or names a store path that does not exist.
    """
    if _USUAL_NAME.match(name):  # one match for what nearly all names look like
        index = _STORE_PATH_INDEX[name[:4]]
        if index < path_count:
            return _new(Location, (index, name[4:]))
    if len(name) <= 10:
        raise ProtocolError(f"file name {name!r} is too short")
    index, rest = 0, name
    if name[0] == "M":
        digits = name[1:3]
        if name[3] != "/" or not all(c in "0123456789abcdefABCDEF" for c in digits):
            raise ProtocolError(f"file name {name!r} has no valid store path")
        index, rest = int(digits, 16), name[4:]
    if index >= path_count:
        raise ProtocolError(f"file name {name!r} is on store path {index} of {path_count}")
    if not _RELATIVE.match(rest) or rest[6:] in (".", ".."):
        raise ProtocolError(f"file name {name!r} is malformed")
    return Location(index, rest)


class UsualFields:
    """Locates the files of requests to one storage if they look as nearly all do.

    Args:
        group: that of the storage.
        path_count: the number of its store paths.
    """

    __slots__ = ("_index",)

    def __init__(self, group: str, path_count: int) -> None:
        group_field = pack_text(group, GROUP_NAME_SIZE)
        store_paths = enumerate(STORE_PATHS[:path_count])
        self._index = {group_field + text.encode(): index for index, text in store_paths}

    def locate(self, body: bytes, start: int) -> Location | None:
        """`parse_location` for the name that follows the group at *start*, up to the end of *body*.

        None for what has to be looked at more closely, be it valid or not.
        """
        # Each request comes here: a regular expression would take half as long again.
        if _USUAL_MIN <= len(body) - start <= _USUAL_MAX:
            store_path, high, low = _unpack_usual(body, start)
            index = self._index.get(store_path)
            if index is not None and high in _SUB_DIRECTORIES and low in _SUB_DIRECTORIES:
                base = body[start + 26 :]
                if base.translate(_USUAL_TO_ITSELF) == base:
                    return _new(Location, (index, body[start + 20 :].decode()))
        return None


def is_slave(name: str, in_trunk: bool) -> bool:
    """The recognition rule of file-id.md section 5; short slaves escape it."""
    return len(name) > TRUNK_NAME_LENGTH or (len(name) > NORMAL_NAME_LENGTH and not in_trunk)


def decode_name(name: str) -> NameInfo:
    """Decode a file name with its ``Mxx/`` prefix.

    Raises:
        ProtocolError: it is shorter than 37 characters or not base64.
    """
    source_raw, timestamp, field, crc = _unpack(_RAW, name[10:37])
    source, source_is_id = decode_source(source_raw)
    in_trunk = False
    kind = FileKind.NORMAL
    size = field
    if field & _SIZE_IN_LOW_BITS:
        size = field & _LOW_32
        in_trunk = bool(field & _TRUNK_BIT)
        if field & _APPENDER_BIT:
            kind = FileKind.APPENDER
    if kind is FileKind.NORMAL and len(name) > NORMAL_NAME_LENGTH and is_slave(name, in_trunk):
        kind = FileKind.SLAVE
    return _new(NameInfo, (source, source_is_id, timestamp, size, crc, kind, in_trunk))


def origin_of(location: Location) -> tuple[bytes, int | None]:
    """The source, as 4 bytes, and the crc32 of a normal file; None for other kinds.

    What `decode_name` says, for callers in a hurry who want nothing else. Raises ProtocolError.
    """
    relative = location.relative
    source, flags, crc = _unpack(_ORIGIN, relative[6:33])
    if flags == _ORDINARY and len(relative) <= _NORMAL_RELATIVE_LENGTH:
        return source, crc
    normal = decode_name(location.name).kind is FileKind.NORMAL
    return source, crc if normal else None


def _unpack(fields: struct.Struct, text: str) -> tuple[Any, ...]:
    """The fields of the 20 bytes of the 27 characters. Raises ProtocolError."""
    try:
        raw = binascii.a2b_base64(text.encode().translate(_TO_STANDARD_BASE64) + b"=")
        return fields.unpack(raw)
    except (binascii.Error, struct.error, ValueError) as exc:
        raise ProtocolError(f"{text!r} is not from the name of a file of a storage") from exc


@functools.lru_cache(maxsize=1024)
def decode_source(raw: bytes) -> tuple[str, bool]:
    """Text of the 4 source bytes, and whether it is a storage id. A cluster has few of them."""
    number = int.from_bytes(raw, "little")
    if 1 <= number <= MAX_NUMERIC_STORAGE_ID:
        return str(number), True
    return str(ipaddress.IPv4Address(raw)), False


def encode_source(source: str) -> bytes:
    """The 4 source bytes of *source*, an IPv4 address or a storage id 1..16777215 as text."""
    if source.isdigit():
        number = int(source)
        if not 1 <= number <= MAX_NUMERIC_STORAGE_ID:
            raise UsageError(f"storage id {source} does not fit a file name")
        return number.to_bytes(4, "little")
    return ipaddress.IPv4Address(source).packed


def encode_base(
    source: bytes,
    timestamp: int,
    size: int,
    crc32: int,
    suffix: str,
    random_bits: int,
    appender: bool = False,
) -> str:
    """The last part of a new normal or appender name: 27 base64 characters and 7 of *suffix*.

    Args:
        source: 4 bytes of `encode_source`.
        size: content bytes; ignored for appenders.
        suffix: 7 characters of `make_suffix`.
        random_bits: 23 random bits that keep names apart; not used from 4 GiB up.
    """
    if appender:
        high, low = _APPENDER_HALF | random_bits & RANDOM_MASK, 0
    elif size <= _LOW_32:
        high, low = _SIZE_HALF | random_bits & RANDOM_MASK, size
    else:
        high, low = size >> 32, size & _LOW_32
    raw = _HALVES.pack(source, timestamp, high, low, crc32 & _LOW_32)
    text = binascii.b2a_base64(raw).translate(_FROM_STANDARD_BASE64)
    return text[:_BASE64_LENGTH].decode() + suffix


def make_suffix(extension: str, random_number: int) -> str:
    """The 7 characters behind the base64 part (file-id.md section 3).

    *random_number* gives the pad digits. *extension* has no leading dot of its own.
    """
    if not extension:
        return f"{random_number % 10**7:07d}"
    power = _POWERS[6 - len(extension)]
    pad = str(power + random_number % power)[1:]
    return f"{pad}.{extension}"


def slave_name(master: str, prefix: str, extension: str) -> str:
    """The name of a slave of *master* (wire.md, command 21)."""
    tail = master[-7:]
    dot = tail.find(".")
    stem = master if dot < 0 else master[: len(master) - 7 + dot]
    dotted = extension if not extension or extension.startswith(".") else f".{extension}"
    return f"{stem}{prefix}{dotted}"


def time_of_name(name: str) -> int:
    """The time in a file name (``M00/00/0C/...``) that is known to be valid, in Unix seconds."""
    text = name[14:22].encode("ascii").translate(_TO_STANDARD_BASE64)
    # Eight characters are six bytes, these ones the bytes from 3 on.
    return int.from_bytes(binascii.a2b_base64(text)[1:5], "big")


def is_object_base(base: str) -> bool:
    """True when *base*, the last part of a file name, may be the name of an object.

    False for metadata (``-m``), trunk containers, temporary files and anything else that no
    storage would hand out: an object's name starts with 27 base64 characters that decode.
    """
    if len(base) < NORMAL_NAME_LENGTH - 10 or base.endswith(METADATA_SUFFIX):
        return False
    try:
        decode_name("M00/00/00/" + base)
    except ProtocolError:
        return False
    return True
