"""What a tracker tells in answers to 96, 97 and 98: records that pass the filter of the request.

Source: protocol/wire.md section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.groups import Group, Server, is_trunk_server
from fdfsfuse.proto.address import encode_address
from fdfsfuse.proto.cluster_stats import (
    BY_ACTIVE,
    BY_DISK,
    BY_LEADER,
    BY_SPACE,
    BY_STATUS,
    BY_TRUNK,
    BY_TRUNK_SERVER,
    StorageFilter,
    StorageState,
    StorageStats,
    TrackerFilter,
    TrackerStat,
    VolumeFilter,
    VolumeStat,
    VolumeStats,
)


def tracker_stats(trackers: Iterable[TrackerStat], wanted: TrackerFilter) -> list[TrackerStat]:
    """Answer to 96, of *trackers* in their order."""
    return [
        tracker
        for tracker in trackers
        if (not wanted.mask & BY_ACTIVE or tracker.is_active == wanted.is_active)
        and (not wanted.mask & BY_LEADER or tracker.is_leader == wanted.is_leader)
    ]


def storage_stats(
    groups: Mapping[str, Group], config: TrackerConfig, wanted: StorageFilter
) -> StorageStats:
    """Answer to 97: the storages of all groups, by group and id."""
    use_trunk = config.trunk.use_trunk_file
    found = [
        state
        for _, group in sorted(groups.items())
        for state in (_state(group, server) for server in group.sorted_servers())
        if (
            not wanted.mask & BY_TRUNK_SERVER
            or not use_trunk
            or state.is_trunk_server == wanted.is_trunk_server
        )
        and (not wanted.mask & BY_STATUS or _has_status(state, wanted))
    ]
    return StorageStats(config.use_storage_id, use_trunk, tuple(found))


def _has_status(state: StorageState, wanted: StorageFilter) -> bool:
    if wanted.operator == "=":
        return state.status == wanted.status
    return wanted.operator == "!" and state.status != wanted.status


def _state(group: Group, server: Server) -> StorageState:
    statistics = server.statistics
    return StorageState(
        server.storage_id,
        encode_address(server.ip, server.port),
        is_trunk_server(group, server),
        server.status,
        (
            statistics.connections_allocated,
            statistics.connections_current,
            statistics.connections_max,
        ),
        server.version,
        server.up_time,
        statistics.last_heart_beat_time,
    )


def volume_stats(
    groups: Mapping[str, Group], config: TrackerConfig, wanted: VolumeFilter
) -> VolumeStats:
    """Answer to 98: the groups by name."""
    use_trunk = config.trunk.use_trunk_file
    found = [_volume(group, config) for _, group in sorted(groups.items())]
    return VolumeStats(
        use_trunk, tuple(volume for volume in found if _is_wanted(volume, wanted, use_trunk))
    )


def _is_wanted(volume: VolumeStat, wanted: VolumeFilter, use_trunk: bool) -> bool:
    disk, trunk = volume.disk_available, volume.trunk_available
    if wanted.mask & BY_DISK and disk != wanted.disk_available:
        return False
    if wanted.mask & BY_TRUNK and use_trunk and trunk != wanted.trunk_available:
        return False
    return not wanted.mask & BY_SPACE or (disk or trunk) == wanted.space_available


def _volume(group: Group, config: TrackerConfig) -> VolumeStat:
    reserved = config.reserved_storage_space
    free_mb, total_mb = group.least_space()
    reserved_mb = reserved.reserved_mb(total_mb)
    disk = reserved.group_has_space(free_mb, total_mb)
    trunk = config.trunk.use_trunk_file and reserved.group_has_space(
        free_mb + group.trunk_free_mb, total_mb
    )
    return VolumeStat(
        group.name,
        total_mb,
        free_mb,
        reserved_mb,
        free_mb - reserved_mb if disk else 0,
        group.trunk_free_mb if trunk else 0,
        disk,
        trunk,
    )
