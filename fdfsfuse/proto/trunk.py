"""Small files inside trunk files: where a name says they are, and the header in front of each.

Source: protocol/file-id.md section 4, protocol/cluster.md section 8.3, protocol/disk.md section 1.
We read such files and never make any. The header is 24 bytes, big-endian:

=== ==== ========= ===========================================
off size field     meaning
=== ==== ========= ===========================================
0   1    type      ``F`` file, ``L`` link, 0 free
1   4    slot size with this header
5   4    file size
9   4    crc32     of the content
13  4    mtime     Unix seconds
17  7    suffix    the last 7 characters of the file name
=== ==== ========= ===========================================
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.fileid import TRUNK_NAME_LENGTH, FileKind, Location, decode_name

SLOT_HEADER_SIZE = 24
_TRUNK_RELATIVE_LENGTH = TRUNK_NAME_LENGTH - len("M00/")
_PLACE = struct.Struct(">iii")
_HEADER = struct.Struct(">cIIIi7s")


@dataclass(frozen=True, slots=True)
class TrunkSlot:
    """What the name of a file in a trunk file says about it.

    ``file_number`` is the trunk file's id, ``offset`` that of the slot in it, ``slot_size``
    includes the header; ``size`` is that of the content behind the header, ``mtime`` Unix seconds.
    """

    file_number: int
    offset: int
    slot_size: int
    size: int
    crc32: int
    mtime: int
    suffix: str

    @property
    def file_name(self) -> str:
        """The name of the trunk file in the directory of the file name: ``000001``."""
        return f"{self.file_number:06d}"

    @property
    def header(self) -> bytes:
        """The 24 bytes at ``offset`` as long as the file exists."""
        suffix = self.suffix.encode("ascii")
        return _HEADER.pack(b"F", self.slot_size, self.size, self.crc32, self.mtime, suffix)


def is_trunk_name(location: Location) -> bool:
    """True when *location* may be in a trunk file: `find_slot` tells for sure. Cheap."""
    return len(location.relative) == _TRUNK_RELATIVE_LENGTH


def find_slot(location: Location) -> TrunkSlot | None:
    """Where the content of *location* is inside a trunk file; None when it is a file of its own,
    or the name tells of a place that cannot be.
    """
    if not is_trunk_name(location):
        return None
    try:
        info = decode_name(location.name)
        place = base64.b64decode(location.base[27:43], altchars=b"-_", validate=True)
        number, offset, slot_size = _PLACE.unpack(place)
    except (ProtocolError, binascii.Error, struct.error):
        return None
    if not info.in_trunk or info.kind is not FileKind.NORMAL:
        return None
    if number < 0 or offset < 0 or slot_size < SLOT_HEADER_SIZE + info.size:
        return None
    suffix = location.base[43:]
    return TrunkSlot(number, offset, slot_size, info.size, info.crc32, info.timestamp, suffix)
