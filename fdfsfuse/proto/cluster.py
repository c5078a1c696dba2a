"""Messages of storages to trackers; encode and decode of each sit together.

Those that ask who a storage is (60, 69 to 71, 109) are in `fdfsfuse.proto.storage_identity`, those
of trackers to trackers (58, 61 to 67) in `fdfsfuse.proto.tracker_peers`.

Source: protocol/cluster.md sections 1 to 4. ``decode`` takes a whole body and raises
ProtocolError when it is malformed. All ip fields have 46 bytes, all ids 16. Text fields are cut
at the first NUL: what follows may be anything.

==== ==================== ==================================== ===========================
code command              request                              response
==== ==================== ==================================== ===========================
58   JOIN_LEADER          JoinLeader                           empty
59   CHANGE_STATUS        1 byte                               empty
60   GET_MY_IP            MyIpRequest                          text ``ip`` or ``ip1,ip2``
61   SYSTEM_FILES_START   empty                                empty
62   SYSTEM_FILES_END     empty                                empty
63   GET_SYSTEM_FILE      SystemFileRequest                    SystemFilePart
64   TRACKER_STATUS       empty                                TrackerStatus
65   PING_LEADER          LeaderPing                           empty, or TrunkServers
66   NOTIFY_NEXT_LEADER   text ``ip:port``                     empty
67   COMMIT_NEXT_LEADER   text ``ip:port``                     empty
68   RESELECT_LEADER      empty                                empty
69   FETCH_STORAGE_IDS    StorageIdsRequest                    StorageIdsPart
70   GET_STORAGE_ID       ServerQuery                          text id
71   GET_STORAGE_STATUS   ServerQuery                          Brief
72   FETCH_TRUNK_FILE_ID  empty                                i32
73   REPORT_TRUNK_FILE_ID i32                                  empty
74   REPORT_TRUNK_FREE    i64, MB                              empty
75   GET_PARAMETERS       empty                                Parameters
76   REPORT_STATUS        StatusReport                         empty
77   CHANGELOG            empty (joined) or ServerKey          raw changelog lines
78   IP_CHANGED           IpChange (proto/changelog.py)        empty
79   SYNC_DEST_QUERY      empty                                SyncSource or empty
81   JOIN                 Join                                 Joined
83   HEARTBEAT            empty or Statistics                  Changes
84   DISK_REPORT          DiskReport                           Changes
86   SYNC_SOURCE_REQUEST  ServerKey of the destination         SyncSource or empty
87   SYNC_DEST_REQUEST    empty                                SyncSource or empty
88   SYNC_NOTIFY          SyncSource                           empty
89   SYNC_REPORT          SyncReport                           Changes
109  GET_GROUP_NAME       port i32                             group 16
==== ==================== ==================================== ===========================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.address import check_port
from fdfsfuse.proto.fileid import check_group_name
from fdfsfuse.proto.header import (
    GROUP_NAME_SIZE,
    STORAGE_ID_SIZE,
    expect_size,
    pack_text,
    unpack_text,
)
from fdfsfuse.proto.tracker import MAX_SERVERS_PER_GROUP, ServerStatus, decode_status

VERSION = "6.16.1"
"""The version that we tell C servers and clients: the one whose protocol we speak."""

IP_SIZE = 46
BRIEF_SIZE = 67
SYNC_SOURCE_SIZE = 24
JOIN_SIZE = 145
MAX_TRACKERS = 16
MAX_TRACKER_LINE = 2 * IP_SIZE + 12
FLAG_LEADER, FLAG_TRUNK, FLAG_GROUP = 1, 2, 4
_MAX_BRIEFS = MAX_SERVERS_PER_GROUP + 2

_BRIEF = struct.Struct(">bi16s46s")
_SYNC_SOURCE = struct.Struct(">16sq")
_JOIN = struct.Struct(">17s6q8sbb16s46sq")
_PATH_SPACE = struct.Struct(">qq")
_SYNC_TIME = struct.Struct(">16si")


class ClusterCommand(IntEnum):
    """Command codes that storages and trackers send to trackers."""

    JOIN_LEADER = 58
    CHANGE_STATUS = 59
    GET_MY_IP = 60
    SYSTEM_FILES_START = 61
    SYSTEM_FILES_END = 62
    GET_SYSTEM_FILE = 63
    TRACKER_STATUS = 64
    PING_LEADER = 65
    NOTIFY_NEXT_LEADER = 66
    COMMIT_NEXT_LEADER = 67
    RESELECT_LEADER = 68
    FETCH_STORAGE_IDS = 69
    GET_STORAGE_ID = 70
    GET_STORAGE_STATUS = 71
    FETCH_TRUNK_FILE_ID = 72
    REPORT_TRUNK_FILE_ID = 73
    REPORT_TRUNK_FREE = 74
    GET_PARAMETERS = 75
    REPORT_STATUS = 76
    CHANGELOG = 77
    IP_CHANGED = 78
    SYNC_DEST_QUERY = 79
    JOIN = 81
    QUIT = 82
    HEARTBEAT = 83
    DISK_REPORT = 84
    REPLICA_CHANGE = 85
    SYNC_SOURCE_REQUEST = 86
    SYNC_DEST_REQUEST = 87
    SYNC_NOTIFY = 88
    SYNC_REPORT = 89
    GET_GROUP_NAME = 109


@dataclass(frozen=True, slots=True)
class Brief:
    """A storage in 67 bytes: status i8, port i32, id 16, ip 46.

    All zero stands for "none". Port 0 occurs in reports and for servers whose ip changed.
    """

    status: ServerStatus
    port: int
    storage_id: str
    ip: str

    def encode(self) -> bytes:
        """67 bytes."""
        return _BRIEF.pack(
            self.status,
            self.port,
            pack_text(self.storage_id, STORAGE_ID_SIZE),
            pack_text(self.ip, IP_SIZE),
        )

    @classmethod
    def decode(cls, data: bytes) -> Brief:
        """Raises ProtocolError."""
        expect_size("a brief record", data, BRIEF_SIZE)
        status, port, storage_id, ip = _BRIEF.unpack(data)
        if not 0 <= port < 65536:
            raise ProtocolError(f"{port} is not a port")
        return cls(decode_status(status), port, unpack_text(storage_id), unpack_text(ip))


NO_SERVER = Brief(ServerStatus.INIT, 0, "", "")


def decode_briefs(data: bytes) -> tuple[Brief, ...]:
    """Any number of brief records. Raises ProtocolError."""
    if len(data) % BRIEF_SIZE or len(data) > _MAX_BRIEFS * BRIEF_SIZE:
        raise ProtocolError(f"a list of storages cannot have {len(data)} bytes")
    return tuple(
        Brief.decode(data[start : start + BRIEF_SIZE]) for start in range(0, len(data), BRIEF_SIZE)
    )


@dataclass(frozen=True, slots=True)
class SyncSource:
    """24 bytes: who sends a server its initial data, and the time until which old data counts.

    ``until`` is in Unix seconds. An empty ``source_id`` means that there is no source.
    """

    source_id: str = ""
    until: int = 0

    def encode(self) -> bytes:
        """24 bytes."""
        return _SYNC_SOURCE.pack(pack_text(self.source_id, STORAGE_ID_SIZE), self.until)

    @classmethod
    def decode(cls, body: bytes) -> SyncSource:
        """Raises ProtocolError unless *body* has 24 bytes."""
        expect_size("a sync source", body, SYNC_SOURCE_SIZE)
        source_id, until = _SYNC_SOURCE.unpack(body)
        return cls(unpack_text(source_id), until)


def decode_optional_source(body: bytes) -> SyncSource | None:
    """Response of 79, 86 and 87: empty means that there is no source."""
    return SyncSource.decode(body) if body else None


@dataclass(frozen=True, slots=True)
class ServerKey:
    """Request of 77 (before JOIN) and 86: group 16, storage id 16."""

    group: str
    storage_id: str

    def encode(self) -> bytes:
        """32 bytes."""
        return pack_text(self.group, GROUP_NAME_SIZE) + pack_text(self.storage_id, STORAGE_ID_SIZE)

    @classmethod
    def decode(cls, body: bytes) -> ServerKey:
        """Raises ProtocolError unless *body* has 32 bytes."""
        expect_size("a request with group and id", body, GROUP_NAME_SIZE + STORAGE_ID_SIZE)
        return cls(unpack_text(body[:GROUP_NAME_SIZE]), unpack_text(body[GROUP_NAME_SIZE:]))


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Request of 76, 83 bytes: group 16, a brief about any member."""

    group: str
    brief: Brief

    def encode(self) -> bytes:
        """83 bytes."""
        return pack_text(self.group, GROUP_NAME_SIZE) + self.brief.encode()

    @classmethod
    def decode(cls, body: bytes) -> StatusReport:
        """Raises ProtocolError."""
        expect_size("a status report", body, GROUP_NAME_SIZE + BRIEF_SIZE)
        return cls(unpack_text(body[:GROUP_NAME_SIZE]), Brief.decode(body[GROUP_NAME_SIZE:]))


