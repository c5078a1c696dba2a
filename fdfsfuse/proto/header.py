"""The 10-byte packet header and the field encodings that all FastDFS packets share.

Source: protocol/wire.md section 1 (framing, encodings, limits).

=== ==== ======= ==========================================================
off size field   meaning
=== ==== ======= ==========================================================
0   8    length  body length, signed 64-bit big-endian, header not counted
8   1    command request: command code; response: always 100
9   1    status  request: flags of command 22, else 0; response: errno or 0
=== ==== ======= ==========================================================
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

from fdfsfuse.errors import ProtocolError, UsageError

HEADER_SIZE = 10
RESPONSE = 100

GROUP_NAME_SIZE = 16
STORAGE_ID_SIZE = 16
FILE_NAME_MAX = 127
EXTENSION_SIZE = 6
PREFIX_SIZE = 16

_HEADER = struct.Struct(">qBB")
unpack_fields = _HEADER.unpack_from
"""The fields of the `Header` at an offset, unchecked, where even a tuple with names is too slow."""


class Header(NamedTuple):
    """A decoded packet header: body ``length`` in bytes, ``command`` and ``status`` (0..255)."""

    length: int
    command: int
    status: int


def expect_size(what: str, data: bytes | bytearray | memoryview, size: int) -> None:
    """Raises ProtocolError unless *data*, that is *what*, has *size* bytes."""
    if len(data) != size:
        raise ProtocolError(f"{what} has {size} bytes, not {len(data)}")


def pack_header(length: int, command: int, status: int = 0) -> bytes:
    """The 10 header bytes of a packet whose body has *length* bytes."""
    return _HEADER.pack(length, command, status)


def pack_response(body: bytes = b"", status: int = 0) -> bytes:
    """A whole response. An error response never has a body."""
    return _HEADER.pack(len(body), RESPONSE, status) + body


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Decode exactly 10 bytes.

    Raises:
        ProtocolError: the length is negative, or *data* is not 10 bytes.
    """
    expect_size("a packet header", data, HEADER_SIZE)
    return unpack_header_from(data, 0)


def unpack_header_from(data: bytes | bytearray | memoryview, offset: int) -> Header:
    """Decode the 10 bytes at *offset*; as `unpack_header`, without a copy."""
    header = Header._make(_HEADER.unpack_from(data, offset))
    if header.length < 0:
        raise ProtocolError(f"negative body length {header.length}")
    return header


@functools.lru_cache(maxsize=1024)
def pack_text(text: str, size: int) -> bytes:
    """*text* as ASCII, NUL padded on the right to *size* bytes; no NUL when it fills the field.

    Nearly all are the names of few groups and few extensions: they come from a cache.

    Raises:
        UsageError: *text* is not ASCII, contains NUL or is longer than *size*.
    """
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError as exc:
        raise UsageError(f"{text!r} is not ASCII") from exc
    if len(raw) > size or b"\0" in raw:
        raise UsageError(f"{text!r} does not fit a field of {size} bytes")
    return raw.ljust(size, b"\0")


def unpack_text(field: bytes | bytearray | memoryview) -> str:
    """The text of a fixed-width field, cut at the first NUL; bytes after it are undefined.

    Bytes that are not ASCII are kept as surrogates, so that comparing fails instead of decoding.
    """
    return bytes(field).split(b"\0", 1)[0].decode("ascii", "surrogateescape")


@functools.lru_cache(maxsize=256)
def unpack_group(field: bytes) -> str:
    """`unpack_text` for group names, of which a server sees few: the text comes from a cache.

    Not checked for its characters: what no group can be called matches none.
    """
    return unpack_text(field)
