"""Replays what was captured from the reference trackers (protocol/wire.md section 6)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import IdType, TrunkConfig
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.proto.cluster_stats import (
    StorageState,
    StorageStats,
    VolumeStats,
    decode_tracker_stats,
)
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import (
    ServerStatus,
    StorageStat,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
    decode_group_stats,
    decode_storage_stats,
)
from tests.common.vectors import CLIENT, Vector
from tests.common.waiting import wait_for
from tests.daemons.tracker_server import TRACKER_IP, Peer, TestTracker, running_tracker

IDS_TABLE = """\
100001 group1 127.0.0.31:33000
100002 group1 127.0.0.32:33000 rw=read
100003 group1 127.0.0.33:33000 rw=write
100004 group2 127.0.0.34:33000 rw=none
"""
REPLAYED = [v for v in CLIENT if v.server == "tracker"]
VARYING = {
    "get_leader": "the tracker's own address",
    "tracker_cluster_stat": "the tracker's own address, times, and bytes that say nothing",
    "storage_cluster_stat": "bytes behind a NUL that say nothing",
    "storage_cluster_stat status=7": "the same",
    "storage_volume_stat": "the same",
    "storage_volume_stat trunk": "the same",
}
"""Exchanges whose answer cannot be the captured one in every byte, and why; their messages are
compared. All others are compared whole."""


UP_TIME = 1795354600
"""When the trackers of these tests were started, by their `Clock`."""


def is_trunk_mode(vector: Vector) -> bool:
    return "trunk" in vector.name and "not in trunk mode" not in vector.name


def is_id_mode(vector: Vector) -> bool:
    return (
        any(
            words in vector.name
            for words in ("IPv6-size", "id mode", "without writable storage", "fetch_storage_ids")
        )
        and "ip mode" not in vector.name
    )


def is_empty(vector: Vector) -> bool:
    return vector.name in {
        "query_store no group, no groups known",
        "list_all_groups none",
        "get_leader none",
        "tracker_cluster_stat not leader",
    }


@asynccontextmanager
async def tracker_of(vector: Vector, directory: Path) -> AsyncIterator[TestTracker]:
    """A tracker like the one that answered *vector*, with its storages."""
    async with AsyncExitStack() as stack:
        reserved = ReservedSpace.parse("99%" if "no free space" in vector.name else "1%")
        # slot_max_size is what the sample configuration has.
        trunk = TrunkConfig(use_trunk_file=is_trunk_mode(vector), slot_max_size=1 << 20)
        if is_id_mode(vector):
            tracker = await stack.enter_async_context(
                running_tracker(
                    directory,
                    reserved_storage_space=reserved,
                    trunk=trunk,
                    response_ip_addr_size=46,
                    storage_ids=StorageIds.parse(IDS_TABLE, "ids"),
                    id_type_in_filename=IdType.ID,
                )
            )
            storages = [("group1", 31), ("group1", 32), ("group1", 33), ("group2", 34)]
            subdirs = 16
        else:
            tracker = await stack.enter_async_context(
                running_tracker(directory, reserved_storage_space=reserved, trunk=trunk)
            )
            storages = [("group1", 11), ("group1", 12), ("group2", 13)]
            if is_trunk_mode(vector):
                storages = [("group1", 51)]
            subdirs = 4
        if not is_empty(vector):
            listed = {stat.ip: stat for stat in _listed_storages(vector)}
            peers: dict[str, Peer] = {}
            for group, host in storages:
                ip = f"127.0.0.{host}"
                if ip in listed:
                    peers[ip] = await tracker.active_like(group, listed[ip])
                else:
                    peers[ip] = await tracker.active(
                        ip,
                        group=group,
                        subdir_count_per_path=subdirs,
                        space=_space_in(vector, group),
                    )
            for ip, stat in listed.items():
                others = tracker.cluster.groups["group1"].servers
                other_id = next(other for other in others if other != stat.storage_id)
                await tracker.report_like(peers[ip], stat, other_id)
        if "already deleted" in vector.name:
            peer = await tracker.active(
                "127.0.0.52", subdir_count_per_path=subdirs, space=_space_in(vector, "group1")
            )
            await peer.stream.aclose()
            await wait_for(lambda: tracker.status("127.0.0.52") is ServerStatus.OFFLINE)
            tracker.cluster.delete_storage("group1", "127.0.0.52")
        if is_trunk_mode(vector):
            tracker.cluster.set_trunk_server("group1", "127.0.0.51")
            await peers["127.0.0.51"].ok(74, struct.pack(">q", 7))
        _turn_counters(vector, tracker)
        yield tracker


def _listed_storages(vector: Vector) -> list[StorageStat]:
    if vector.status != 0:
        return []
    if vector.command == TrackerCommand.STORAGE_STATS:
        states = StorageStats.decode(vector.response_body).storages
        return [_storage_stat(state) for state in states]
    return decode_storage_stats(vector.response_body) if vector.command == 92 else []


def _storage_stat(state: StorageState) -> StorageStat:
    """What a storage has to report so that the tracker tells *state* of it."""
    ip, _, port = state.host.rpartition(":")
    allocated, current, most = state.connections
    return StorageStat(
        *(state.status, 6, state.storage_id, ip, "", state.version, 1, state.up_time),
        *(1000, 500, 10, 10, 2, 4, 0, int(port)),
        statistics=Statistics(
            allocated, current, most, last_heart_beat_time=state.last_heart_beat_time
        ),
    )


def _space_in(vector: Vector, group: str) -> tuple[tuple[int, int], ...]:
    """Store paths whose sum is what the captured answer says about *group*."""
    total_mb, free_mb = 516038, 148000
    if vector.command in (90, 91):
        for stat in decode_group_stats(vector.response_body):
            if stat.group == group:
                total_mb, free_mb = stat.total_mb, stat.free_mb
    if vector.command == TrackerCommand.VOLUME_STATS and vector.status == 0:
        for volume in VolumeStats.decode(vector.response_body).volumes:
            total_mb, free_mb = volume.total_mb, volume.free_mb
    half = (total_mb // 2, free_mb // 2)
    return half, (total_mb - half[0], free_mb - half[1])


def _turn_counters(vector: Vector, tracker: TestTracker) -> None:
    """Set the round-robin counters to what they were when *vector* was captured."""
    if vector.status != 0 or vector.command not in (101, 104, 106, 107):
        return
    target: StoreTarget | StoreTargets
    if vector.command in (101, 104):
        target = StoreTarget.decode(vector.response_body)
        endpoint = target.endpoint
    else:
        target = StoreTargets.decode(vector.response_body)
        endpoint = target.endpoints[0]
    names = sorted(tracker.cluster.groups)
    tracker.cluster.placement.next_group = names.index(target.group)
    group = tracker.cluster.groups[target.group]
    group.next_write_server = [server.ip for server in group.writable].index(endpoint.ip)
    group.writable[group.next_write_server].next_write_path = target.path_index


def compare_messages(vector: Vector, response: bytes, tracker: TestTracker) -> None:
    """Compare an answer that varies by what its fields mean."""
    assert response[:10] == vector.response[:10]
    ours, theirs = response[10:], vector.response_body
    own_address = f"{TRACKER_IP}:{tracker.port}"
    if vector.command == TrackerCommand.GET_LEADER:
        assert ours == own_address.encode()
    elif vector.command == TrackerCommand.TRACKER_STATS:
        ((our,), (their,)) = decode_tracker_stats(ours), decode_tracker_stats(theirs)
        allowed, current, most = our.connections
        assert (allowed, current) == (256, len(tracker.peers))
        assert most >= current
        assert our == replace(
            their,
            host=own_address,
            connections=our.connections,
            up_time=UP_TIME,
        )
    elif vector.command == TrackerCommand.STORAGE_STATS:
        assert StorageStats.decode(ours) == StorageStats.decode(theirs)
    else:
        assert VolumeStats.decode(ours) == VolumeStats.decode(theirs)


@pytest.mark.parametrize("vector", REPLAYED, ids=lambda v: v.name)
async def test_captured_exchange(vector: Vector, tmp_path: Path) -> None:
    async with tracker_of(vector, tmp_path) as tracker:
        peer = await tracker.connect()
        await peer.send(vector.request)
        if "half-closes" in vector.name:
            await peer.stream.send_eof()
        response = await peer.receive_packet()
        if vector.name in VARYING:
            compare_messages(vector, response, tracker)
        else:
            assert response == vector.response
        if "half-closes" not in vector.name:
            assert await peer.closed() is vector.closed
