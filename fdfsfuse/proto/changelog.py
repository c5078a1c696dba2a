"""What a tracker tells about servers that left: changelog lines (77), and a changed ip (78).

Source: protocol/cluster.md sections 2.5 and 3.7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.cluster import IP_SIZE
from fdfsfuse.proto.header import GROUP_NAME_SIZE, expect_size, pack_text, unpack_text
from fdfsfuse.proto.tracker import ServerStatus

_IP_CHANGE = struct.Struct(f">{GROUP_NAME_SIZE}s{IP_SIZE}s{IP_SIZE}s")


@dataclass(frozen=True, slots=True)
class ChangelogLine:
    """``timestamp group old_id status new_id``: a server was removed, or took another ip.

    ``timestamp`` is in Unix seconds. ``status`` is DELETED (``new_id`` is empty) or IP_CHANGED.
    """

    timestamp: int
    group: str
    old_id: str
    status: ServerStatus
    new_id: str = ""

    def encode(self) -> bytes:
        """The line with its newline; the last field of a deletion is empty."""
        text = f"{self.timestamp} {self.group} {self.old_id} {int(self.status)} {self.new_id}\n"
        return text.encode("ascii")

    @classmethod
    def decode(cls, line: str) -> ChangelogLine:
        """A line, with or without its newline. Raises ProtocolError."""
        fields = line.rstrip("\n").split(" ")
        try:
            timestamp, group, old_id, status, new_id = fields
            parsed = cls(int(timestamp), group, old_id, ServerStatus(int(status)), new_id)
        except ValueError as exc:
            raise ProtocolError(f"{line[:100]!r} is not a line of the changelog") from exc
        if not group or not old_id:
            raise ProtocolError(f"{line[:100]!r} is not a line of the changelog")
        return parsed


@dataclass(frozen=True, slots=True)
class IpChange:
    """Request of 78, 108 bytes: group 16, the old ip 46, the new ip 46."""

    group: str
    old_ip: str
    new_ip: str

    def encode(self) -> bytes:
        """108 bytes."""
        return _IP_CHANGE.pack(
            pack_text(self.group, GROUP_NAME_SIZE),
            pack_text(self.old_ip, IP_SIZE),
            pack_text(self.new_ip, IP_SIZE),
        )

    @classmethod
    def decode(cls, body: bytes) -> IpChange:
        """Raises ProtocolError unless *body* has 108 bytes."""
        expect_size("a changed ip", body, _IP_CHANGE.size)
        return cls(*map(unpack_text, _IP_CHANGE.unpack(body)))
