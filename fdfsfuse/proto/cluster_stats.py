"""Filtered statistics of trackers, storages and groups (96, 97, 98).

Source: protocol/wire.md section 3.3. A request has a mask of filters (0: everything) and the wanted
values; text fields end at a NUL, and what is behind it is undefined. All big-endian.

==== ===================== ================== ==========================================
code command               request            response
==== ===================== ================== ==========================================
96   TRACKER_STATS         TrackerFilter, 3   count 1, TrackerStat ... of 90 bytes
97   STORAGE_STATS         StorageFilter, 4   StorageStats: head 6, records of 106 bytes
98   VOLUME_STATS          VolumeFilter, 4    VolumeStats: head 5, records of 59 bytes
==== ===================== ================== ==========================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.header import STORAGE_ID_SIZE, expect_size, pack_text, unpack_text
from fdfsfuse.proto.tracker import ServerStatus, decode_status

HOST_SIZE = 52
BY_ACTIVE, BY_LEADER = 1, 2
BY_TRUNK_SERVER, BY_STATUS = 1, 2
BY_DISK, BY_TRUNK, BY_SPACE = 1, 2, 4

_TRACKER = struct.Struct(">52sBB3i8sqq")
_STORAGE = struct.Struct(">16s52sBB3i8sqq")
_VOLUME = struct.Struct(">17s5qBB")
_STORAGES_HEAD = struct.Struct(">BBi")
_VOLUMES_HEAD = struct.Struct(">Bi")


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    expect_size("a record", data, layout.size)
    return layout.unpack(data)


def _fields(body: bytes, count: int) -> Sequence[int]:
    expect_size("a filter", body, count)
    return body


@dataclass(frozen=True, slots=True)
class TrackerFilter:
    """Request of 96: mask (`BY_ACTIVE`, `BY_LEADER`), wanted is_active, wanted is_leader."""

    mask: int = 0
    is_active: bool = False
    is_leader: bool = False

    def encode(self) -> bytes:
        """3 bytes."""
        return bytes((self.mask, self.is_active, self.is_leader))

    @classmethod
    def decode(cls, body: bytes) -> TrackerFilter:
        """Raises ProtocolError."""
        mask, is_active, is_leader = _fields(body, 3)
        return cls(mask, bool(is_active), bool(is_leader))


@dataclass(frozen=True, slots=True)
class StorageFilter:
    """Request of 97: mask (`BY_TRUNK_SERVER`, `BY_STATUS`), operator, status, is_trunk_server.

    ``operator`` is ``=`` or ``!``; with any other one no storage has the wanted status.
    """

    mask: int = 0
    operator: str = "="
    status: int = 0
    is_trunk_server: bool = False

    def encode(self) -> bytes:
        """4 bytes."""
        return bytes((self.mask, ord(self.operator), self.status, self.is_trunk_server))

    @classmethod
    def decode(cls, body: bytes) -> StorageFilter:
        """Raises ProtocolError."""
        mask, operator, status, is_trunk_server = _fields(body, 4)
        return cls(mask, chr(operator), status, bool(is_trunk_server))


@dataclass(frozen=True, slots=True)
class VolumeFilter:
    """Request of 98: mask (`BY_DISK`, `BY_TRUNK`, `BY_SPACE`) and what is wanted of each."""

    mask: int = 0
    disk_available: bool = False
    trunk_available: bool = False
    space_available: bool = False

    def encode(self) -> bytes:
        """4 bytes."""
        wanted = (self.disk_available, self.trunk_available, self.space_available)
        return bytes((self.mask, *wanted))

    @classmethod
    def decode(cls, body: bytes) -> VolumeFilter:
        """Raises ProtocolError."""
        mask, disk, trunk, space = _fields(body, 4)
        return cls(mask, bool(disk), bool(trunk), bool(space))


@dataclass(frozen=True, slots=True)
class TrackerStat:
    """One tracker: ``host`` is ``ip:port``; times are Unix seconds, 0 = never.

    Layout: host 52, is leader 1, is active 1, connections allocated, current, max (3 x i32),
    version 8, up time 8, last heartbeat 8. A leader sends no heartbeats.
    """

    host: str
    is_leader: bool
    is_active: bool
    connections: tuple[int, int, int]
    version: str
    up_time: int
    last_heart_beat_time: int

    def encode(self) -> bytes:
        """90 bytes."""
        return _TRACKER.pack(
            pack_text(self.host, HOST_SIZE),
            self.is_leader,
            self.is_active,
            *self.connections,
            pack_text(self.version, 8),
            self.up_time,
            self.last_heart_beat_time,
        )

    @classmethod
    def decode(cls, data: bytes) -> TrackerStat:
        """Raises ProtocolError unless *data* has 90 bytes."""
        host, leader, active, *connections, version, up_time, beat = _unpack(_TRACKER, data)
        allocated, current, most = connections
        return cls(
            unpack_text(host),
            bool(leader),
            bool(active),
            (allocated, current, most),
            unpack_text(version),
            up_time,
            beat,
        )


def encode_tracker_stats(stats: Sequence[TrackerStat]) -> bytes:
    """The response to 96."""
    return bytes((len(stats),)) + b"".join(stat.encode() for stat in stats)


def decode_tracker_stats(body: bytes) -> list[TrackerStat]:
    """The response to 96. Raises ProtocolError."""
    if not body or len(body) != 1 + body[0] * _TRACKER.size:
        raise ProtocolError(f"statistics of trackers cannot have {len(body)} bytes")
    return [TrackerStat.decode(part) for part in _parts(body[1:], _TRACKER.size)]


@dataclass(frozen=True, slots=True)
class StorageState:
    """One storage of `StorageStats`.

    Layout: id 16, host 52 (``ip:port``), is trunk server 1, status 1, connections allocated,
    current, max (3 x i32), version 8, up time 8, last heartbeat 8.
    """

    storage_id: str
    host: str
    is_trunk_server: bool
    status: ServerStatus
    connections: tuple[int, int, int]
    version: str
    up_time: int
    last_heart_beat_time: int

    def encode(self) -> bytes:
        """106 bytes."""
        return _STORAGE.pack(
            pack_text(self.storage_id, STORAGE_ID_SIZE),
            pack_text(self.host, HOST_SIZE),
            self.is_trunk_server,
            self.status,
            *self.connections,
            pack_text(self.version, 8),
            self.up_time,
            self.last_heart_beat_time,
        )

    @classmethod
    def decode(cls, data: bytes) -> StorageState:
        """Raises ProtocolError unless *data* has 106 bytes and a status that exists."""
        storage_id, host, trunk, status, *connections, version, up_time, beat = _unpack(
            _STORAGE, data
        )
        allocated, current, most = connections
        return cls(
            unpack_text(storage_id),
            unpack_text(host),
            bool(trunk),
            decode_status(status),
            (allocated, current, most),
            unpack_text(version),
            up_time,
            beat,
        )


@dataclass(frozen=True, slots=True)
class StorageStats:
    """Response of 97: use_storage_id 1, use_trunk_file 1, count i32, then the records."""

    use_storage_id: bool
    use_trunk_file: bool
    storages: tuple[StorageState, ...]

    def encode(self) -> bytes:
        """The body."""
        head = _STORAGES_HEAD.pack(self.use_storage_id, self.use_trunk_file, len(self.storages))
        return head + b"".join(storage.encode() for storage in self.storages)

    @classmethod
    def decode(cls, body: bytes) -> StorageStats:
        """Raises ProtocolError."""
        if len(body) < _STORAGES_HEAD.size:
            raise ProtocolError(f"statistics of storages cannot have {len(body)} bytes")
        use_id, use_trunk, count = _STORAGES_HEAD.unpack_from(body)
        if len(body) != _STORAGES_HEAD.size + count * _STORAGE.size:
            raise ProtocolError(f"{count} storages in {len(body)} bytes")
        parts = _parts(body[_STORAGES_HEAD.size :], _STORAGE.size)
        return cls(bool(use_id), bool(use_trunk), tuple(StorageState.decode(p) for p in parts))


@dataclass(frozen=True, slots=True)
class VolumeStat:
    """One group of `VolumeStats`: group 17, five i64, two bytes.

    ``available_mb`` is what uploads may still use, 0 when the disk is not available: its free
    space is not above the reserved one. ``trunk_available``: it is, together with what is free
    inside trunk files.
    """

    group: str
    total_mb: int
    free_mb: int
    reserved_mb: int
    available_mb: int
    trunk_free_mb: int
    disk_available: bool
    trunk_available: bool

    def encode(self) -> bytes:
        """59 bytes."""
        return _VOLUME.pack(
            pack_text(self.group, 17),
            self.total_mb,
            self.free_mb,
            self.reserved_mb,
            self.available_mb,
            self.trunk_free_mb,
            self.disk_available,
            self.trunk_available,
        )

    @classmethod
    def decode(cls, data: bytes) -> VolumeStat:
        """Raises ProtocolError unless *data* has 59 bytes."""
        group, total, free, reserved, available, trunk_free, disk, trunk = _unpack(_VOLUME, data)
        return cls(
            unpack_text(group),
            total,
            free,
            reserved,
            available,
            trunk_free,
            bool(disk),
            bool(trunk),
        )


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """Response of 98: use_trunk_file 1, count i32, then the records."""

    use_trunk_file: bool
    volumes: tuple[VolumeStat, ...]

    def encode(self) -> bytes:
        """The body."""
        head = _VOLUMES_HEAD.pack(self.use_trunk_file, len(self.volumes))
        return head + b"".join(volume.encode() for volume in self.volumes)

    @classmethod
    def decode(cls, body: bytes) -> VolumeStats:
        """Raises ProtocolError."""
        if len(body) < _VOLUMES_HEAD.size:
            raise ProtocolError(f"statistics of groups cannot have {len(body)} bytes")
        use_trunk, count = _VOLUMES_HEAD.unpack_from(body)
        if len(body) != _VOLUMES_HEAD.size + count * _VOLUME.size:
            raise ProtocolError(f"{count} groups in {len(body)} bytes")
        parts = _parts(body[_VOLUMES_HEAD.size :], _VOLUME.size)
        return cls(bool(use_trunk), tuple(VolumeStat.decode(part) for part in parts))


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
