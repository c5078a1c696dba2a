"""Requests that give the content of an existing file a new name.

Source: protocol/wire.md section 4; the response to both is a `StoredFile` with the new name.

==== ============================ ==============
code command                      request
==== ============================ ==============
20   CREATE_LINK                  CreateLink
38   REGENERATE                   Regenerate
==== ============================ ==============
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.fileid import NORMAL_NAME_LENGTH, PREFIX
from fdfsfuse.proto.header import (
    EXTENSION_SIZE,
    FILE_NAME_MAX,
    GROUP_NAME_SIZE,
    PREFIX_SIZE,
    pack_text,
    unpack_text,
)
from fdfsfuse.proto.storage import decode_extension, decode_file_name

SIGNATURE_MAX = 63
_NAMES_MAX = 256
_LINK = struct.Struct(">qqq16s16s6s")


@dataclass(frozen=True, slots=True)
class CreateLink:
    """Body of 20: three lengths of 8, group 16, prefix 16, extension 6, then the three texts.

    The texts are the master's name (empty for a plain link, else the link gets a slave's name with
    ``prefix``), the source's name and a signature of 1 to 63 bytes, whose meaning is the client's
    affair. Together they have at most 256 bytes.
    """

    group: str
    source: str
    signature: bytes
    extension: str = ""
    master: str = ""
    prefix: str = ""

    def encode(self) -> bytes:
        """The body."""
        master, source = self.master.encode("ascii"), self.source.encode("ascii")
        fixed = _LINK.pack(
            len(master),
            len(source),
            len(self.signature),
            pack_text(self.group, GROUP_NAME_SIZE),
            pack_text(self.prefix, PREFIX_SIZE),
            pack_text(self.extension, EXTENSION_SIZE),
        )
        return fixed + master + source + self.signature

    @classmethod
    def decode(cls, body: bytes) -> CreateLink:
        """Raises ProtocolError."""
        if len(body) <= _LINK.size:
            raise ProtocolError(f"a link request of {len(body)} bytes is too short")
        master, source, signature, group, prefix, extension = _LINK.unpack_from(body)
        if not (
            0 <= master <= FILE_NAME_MAX
            and 0 < source <= FILE_NAME_MAX
            and 0 < signature <= SIGNATURE_MAX
            and master + source + signature <= _NAMES_MAX
            and master + source + signature == len(body) - _LINK.size
        ):
            raise ProtocolError(f"lengths {master}, {source}, {signature} in a link request")
        middle, end = _LINK.size + master, _LINK.size + master + source
        prefix_text = unpack_text(prefix)
        if master and not PREFIX.match(prefix_text):
            raise ProtocolError(f"bad prefix {prefix_text!r}")
        return cls(
            unpack_text(group),
            decode_file_name(body[middle:end]),
            body[end:],
            decode_extension(extension),
            decode_file_name(body[_LINK.size : middle]) if master else "",
            prefix_text,
        )


@dataclass(frozen=True, slots=True)
class Regenerate:
    """Body of 38: the name of an appender, 44 to 127 bytes, which becomes a normal file."""

    name: str

    def encode(self) -> bytes:
        """The body."""
        return self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> Regenerate:
        """Raises ProtocolError."""
        if len(body) < NORMAL_NAME_LENGTH:
            raise ProtocolError(f"an appender's name of {len(body)} bytes")
        return cls(decode_file_name(body))
