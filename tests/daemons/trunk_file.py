"""Trunk files as a C storage writes them (protocol/cluster.md section 8.3)."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path


def trunk_name(content: bytes, *, number: int = 1, offset: int = 0, slot_size: int = 256) -> str:
    """A name of *content* in the trunk file *number* of ``M00/00/00``."""
    size = 1 << 63 | 1 << 59 | 0x1234 << 32 | len(content)
    raw = struct.pack(">4sIQI", bytes((127, 0, 0, 51)), 1_700_000_000, size, zlib.crc32(content))
    place = struct.pack(">iii", number, offset, slot_size)
    text = base64.urlsafe_b64encode(raw)[:27] + base64.urlsafe_b64encode(place)
    return f"M00/00/00/{text.decode()}123.txt"


def write_slot(store_path: Path, name: str, content: bytes) -> Path:
    """Write *content* where *name* says it is; returns the path of the trunk file."""
    raw = base64.urlsafe_b64decode(name[10:37] + "=")
    number, offset, slot_size = struct.unpack(">iii", base64.urlsafe_b64decode(name[37:53]))
    header = struct.pack(">cii", b"F", slot_size, len(content)) + raw[16:20] + raw[4:8]
    path = store_path / "data" / name[4:9] / f"{number:06d}"
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(1 << 20)
        file.seek(offset)
        file.write(header + name[-7:].encode() + content)
    return path