@dataclass(frozen=True, slots=True)
class Join:
    """Request of 81: 145 bytes and a list of trackers (cluster.md section 2.6).

    ``join_time`` is the first start of this server ever, ``up_time`` the start of this process,
    both in Unix seconds. ``init_flag`` is True until the old sync has been decided. ``status`` is
    what the server was last told by any tracker, -1 while several trackers have not all answered.
    ``storage_id`` is '' without storage ids. ``tracker_ip`` is the address that the storage used
    for this tracker. ``trackers`` are ``ip:port`` texts, 1 to 16.
    """

    group: str
    port: int
    store_path_count: int
    subdir_count_per_path: int
    upload_priority: int
    join_time: int
    up_time: int
    version: str
    init_flag: bool
    status: int
    storage_id: str
    tracker_ip: str
    trackers: tuple[str, ...]

    def encode(self) -> bytes:
        """145 bytes and the list."""
        if not 1 <= len(self.trackers) <= MAX_TRACKERS:
            raise UsageError(f"{len(self.trackers)} trackers: must be 1 to {MAX_TRACKERS}")
        head = _JOIN.pack(
            pack_text(self.group, 17),
            self.port,
            self.store_path_count,
            self.subdir_count_per_path,
            self.upload_priority,
            self.join_time,
            self.up_time,
            pack_text(self.version, 8),
            self.init_flag,
            self.status,
            pack_text(self.storage_id, STORAGE_ID_SIZE),
            pack_text(self.tracker_ip, IP_SIZE),
            len(self.trackers),
        )
        return head + "".join(f"{tracker}\n" for tracker in self.trackers).encode("ascii")

    @classmethod
    def decode(cls, body: bytes) -> Join:
        """Raises ProtocolError, also for a group name that no group can have."""
        if len(body) < JOIN_SIZE:
            raise ProtocolError(f"a join has at least {JOIN_SIZE} bytes, not {len(body)}")
        (group, port, paths, subdirs, priority, join_time, up_time, *rest) = _JOIN.unpack(
            body[:JOIN_SIZE]
        )
        version, init_flag, status, storage_id, tracker_ip, count = rest
        if not 1 <= paths <= 256 or not 1 <= subdirs <= 256:
            raise ProtocolError(f"a join with {paths} store paths and {subdirs} sub directories")
        if not 1 <= count <= MAX_TRACKERS or len(body) > JOIN_SIZE + count * MAX_TRACKER_LINE:
            raise ProtocolError(f"a join with {count} trackers in {len(body)} bytes")
        text = body[JOIN_SIZE:].decode("ascii", "surrogateescape")
        try:
            group_name = check_group_name(unpack_text(group))
        except UsageError as exc:
            raise ProtocolError(str(exc)) from exc
        lines = text.split("\n")
        if lines.pop() or len(lines) != count or not all(lines):
            raise ProtocolError(f"a join whose list of trackers is not {count} lines")
        return cls(
            group_name,
            check_port(port),
            paths,
            subdirs,
            priority,
            join_time,
            up_time,
            unpack_text(version),
            init_flag != 0,
            status,
            unpack_text(storage_id),
            unpack_text(tracker_ip),
            tuple(lines),
        )


