"""Messages between clients and trackers; encode and decode of each sit together.

Source: protocol/wire.md sections 2 and 3. ``decode`` takes a whole body (bytes) and raises
ProtocolError when it is malformed; ``encode`` returns a body. Ip fields have two widths, 16 and
46 (one less where wire.md says so); encoders take ``ip_size``, decoders tell them apart by length.

==== ============================== ===================== ============================
code command                        request               response
==== ============================== ===================== ============================
101  QUERY_STORE_ONE                empty                 StoreTarget
104  QUERY_STORE_ONE_IN_GROUP       GroupRequest          StoreTarget
106  QUERY_STORE_ALL                empty                 StoreTargets
107  QUERY_STORE_ALL_IN_GROUP       GroupRequest          StoreTargets
102  QUERY_FETCH_ONE                FileRequest           FileTargets with one server
103  QUERY_UPDATE                   FileRequest           FileTargets with one server
105  QUERY_FETCH_ALL                FileRequest           FileTargets
90   LIST_ONE_GROUP                 GroupRequest          one GroupStat
91   LIST_ALL_GROUPS                empty                 GroupStat ...
92   LIST_STORAGES                  ServerRequest         StorageStat ...
93   DELETE_STORAGE                 ServerRequest         empty
95   GET_LEADER                     empty                 text ``ip:port``
108  DELETE_GROUP                   GroupRequest          empty
==== ============================== ===================== ============================

94 has a ServerRequest as well, and a storage id with a NUL as its response. 69, 70, 71 and 75,
which storages send too, are in `fdfsfuse.proto.cluster`, 96 to 98 in
`fdfsfuse.proto.cluster_stats`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.address import check_port, is_ip
from fdfsfuse.proto.header import (
    FILE_NAME_MAX,
    GROUP_NAME_SIZE,
    STORAGE_ID_SIZE,
    expect_size,
    pack_text,
    unpack_group,
    unpack_text,
)
from fdfsfuse.proto.statistics import STATISTICS_SIZE, Statistics

IPV4_SIZE = 16
IPV6_SIZE = 46
FILE_NAME_MIN = 22
MAX_SERVERS_PER_GROUP = 32
MAX_GROUPS = 512

_I64 = struct.Struct(">q")
_GROUP_NUMBERS = struct.Struct(">12q")
_STORAGE_NUMBERS = struct.Struct(">10q")
GROUP_STAT_SIZE = 17 + _GROUP_NUMBERS.size


class TrackerCommand(IntEnum):
    """Command codes that clients send to trackers."""

    FETCH_STORAGE_IDS = 69
    GET_STORAGE_ID = 70
    GET_STORAGE_STATUS = 71
    GET_PARAMETERS = 75
    QUIT = 82
    LIST_ONE_GROUP = 90
    LIST_ALL_GROUPS = 91
    LIST_STORAGES = 92
    DELETE_STORAGE = 93
    SET_TRUNK_SERVER = 94
    GET_LEADER = 95
    TRACKER_STATS = 96
    STORAGE_STATS = 97
    VOLUME_STATS = 98
    QUERY_STORE_ONE = 101
    QUERY_FETCH_ONE = 102
    QUERY_UPDATE = 103
    QUERY_STORE_ONE_IN_GROUP = 104
    QUERY_FETCH_ALL = 105
    QUERY_STORE_ALL = 106
    QUERY_STORE_ALL_IN_GROUP = 107
    DELETE_GROUP = 108
    ACTIVE_TEST = 111


class ServerStatus(IntEnum):
    """Status of a storage as the tracker knows it (load-balancing.md section 1)."""

    INIT = 0
    WAIT_SYNC = 1
    SYNCING = 2
    IP_CHANGED = 3
    DELETED = 4
    OFFLINE = 5
    ONLINE = 6
    ACTIVE = 7
    RECOVERY = 9
    NONE = 99


def decode_status(value: int) -> ServerStatus:
    """The status of a wire value; raises ProtocolError for a value that does not exist."""
    try:
        return ServerStatus(value)
    except ValueError:
        raise ProtocolError(f"{value} is not a storage status") from None


def expect_empty(body: bytes) -> None:
    """Raises ProtocolError unless *body*, of a request without one, is empty."""
    if body:
        raise ProtocolError(f"a body of {len(body)} bytes where none is allowed")


def _check_ip(text: str) -> str:
    if not is_ip(text):
        raise ProtocolError(f"{text!r} is not an ip address")
    return text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a storage listens: an ip text and a port 1..65535."""

    ip: str
    port: int

    def encode(self, ip_field: int) -> bytes:
        """The ip in *ip_field* bytes (15 or 45) and the port as i64."""
        return pack_text(self.ip, ip_field) + _I64.pack(self.port)

    @classmethod
    def decode(cls, data: bytes) -> Endpoint:
        """All but the last 8 bytes are the ip. Raises ProtocolError."""
        return cls(_check_ip(unpack_text(data[:-8])), check_port(_I64.unpack(data[-8:])[0]))


