"""Messages that ask a tracker who a storage is: its ip, its group, its id.

Source: protocol/cluster.md sections 2.1, 2.3 and 2.4.
The command codes are in `fdfsfuse.proto.cluster`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.address import MAX_ADDRESS_TEXT, check_port, decode_address, encode_address
from fdfsfuse.proto.cluster import IP_SIZE
from fdfsfuse.proto.header import GROUP_NAME_SIZE, expect_size, pack_text, unpack_text

_I32 = struct.Struct(">i")


@dataclass(frozen=True, slots=True)
class MyIpRequest:
    """Request of 60, 21 bytes: group 17, own port i32. The response is the peer's ip as text."""

    group: str
    port: int

    def encode(self) -> bytes:
        """21 bytes."""
        return pack_text(self.group, 17) + _I32.pack(self.port)

    @classmethod
    def decode(cls, body: bytes) -> MyIpRequest:
        """Raises ProtocolError unless *body* has 21 bytes."""
        expect_size("a request for the own ip", body, 21)
        return cls(unpack_text(body[:17]), _I32.unpack(body[17:])[0])


def encode_port(port: int) -> bytes:
    """Request of 109; the tracker sees our ip itself."""
    return _I32.pack(port)


def decode_port(body: bytes) -> int:
    """Request of 109: a port i32, after an ip text that may be there. Raises ProtocolError."""
    if not 4 <= len(body) <= IP_SIZE + 4:
        raise ProtocolError(f"a request for the group name cannot have {len(body)} bytes")
    return check_port(_I32.unpack(body[-4:])[0])


@dataclass(frozen=True, slots=True)
class ServerQuery:
    """Request of 70 and 71: group 16, then ``ip:port`` as text of 1 to 52 bytes."""

    group: str
    ip: str
    port: int

    def encode(self) -> bytes:
        """17 to 68 bytes."""
        text = encode_address(self.ip, self.port)
        return pack_text(self.group, GROUP_NAME_SIZE) + text.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> ServerQuery:
        """Raises ProtocolError, also when there is no port."""
        if not 1 <= len(body) - GROUP_NAME_SIZE <= MAX_ADDRESS_TEXT:
            raise ProtocolError(f"a request with group and address cannot have {len(body)} bytes")
        ip, port = decode_address(unpack_text(body[GROUP_NAME_SIZE:]))
        return cls(unpack_text(body[:GROUP_NAME_SIZE]), ip, port)


@dataclass(frozen=True, slots=True)
class StorageIdsRequest:
    """Request of 69, 5 bytes: index of the first line i32, allow_empty 1."""

    start: int
    allow_empty: bool

    def encode(self) -> bytes:
        """5 bytes."""
        return _I32.pack(self.start) + bytes((self.allow_empty,))

    @classmethod
    def decode(cls, body: bytes) -> StorageIdsRequest:
        """Raises ProtocolError unless *body* has 5 bytes."""
        expect_size("a request for storage ids", body, 5)
        return cls(_I32.unpack(body[:4])[0], body[4] != 0)


@dataclass(frozen=True, slots=True)
class StorageIdsPart:
    """Response of 69: total i32, count here i32, then that many lines of storage_ids.conf."""

    total: int
    lines: tuple[str, ...]

    def encode(self) -> bytes:
        """8 bytes and the lines, each ended by a newline."""
        text = "".join(line + "\n" for line in self.lines).encode("ascii")
        return _I32.pack(self.total) + _I32.pack(len(self.lines)) + text

    @classmethod
    def decode(cls, body: bytes) -> StorageIdsPart:
        """Raises ProtocolError, also when the counts do not fit the lines."""
        if len(body) < 8:
            raise ProtocolError(f"a list of storage ids cannot have {len(body)} bytes")
        total, count = struct.unpack(">ii", body[:8])
        lines = tuple(body[8:].decode("ascii", "surrogateescape").splitlines())
        torn = len(body) > 8 and not body.endswith(b"\n")
        if torn or not 0 <= count <= total or count != len(lines) or (total and not count):
            raise ProtocolError(f"{len(lines)} storage ids instead of {count} of {total}")
        return cls(total, lines)