@dataclass(frozen=True, slots=True)
class Joined:
    """Response of 81, 17 bytes: the server's status, and whom it was first synced from or ''."""

    status: ServerStatus
    source_id: str

    def encode(self) -> bytes:
        """17 bytes."""
        return bytes((self.status,)) + pack_text(self.source_id, STORAGE_ID_SIZE)

    @classmethod
    def decode(cls, body: bytes) -> Joined:
        """Raises ProtocolError."""
        expect_size("the answer to a join", body, 1 + STORAGE_ID_SIZE)
        return cls(decode_status(body[0]), unpack_text(body[1:]))


@dataclass(frozen=True, slots=True)
class DiskReport:
    """Request of 84: per store path its total and free space in MB, two i64."""

    paths: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        """16 bytes per store path."""
        return b"".join(_PATH_SPACE.pack(total_mb, free_mb) for total_mb, free_mb in self.paths)

    @classmethod
    def decode(cls, body: bytes) -> DiskReport:
        """Raises ProtocolError, also for negative amounts."""
        if not body or len(body) % _PATH_SPACE.size or len(body) > 256 * _PATH_SPACE.size:
            raise ProtocolError(f"a disk report cannot have {len(body)} bytes")
        paths = tuple(_PATH_SPACE.iter_unpack(body))
        if any(total < 0 or free < 0 for total, free in paths):
            raise ProtocolError("a disk report with a negative amount")
        return cls(paths)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """Request of 89: per member its id 16 and the timestamp i32 of its last record received."""

    times: tuple[tuple[str, int], ...]

    def encode(self) -> bytes:
        """20 bytes per member."""
        return b"".join(
            _SYNC_TIME.pack(pack_text(storage_id, STORAGE_ID_SIZE), timestamp)
            for storage_id, timestamp in self.times
        )

    @classmethod
    def decode(cls, body: bytes) -> SyncReport:
        """Raises ProtocolError."""
        if not body or len(body) % _SYNC_TIME.size or len(body) > _MAX_BRIEFS * _SYNC_TIME.size:
            raise ProtocolError(f"a report of sync timestamps cannot have {len(body)} bytes")
        return cls(tuple((unpack_text(i), t) for i, t in _SYNC_TIME.iter_unpack(body)))


