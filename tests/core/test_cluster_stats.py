"""Filtered statistics (96, 97, 98): protocol/wire.md section 3.3."""

from __future__ import annotations

import pytest

from fdfsfuse.core.cluster_stats import storage_stats, tracker_stats, volume_stats
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import TrackerConfig, TrunkConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.storage_ids import RW_BOTH
from fdfsfuse.proto.cluster_stats import (
    BY_ACTIVE,
    BY_DISK,
    BY_LEADER,
    BY_SPACE,
    BY_STATUS,
    BY_TRUNK,
    BY_TRUNK_SERVER,
    StorageFilter,
    TrackerFilter,
    TrackerStat,
    VolumeFilter,
    VolumeStat,
)
from fdfsfuse.proto.tracker import ServerStatus

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def config(*, trunk: bool = False) -> TrackerConfig:
    return TrackerConfig(
        base_path="/t",
        reserved_storage_space=ReservedSpace(100),
        trunk=TrunkConfig(use_trunk_file=trunk),
    )


def group(name: str, free_mb: int, *storage_ids: str) -> Group:
    servers = {ip: Server(ip, (ip,), 23000, ServerStatus.ACTIVE, RW_BOTH) for ip in storage_ids}
    for server in servers.values():
        server.report_space(((1000, free_mb),))
    made = Group(name, servers=servers)
    made.refresh()
    return made


# --- 96 -------------------------------------------------------------------------------------------


def tracker(host: str, *, leader: bool, active: bool) -> TrackerStat:
    return TrackerStat(host, leader, active, (1, 1, 1), "1", 5, 6)


@pytest.mark.parametrize(
    ("wanted", "hosts"),
    [
        (TrackerFilter(), "abc"),
        (TrackerFilter(BY_ACTIVE, True), "ab"),
        (TrackerFilter(BY_ACTIVE, False), "c"),
        (TrackerFilter(BY_LEADER, False, True), "a"),
        (TrackerFilter(BY_ACTIVE | BY_LEADER, True, False), "b"),
        (TrackerFilter(BY_ACTIVE | BY_LEADER, False, True), ""),
    ],
)
def test_trackers(wanted: TrackerFilter, hosts: str) -> None:
    trackers = [
        tracker("a", leader=True, active=True),
        tracker("b", leader=False, active=True),
        tracker("c", leader=False, active=False),
    ]
    assert "".join(stat.host for stat in tracker_stats(trackers, wanted)) == hosts


# --- 97 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "trunk", "ids"),
    [
        (StorageFilter(), False, [C, A, B]),
        (StorageFilter(BY_STATUS, "=", 7), False, [C, A]),
        (StorageFilter(BY_STATUS, "!", 7), False, [B]),
        (StorageFilter(BY_STATUS, "<", 7), False, []),
        (StorageFilter(BY_TRUNK_SERVER, is_trunk_server=True), False, [C, A, B]),
        (StorageFilter(BY_TRUNK_SERVER, is_trunk_server=True), True, [A]),
        (StorageFilter(BY_TRUNK_SERVER | BY_STATUS, "=", 5, False), True, [B]),
    ],
)
def test_storages(wanted: StorageFilter, trunk: bool, ids: list[str]) -> None:
    second = group("group2", 500, B, A)
    second.servers[B].status = ServerStatus.OFFLINE
    second.trunk_server = A
    groups = {"group2": second, "group1": group("group1", 500, C)}
    stats = storage_stats(groups, config(trunk=trunk), wanted)
    assert [storage.storage_id for storage in stats.storages] == ids
    assert (stats.use_storage_id, stats.use_trunk_file) == (False, trunk)


# --- 98 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "trunk", "names"),
    [
        (VolumeFilter(), True, "123"),
        (VolumeFilter(BY_DISK, disk_available=True), True, "1"),
        (VolumeFilter(BY_DISK, disk_available=False), True, "23"),
        (VolumeFilter(BY_TRUNK, trunk_available=True), True, "12"),
        (VolumeFilter(BY_TRUNK, trunk_available=True), False, "123"),
        (VolumeFilter(BY_SPACE, space_available=True), True, "12"),
        (VolumeFilter(BY_SPACE, space_available=False), True, "3"),
        (VolumeFilter(BY_SPACE, space_available=False), False, "23"),
        (VolumeFilter(BY_DISK | BY_TRUNK, False, True), True, "2"),
    ],
)
def test_volumes(wanted: VolumeFilter, trunk: bool, names: str) -> None:
    groups = {
        "1": group("1", 500, A),
        "2": group("2", 90, B),
        "3": group("3", 90, C),
    }
    groups["2"].trunk_free_mb = 20
    stats = volume_stats(groups, config(trunk=trunk), wanted)
    assert "".join(volume.group for volume in stats.volumes) == names


def test_what_is_not_available_counts_as_nothing() -> None:
    full = group("full", 100, A)
    full.trunk_free_mb = 20
    (without,) = volume_stats({"full": full}, config(), VolumeFilter()).volumes
    assert without == VolumeStat("full", 1000, 100, 100, 0, 0, False, False)
    (within,) = volume_stats({"full": full}, config(trunk=True), VolumeFilter()).volumes
    assert within == VolumeStat("full", 1000, 100, 100, 0, 20, False, True)
