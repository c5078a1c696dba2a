"""Messages between trackers: their files, the election of a leader, and keeping in touch with it.

Source: protocol/cluster.md section 6. The command codes are in `fdfsfuse.proto.cluster`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.address import MAX_ADDRESS_TEXT, decode_address, encode_address
from fdfsfuse.proto.header import (
    GROUP_NAME_SIZE,
    STORAGE_ID_SIZE,
    expect_size,
    pack_text,
    unpack_text,
)
from fdfsfuse.proto.tracker import MAX_GROUPS

SYSTEM_FILES = 4
"""groups, servers, sync timestamps, changelog: 63 names them by index."""
FILE_PART_MAX = 8192
"""Most bytes of a file in one answer to 63."""
_JOIN_LEADER = struct.Struct(">q8sq")
_TRACKER_STATUS = struct.Struct(">Bqq")
_PING = struct.Struct(">iii")
_FILE_REQUEST = struct.Struct(">Bq")
_I64 = struct.Struct(">q")
_TRUNK_SERVER_SIZE = GROUP_NAME_SIZE + STORAGE_ID_SIZE


def encode_leader(ip: str, port: int) -> bytes:
    """Request of 66 and 67."""
    return encode_address(ip, port).encode("ascii")


def decode_leader(body: bytes) -> tuple[str, int]:
    """(ip, port). Raises ProtocolError."""
    if not 1 <= len(body) <= MAX_ADDRESS_TEXT:
        raise ProtocolError(f"the address of a leader cannot have {len(body)} bytes")
    return decode_address(unpack_text(body))


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """Response of 64, 17 bytes: is it the leader 1, running time i64, restart interval i64 (s)."""

    is_leader: bool
    running_s: int
    restart_interval_s: int

    def encode(self) -> bytes:
        """17 bytes."""
        return _TRACKER_STATUS.pack(self.is_leader, self.running_s, self.restart_interval_s)

    @classmethod
    def decode(cls, body: bytes) -> TrackerStatus:
        """Raises ProtocolError unless *body* has 17 bytes."""
        expect_size("a tracker's status", body, _TRACKER_STATUS.size)
        leader, running_s, restart_interval_s = _TRACKER_STATUS.unpack(body)
        return cls(leader != 0, running_s, restart_interval_s)


@dataclass(frozen=True, slots=True)
class JoinLeader:
    """Request of 58, 24 bytes: start in Unix seconds i64, version 8, own port i64."""

    up_time: int
    version: str
    port: int

    def encode(self) -> bytes:
        """24 bytes."""
        return _JOIN_LEADER.pack(self.up_time, pack_text(self.version, 8), self.port)

    @classmethod
    def decode(cls, body: bytes) -> JoinLeader:
        """Raises ProtocolError unless *body* has 24 bytes."""
        expect_size("a follower's request", body, _JOIN_LEADER.size)
        up_time, version, port = _JOIN_LEADER.unpack(body)
        return cls(up_time, unpack_text(version), port)


@dataclass(frozen=True, slots=True)
class LeaderPing:
    """Request of 65, 12 bytes: connections allocated, current, most; three i32."""

    allocated: int
    current: int
    most: int

    def encode(self) -> bytes:
        """12 bytes."""
        return _PING.pack(self.allocated, self.current, self.most)

    @classmethod
    def decode(cls, body: bytes) -> LeaderPing:
        """Raises ProtocolError unless *body* has 12 bytes."""
        expect_size("a follower's ping", body, _PING.size)
        return cls(*_PING.unpack(body))


@dataclass(frozen=True, slots=True)
class TrunkServers:
    """Response of 65 when a trunk server changed: (group, storage id or '') of all groups."""

    servers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """32 bytes per group."""
        return b"".join(
            pack_text(group, GROUP_NAME_SIZE) + pack_text(storage_id, STORAGE_ID_SIZE)
            for group, storage_id in self.servers
        )

    @classmethod
    def decode(cls, body: bytes) -> TrunkServers:
        """Raises ProtocolError."""
        if len(body) % _TRUNK_SERVER_SIZE or len(body) > MAX_GROUPS * _TRUNK_SERVER_SIZE:
            raise ProtocolError(f"a list of trunk servers cannot have {len(body)} bytes")
        return cls(
            tuple(
                (
                    unpack_text(body[start : start + GROUP_NAME_SIZE]),
                    unpack_text(body[start + GROUP_NAME_SIZE : start + _TRUNK_SERVER_SIZE]),
                )
                for start in range(0, len(body), _TRUNK_SERVER_SIZE)
            )
        )


@dataclass(frozen=True, slots=True)
class SystemFileRequest:
    """Request of 63, 9 bytes: index of the file 1, offset i64."""

    index: int
    offset: int

    def encode(self) -> bytes:
        """9 bytes."""
        return _FILE_REQUEST.pack(self.index, self.offset)

    @classmethod
    def decode(cls, body: bytes) -> SystemFileRequest:
        """Raises ProtocolError, also for a file that does not exist."""
        expect_size("a request for a file", body, _FILE_REQUEST.size)
        index, offset = _FILE_REQUEST.unpack(body)
        if not 0 <= index < SYSTEM_FILES or offset < 0:
            raise ProtocolError(f"there is no file {index}, or no offset {offset}")
        return cls(index, offset)


@dataclass(frozen=True, slots=True)
class SystemFilePart:
    """Response of 63: size of the whole file i64, then bytes from the offset asked for."""

    size: int
    data: bytes

    def encode(self) -> bytes:
        """8 bytes and the part."""
        return _I64.pack(self.size) + self.data

    @classmethod
    def decode(cls, body: bytes) -> SystemFilePart:
        """Raises ProtocolError."""
        if len(body) < _I64.size:
            raise ProtocolError(f"a part of a file cannot have {len(body)} bytes")
        (size,) = _I64.unpack(body[: _I64.size])
        data = body[_I64.size :]
        if not len(data) <= size:
            raise ProtocolError(f"{len(data)} bytes of a file of {size}")
        return cls(size, data)