@dataclass(frozen=True, slots=True)
class Changes:
    """Response of 83, 84, 89: what changed since the last one (cluster.md section 3.2).

    None means "not sent". `NO_SERVER` as leader or trunk server means that there is none now.
    ``group`` is the whole list of members, sorted by id. An empty body means no change as well.
    """

    leader: Brief | None = None
    trunk_server: Brief | None = None
    group: tuple[Brief, ...] | None = None

    def encode(self) -> bytes:
        """One flags byte, then the parts in the order of the fields."""
        flags, parts = 0, b""
        if self.leader is not None:
            flags |= FLAG_LEADER
            parts += self.leader.encode()
        if self.trunk_server is not None:
            flags |= FLAG_TRUNK
            parts += self.trunk_server.encode()
        if self.group is not None:
            flags |= FLAG_GROUP
            parts += b"".join(brief.encode() for brief in self.group)
        return bytes((flags,)) + parts

    @classmethod
    def decode(cls, body: bytes) -> Changes:
        """Raises ProtocolError."""
        if not body:
            return cls()
        flags, briefs = body[0], list(decode_briefs(body[1:]))
        if flags & ~(FLAG_LEADER | FLAG_TRUNK | FLAG_GROUP):
            raise ProtocolError(f"unknown flags {flags} in a heartbeat's answer")
        try:
            leader = briefs.pop(0) if flags & FLAG_LEADER else None
            trunk_server = briefs.pop(0) if flags & FLAG_TRUNK else None
        except IndexError:
            raise ProtocolError("a heartbeat's answer lacks a part that it announces") from None
        if briefs and not flags & FLAG_GROUP:
            raise ProtocolError("a heartbeat's answer has a part that it does not announce")
        return cls(leader, trunk_server, tuple(briefs) if flags & FLAG_GROUP else None)