def _decode_endpoints(data: bytes) -> tuple[Endpoint, ...]:
    """One or more endpoints of 23 or of 53 bytes each; 23 is tried first (wire.md section 2)."""
    if not data:
        raise ProtocolError("an empty list of servers")
    size = 23 if len(data) % 23 == 0 else 53
    if len(data) % size:
        raise ProtocolError(f"a list of servers cannot have {len(data)} bytes")
    if len(data) == 23 * 53:
        # The one ambiguous length; in 23-byte records every port field starts with zeros.
        try:
            return tuple(Endpoint.decode(data[i : i + 23]) for i in range(0, len(data), 23))
        except ProtocolError:
            size = 53
    return tuple(Endpoint.decode(data[i : i + size]) for i in range(0, len(data), size))


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """Request of 90, 104, 107, 108: the group, 16 bytes."""

    group: str

    def encode(self) -> bytes:
        """16 bytes."""
        return pack_text(self.group, GROUP_NAME_SIZE)

    @classmethod
    def decode(cls, body: bytes) -> GroupRequest:
        """Raises ProtocolError unless *body* has 16 bytes."""
        expect_size("a request with a group", body, GROUP_NAME_SIZE)
        return cls(unpack_group(body))


class FileRequest(NamedTuple):
    """Request of 102, 103, 105: group 16, then the file name, 22 to 127 bytes, unchecked."""

    group: str
    name: str

    def encode(self) -> bytes:
        """Raises UsageError when the name has a length that trackers refuse."""
        if not FILE_NAME_MIN <= len(self.name) <= FILE_NAME_MAX or not self.name.isascii():
            raise UsageError(f"{self.name!r} is not a file name")
        return pack_text(self.group, GROUP_NAME_SIZE) + self.name.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> FileRequest:
        """Raises ProtocolError when the name is shorter than 22 or longer than 127."""
        if not FILE_NAME_MIN <= len(body) - GROUP_NAME_SIZE <= FILE_NAME_MAX:
            raise ProtocolError(f"a request with group and file name cannot have {len(body)} bytes")
        name = body[GROUP_NAME_SIZE:].decode("ascii", "surrogateescape")
        return cls(unpack_group(body[:GROUP_NAME_SIZE]), name)


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """Request of 92 and 93: group 16, then a storage id of 1 to 15 bytes.

    92 may leave the id out ('' here), which means all storages of the group.
    """

    group: str
    storage_id: str = ""

    def encode(self) -> bytes:
        """Raises UsageError when the id is too long."""
        if len(self.storage_id) >= STORAGE_ID_SIZE:
            raise UsageError(f"{self.storage_id!r} is not a storage id")
        return pack_text(self.group, GROUP_NAME_SIZE) + self.storage_id.encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> ServerRequest:
        """Raises ProtocolError unless *body* has 16 to 31 bytes."""
        if not GROUP_NAME_SIZE <= len(body) < GROUP_NAME_SIZE + STORAGE_ID_SIZE:
            raise ProtocolError(f"a request with group and id cannot have {len(body)} bytes")
        return cls(unpack_group(body[:GROUP_NAME_SIZE]), unpack_text(body[GROUP_NAME_SIZE:]))


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Response of 101 and 104: where to upload. Body: group 16, ip 15/45, port 8, path index 1.

    ``path_index`` is 0..255; the storage takes 255 as "choose one".
    """

    group: str
    endpoint: Endpoint
    path_index: int

    def encode(self, ip_size: int) -> bytes:
        """40 or 70 bytes."""
        return (
            pack_text(self.group, GROUP_NAME_SIZE)
            + self.endpoint.encode(ip_size - 1)
            + bytes((self.path_index,))
        )

    @classmethod
    def decode(cls, body: bytes) -> StoreTarget:
        """Raises ProtocolError."""
        if len(body) not in (40, 70):
            raise ProtocolError(f"an answer to where to store cannot have {len(body)} bytes")
        return cls(unpack_group(body[:16]), Endpoint.decode(body[16:-1]), body[-1])


@dataclass(frozen=True, slots=True)
class StoreTargets:
    """Response of 106 and 107: every writable storage, and one path index for all of them."""

    group: str
    endpoints: tuple[Endpoint, ...]
    path_index: int

    def encode(self, ip_size: int) -> bytes:
        """17 + 23n or 17 + 53n bytes."""
        return (
            pack_text(self.group, GROUP_NAME_SIZE)
            + b"".join(endpoint.encode(ip_size - 1) for endpoint in self.endpoints)
            + bytes((self.path_index,))
        )

    @classmethod
    def decode(cls, body: bytes) -> StoreTargets:
        """Raises ProtocolError."""
        if len(body) < 17:
            raise ProtocolError(f"an answer to where to store cannot have {len(body)} bytes")
        return cls(unpack_group(body[:16]), _decode_endpoints(body[16:-1]), body[-1])


@dataclass(frozen=True, slots=True)
class FileTargets:
    """Response of 102 and 103 (one endpoint) and of 105 (one or more): who has the file."""

    group: str
    endpoints: tuple[Endpoint, ...]

    def encode(self, ip_size: int) -> bytes:
        """16 + 23n or 16 + 53n bytes."""
        return pack_text(self.group, GROUP_NAME_SIZE) + b"".join(
            endpoint.encode(ip_size - 1) for endpoint in self.endpoints
        )

    @classmethod
    def decode(cls, body: bytes) -> FileTargets:
        """Raises ProtocolError."""
        return cls(unpack_group(body[:16]), _decode_endpoints(body[16:]))


@dataclass(frozen=True, slots=True)
class GroupStat:
    """One record of 90 and 91, 113 bytes: group 17, then the numbers as i64 in this order.

    ``free_mb`` is that of the storage with the least; ``storage_count`` includes deleted ones;
    ``trunk_file_id`` is -1 when trunk files are off.
    """

    group: str
    total_mb: int
    free_mb: int
    reserved_mb: int
    trunk_free_mb: int
    storage_count: int
    storage_port: int
    readable_count: int
    writable_count: int
    current_write_server: int
    store_path_count: int
    subdir_count_per_path: int
    trunk_file_id: int

    def encode(self) -> bytes:
        """113 bytes."""
        return pack_text(self.group, 17) + _GROUP_NUMBERS.pack(
            self.total_mb,
            self.free_mb,
            self.reserved_mb,
            self.trunk_free_mb,
            self.storage_count,
            self.storage_port,
            self.readable_count,
            self.writable_count,
            self.current_write_server,
            self.store_path_count,
            self.subdir_count_per_path,
            self.trunk_file_id,
        )

    @classmethod
    def decode(cls, data: bytes) -> GroupStat:
        """Raises ProtocolError unless *data* has 113 bytes."""
        expect_size("a group record", data, GROUP_STAT_SIZE)
        return cls(unpack_group(data[:17]), *_GROUP_NUMBERS.unpack(data[17:]))


def decode_group_stats(body: bytes) -> list[GroupStat]:
    """All records of a response to 90 or 91. Raises ProtocolError."""
    if len(body) % GROUP_STAT_SIZE or len(body) > MAX_GROUPS * GROUP_STAT_SIZE:
        raise ProtocolError(f"a list of groups cannot have {len(body)} bytes")
    return [
        GroupStat.decode(body[start : start + GROUP_STAT_SIZE])
        for start in range(0, len(body), GROUP_STAT_SIZE)
    ]


@dataclass(frozen=True, slots=True)
class StorageStat:
    """One record of 92, 487 or 517 bytes (wire.md section 3.3).

    Layout: status 1, rw_mode 1, id 16, ip 16/46, source id 16, version 8, ten i64 from join_time
    to storage_port, statistics 348, is_trunk_server 1. ``rw_mode``: 0 none, 2 write, 4 read,
    6 both. ``source_id`` is whom it was first synced from, or ''. ``up_time`` is the time of its
    start, 0 when it is offline. Times in Unix seconds.
    """

    status: ServerStatus
    rw_mode: int
    storage_id: str
    ip: str
    source_id: str
    version: str
    join_time: int
    up_time: int
    total_mb: int
    free_mb: int
    reserved_mb: int
    upload_priority: int
    store_path_count: int
    subdir_count_per_path: int
    current_write_path: int
    storage_port: int
    statistics: Statistics = field(default_factory=Statistics)
    is_trunk_server: bool = False

    def encode(self, ip_size: int) -> bytes:
        """487 bytes with *ip_size* 16, 517 with 46."""
        return b"".join(
            (
                bytes((self.status, self.rw_mode)),
                pack_text(self.storage_id, STORAGE_ID_SIZE),
                pack_text(self.ip, ip_size),
                pack_text(self.source_id, STORAGE_ID_SIZE),
                pack_text(self.version, 8),
                _STORAGE_NUMBERS.pack(
                    self.join_time,
                    self.up_time,
                    self.total_mb,
                    self.free_mb,
                    self.reserved_mb,
                    self.upload_priority,
                    self.store_path_count,
                    self.subdir_count_per_path,
                    self.current_write_path,
                    self.storage_port,
                ),
                self.statistics.encode(),
                bytes((self.is_trunk_server,)),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> StorageStat:
        """Raises ProtocolError."""
        ip_size = len(data) - STORAGE_STAT_REST
        if ip_size not in (IPV4_SIZE, IPV6_SIZE):
            raise ProtocolError(f"a storage record cannot have {len(data)} bytes")
        rest = data[18 + ip_size :]
        numbers = _STORAGE_NUMBERS.unpack(rest[24:104])
        statistics = Statistics.decode(rest[104 : 104 + STATISTICS_SIZE])
        return cls(
            decode_status(data[0]),
            data[1],
            unpack_text(data[2:18]),
            unpack_text(data[18 : 18 + ip_size]),
            unpack_text(rest[:16]),
            unpack_text(rest[16:24]),
            *(*numbers, statistics, rest[-1] != 0),
        )


STORAGE_STAT_REST = 2 + STORAGE_ID_SIZE + STORAGE_ID_SIZE + 8 + 80 + STATISTICS_SIZE + 1


def decode_storage_stats(body: bytes) -> list[StorageStat]:
    """All records of a response to 92. Raises ProtocolError."""
    size = STORAGE_STAT_REST + IPV4_SIZE
    if len(body) % size:
        size = STORAGE_STAT_REST + IPV6_SIZE
    if len(body) % size or len(body) > 2 * MAX_SERVERS_PER_GROUP * size:
        raise ProtocolError(f"a list of storages cannot have {len(body)} bytes")
    return [StorageStat.decode(body[start : start + size]) for start in range(0, len(body), size)]
