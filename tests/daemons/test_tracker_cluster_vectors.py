"""Replays every captured exchange of storages and trackers with a tracker (vectors/cluster.json).

Each exchange finds a tracker in the state that the captured one was in, and the answer is compared
whole. Only the tracker's port varies (the kernel gives it); it is put in its place in both.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import IdType, TrunkConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.proto.cluster import Join, SyncSource
from fdfsfuse.proto.tracker import ServerStatus as S
from tests.common.addresses import reserved_port
from tests.common.vectors import CLUSTER, Vector
from tests.daemons.tracker_server import Clock, Peer, TestTracker, running_tracker

CAPTURED_PORT = 42122
STORAGE_PORT = 43000
REPLAYED = [vector for vector in CLUSTER if vector.server == "tracker"]

IDS = """\
100001 group1 127.0.0.71:43000
100002 group1 127.0.0.72:43000
100003 group1 127.0.0.73:43000 rw=read
"""
TWO_INSTANCES = """\
100011 group1 127.0.0.92:43000
100012 group1 127.0.0.92:43001
"""
TRUNK = TrunkConfig(
    slot_max_size=1 << 20,
    alloc_alignment_size=256,
    free_space_merge=True,
    create_file_space_threshold=20 << 30,
    compress_binlog_min_interval_s=86400,
    compress_binlog_interval_s=86400,
    binlog_max_backups=7,
)
TRUNK_ON = TrunkConfig(
    use_trunk_file=True,
    slot_max_size=65536,
    alloc_alignment_size=256,
    file_size=4 << 20,
    free_space_merge=True,
    compress_binlog_min_interval_s=86400,
    compress_binlog_interval_s=86400,
    binlog_max_backups=7,
)

Step = Callable[[TestTracker, Peer], Awaitable[None]]


@dataclass
class Scene:
    """What a tracker knows when an exchange begins.

    ``source`` is where the request comes from, ``members`` are (id, status) of group1. With
    ``joined`` the connection has sent JOIN, with ``told`` also heartbeats until there was no more
    news. ``then`` is done last.
    """

    source: str
    tracker_ip: str = "127.0.0.11"
    members: dict[str, S] = field(default_factory=dict)
    joined: str = ""
    told: bool = False
    then: Step | None = None
    now_s: int = 1795353700
    ids: str = ""
    second_tracker: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def add(tracker: TestTracker, storage_id: str, status: S, port: int = STORAGE_PORT) -> Server:
    """A member, as if it had joined before."""
    table = tracker.tracker.config.storage_ids
    entry = table.by_id(storage_id) if table is not None else None
    group = tracker.cluster.groups.setdefault("group1", Group("group1", port, 1, 4))
    server = Server(storage_id, entry.hosts if entry else (storage_id,), port, status)
    server.subdir_count_per_path = 4
    server.join_time = 1795353665
    server.version = "6.16.1"
    group.servers[storage_id] = server
    group.refresh()
    return server


def server_of(tracker: TestTracker, storage_id: str) -> Server:
    return tracker.cluster.groups["group1"].servers[storage_id]


def change(tracker: TestTracker, storage_id: str, status: S) -> None:
    server_of(tracker, storage_id).status = status
    tracker.cluster.groups["group1"].refresh()


def status(storage_id: str, wanted: S) -> Step:
    """A member changes its state, or a new one appears."""

    async def then(tracker: TestTracker, _: Peer) -> None:
        if storage_id in tracker.cluster.groups["group1"].servers:
            change(tracker, storage_id, wanted)
        else:
            add(tracker, storage_id, wanted)

    return then


def source(storage_id: str, source_id: str, until: int) -> Step:
    async def then(tracker: TestTracker, _: Peer) -> None:
        server_of(tracker, storage_id).source = SyncSource(source_id, until)

    return then


def changelog(reader: str, line: str) -> Step:
    async def then(tracker: TestTracker, _: Peer) -> None:
        tracker.cluster.changelog = b"1 group1 127.0.0.9 4 \n"
        server_of(tracker, reader).changelog_offset = len(tracker.cluster.changelog)
        tracker.cluster.changelog += line.encode()

    return then


async def stub_with_changed_ip(tracker: TestTracker, _: Peer) -> None:
    tracker.cluster.change_ip("group1", "127.0.0.22", "127.0.0.24")
    change(tracker, "127.0.0.24", S.ACTIVE)


def trunk_server(storage_id: str) -> Step:
    async def then(tracker: TestTracker, _: Peer) -> None:
        tracker.cluster.set_trunk_server("group1", storage_id)

    return then


async def lead(tracker: TestTracker, _: Peer) -> None:
    tracker.tracker.node.leadership.adopt(tracker.tracker.node.trackers.own)


async def follow(tracker: TestTracker, peer: Peer) -> None:
    """The connection is that of a follower."""
    await lead(tracker, peer)
    await peer.ok(58, struct.pack(">q8sq", 1, b"6.16.1", tracker.port))


async def follow_trunk(tracker: TestTracker, peer: Peer) -> None:
    await follow(tracker, peer)
    tracker.cluster.set_trunk_server("group1", "100001")


async def notified(_: TestTracker, peer: Peer) -> None:
    await peer.ok(66, f"127.0.0.62:{_.port}".encode())


async def files_put_aside(tracker: TestTracker, peer: Peer) -> None:
    tracker.cluster.changelog = b""
    await peer.ok(61)


A, B, C, D = "127.0.0.21", "127.0.0.22", "127.0.0.23", "127.0.0.24"
DELETED_LINE = "1795353293 group1 127.0.0.22 4 \n"
MOVED_LINE = "1795353381 group1 127.0.0.22 3 127.0.0.24\n"
TWO: dict[str, Any] = {"tracker_ip": "127.0.0.61", "second_tracker": "127.0.0.62", "ids": IDS}
UNTIL = 0x6B02E947


def alone(source: str = A, **changes: Any) -> Scene:
    return Scene(source, members={A: S.ACTIVE}, **changes)


def joined(storage_id: str = A, **changes: Any) -> Scene:
    changes.setdefault("members", {storage_id: S.ACTIVE})
    return Scene(storage_id, joined=storage_id, **changes)


SCENES: dict[str, Scene] = {
    "get_my_ip": Scene(A),
    "parameter_req": Scene(A, settings={"trunk": TRUNK}),
    "parameter_req_storage_id": Scene("127.0.0.71", ids=IDS, settings={"trunk": TRUNK_ON}),
    "fetch_storage_ids": Scene("127.0.0.71", ids=IDS),
    "fetch_storage_ids_not_in_use": Scene(A),
    "fetch_storage_ids_not_in_use_refused": Scene(A),
    "get_server_id": Scene("127.0.0.92", ids=TWO_INSTANCES),
    "get_server_id_no_ids": Scene("127.0.0.83"),
    "get_group_name_port": Scene("127.0.0.92", ids=TWO_INSTANCES),
    "get_group_name_no_ids": Scene(A),
    "get_status": Scene(A, members={A: S.ACTIVE, C: S.OFFLINE}),
    "get_status_unknown": alone(),
    "get_status_no_port": alone(),
    "changelog_before_join_empty": Scene(B, members={B: S.OFFLINE}),
    "changelog_before_join_data": Scene(B, members={B: S.INIT}, then=changelog(B, DELETED_LINE)),
    "changelog_before_join_ip_changed": Scene(
        D, members={D: S.OFFLINE}, then=changelog(D, MOVED_LINE)
    ),
    "changelog_after_join_empty": joined(),
    "changelog_after_join_data": joined(then=changelog(A, DELETED_LINE)),
    "changelog_after_join_ip_changed": joined(then=changelog(A, MOVED_LINE)),
    "changelog_unknown_id": alone(),
    "report_ip_changed": Scene(D, members={A: S.ACTIVE, B: S.OFFLINE}),
    "report_ip_changed_same": Scene("127.0.0.83", members={"127.0.0.83": S.ACTIVE}),
    "report_ip_changed_wrong_peer": Scene("127.0.0.82", members={"127.0.0.82": S.ACTIVE}),
    "join_first_server": Scene(A),
    "join_second_server": Scene(B, members={A: S.ACTIVE}),
    "join_restart": Scene(B, members={A: S.ACTIVE, B: S.OFFLINE}, then=source(B, A, UNTIL)),
    "join_two_trackers": Scene("127.0.0.71", **TWO),
    "join_known_status": Scene(
        "127.0.0.71", **(TWO | {"tracker_ip": "127.0.0.62", "second_tracker": "127.0.0.61"})
    ),
    "join_stale_status": Scene(
        "127.0.0.72",
        **(TWO | {"tracker_ip": "127.0.0.62", "second_tracker": "127.0.0.61"}),
        members={"100001": S.ACTIVE, "100002": S.WAIT_SYNC},
        then=source("100002", "100001", UNTIL),
    ),
    "join_instance_on_other_port": Scene(
        "127.0.0.92", "127.0.0.91", ids=TWO_INSTANCES, members={"100011": S.ACTIVE}
    ),
    "join_bad_group_name": alone("127.0.0.29", tracker_ip="127.0.0.81"),
    "join_port_mismatch": alone("127.0.0.29", tracker_ip="127.0.0.81"),
    "join_unknown_status_minus1": alone("127.0.0.29", tracker_ip="127.0.0.81"),
    "join_no_trackers": alone("127.0.0.29", tracker_ip="127.0.0.81"),
    "sync_dest_req_none": joined(members={A: S.INIT}),
    "sync_dest_req_source": joined(B, members={A: S.ACTIVE, B: S.INIT}, now_s=UNTIL),
    "sync_dest_req_not_joined": alone(),
    "sync_notify_none": joined(members={A: S.ONLINE}),
    "sync_notify_source": joined(B, members={A: S.ACTIVE, B: S.WAIT_SYNC}),
    "sync_dest_query": joined(B, then=source(B, "127.0.0.82", 0x6B02EEF0)),
    "beat_stats_leader_and_group": joined(members={A: S.ACTIVE, B: S.WAIT_SYNC}),
    "beat_stats_flags_zero": joined(told=True),
    "beat_empty": joined(told=True),
    "beat_empty_group_change": joined(told=True, then=status(B, S.WAIT_SYNC)),
    "beat_three_servers": joined(
        members={A: S.ACTIVE, B: S.ACTIVE}, told=True, then=status(C, S.WAIT_SYNC)
    ),
    "beat_deleted_server_listed": joined(
        members={A: S.ACTIVE, B: S.OFFLINE, C: S.ACTIVE}, told=True, then=stub_with_changed_ip
    ),
    "beat_trunk_server_flags": joined(
        "100001",
        **TWO,
        members={"100001": S.ACTIVE, "100002": S.ACTIVE},
        told=True,
        then=trunk_server("100002"),
    ),
    "beat_leader_trunk_group": joined(
        "100001",
        **TWO,
        members={"100001": S.ACTIVE, "100002": S.ACTIVE, "100003": S.WAIT_SYNC},
        then=trunk_server("100001"),
    ),
    "beat_after_leader_change": joined(
        "100001", **TWO, members={"100001": S.ACTIVE, "100002": S.ACTIVE}
    ),
    "beat_not_joined": alone(),
    "disk_report": joined(told=True),
    "disk_report_group_change": joined(
        members={A: S.ACTIVE, B: S.ACTIVE, C: S.OFFLINE}, told=True, then=status(C, S.ACTIVE)
    ),
    "disk_report_bad_length": joined(),
    "sync_report": joined(B, members={A: S.ACTIVE, B: S.ACTIVE, C: S.ACTIVE}, told=True),
    "sync_report_group_change": joined(
        A, members={A: S.ACTIVE, B: S.ACTIVE}, told=True, then=status(B, S.OFFLINE)
    ),
    "change_status": joined(),
    "replica_chg": joined(),
    "sync_src_req_source": Scene(
        A, members={A: S.ACTIVE, B: S.WAIT_SYNC}, then=source(B, A, UNTIL)
    ),
    "sync_src_req_none": alone(),
    "sync_src_req_unknown": alone(),
    "report_status_syncing": Scene(A, members={A: S.ACTIVE, B: S.WAIT_SYNC}),
    "report_status_old_sync_done": Scene(A, members={A: S.ACTIVE, B: S.SYNCING}),
    "report_status_recovery": Scene(C, members={A: S.ACTIVE, C: S.OFFLINE}),
    "quit": alone(),
    "delete_storage": Scene("127.0.0.3", members={A: S.ACTIVE, B: S.OFFLINE}),
    "fetch_trunk_fid": joined(then=trunk_server(A)),
    "report_trunk_fid": joined(then=trunk_server(A)),
    "report_trunk_free": joined(then=trunk_server(A)),
    "report_trunk_fid_not_trunk_server": joined(),
    "report_trunk_free_not_trunk_server": joined(),
    "tracker_get_status_not_leader": Scene("127.0.0.62", **TWO, members={"100001": S.ACTIVE}),
    "tracker_get_status_no_groups": Scene("127.0.0.62", **TWO),
    "tracker_get_status_leader": Scene(
        "127.0.0.62", **TWO, members={"100001": S.ACTIVE}, then=lead
    ),
    "sys_files_start": Scene("127.0.0.62", **TWO, members={"100001": S.INIT}),
    **{
        name: Scene("127.0.0.62", **TWO, members={"100001": S.INIT}, then=files_put_aside)
        for name in (
            "sys_file_groups",
            "sys_file_servers",
            "sys_file_sync_timestamp",
            "sys_file_changelog",
            "sys_files_end",
        )
    },
    "notify_next_leader": Scene("127.0.0.62", **TWO),
    "commit_next_leader": Scene("127.0.0.62", **TWO, then=notified),
    "join_leader": Scene("127.0.0.62", **TWO, then=lead),
    "join_leader_not_leader": Scene("127.0.0.62", **TWO),
    "ping_leader_idle": Scene("127.0.0.62", **TWO, members={"100001": S.ACTIVE}, then=follow),
    "ping_leader_trunk_change": Scene(
        "127.0.0.62", **TWO, members={"100001": S.ACTIVE}, then=follow_trunk
    ),
    "ping_leader_not_joined": Scene("127.0.0.62", **TWO, then=lead),
    "ping_leader_not_leader": Scene("127.0.0.62", **TWO),
    "reselect_leader": Scene("127.0.0.71", **TWO, then=lead),
    "reselect_leader_not_leader": Scene("127.0.0.71", **TWO),
}
RESTARTED = {"tracker_get_status_leader": 300}
"""How long the tracker had been down, in seconds."""


@asynccontextmanager
async def playing(scene: Scene, directory: Path, down_s: int) -> AsyncIterator[TestTracker]:
    """A tracker in the state of *scene*, and the other one where there were two."""
    settings: dict[str, Any] = {
        "reserved_storage_space": ReservedSpace.parse("1%"),
        "bind_addr": (scene.tracker_ip,),
        **scene.settings,
    }
    if scene.ids:
        settings["storage_ids"] = StorageIds.parse(scene.ids, "ids")
        settings["id_type_in_filename"] = IdType.ID
    clock = Clock(scene.now_s)
    if down_s:
        (directory / "data").mkdir()
        text = f"up_time=1\nlast_check_time={scene.now_s - down_s}\n"
        (directory / "data" / ".tracker_status").write_text(text)
    addresses = [scene.tracker_ip]
    if scene.second_tracker:
        addresses.append(scene.second_tracker)
    async with AsyncExitStack() as stack:
        settings["port"] = stack.enter_context(reserved_port(addresses))
        tracker = await stack.enter_async_context(
            running_tracker(directory, clock=clock, **settings)
        )
        lines = [f"{address}:{tracker.port}" for address in addresses]
        for address in addresses[1:]:
            await stack.enter_async_context(
                running_tracker(
                    directory / "second",
                    clock=clock,
                    **(settings | {"bind_addr": (address,)}),
                )
            )
        tracker.tracker.node.trackers.learn(lines, scene.tracker_ip)
        yield tracker


async def set_up(scene: Scene, tracker: TestTracker) -> Peer:
    """Bring *tracker* into the state of *scene*; returns the connection of the exchange."""
    for storage_id, member_status in scene.members.items():
        add(tracker, storage_id, member_status)
    if not scene.joined:
        peer = await tracker.connect(scene.source)
    else:
        node = tracker.tracker.node
        own = server_of(tracker, scene.joined)
        peer = await tracker.connect(own.ip)
        request = Join(
            "group1", STORAGE_PORT, 1, 4, 10, 1795353665, 1, "6.16.1", False, int(own.status),
            scene.joined if scene.ids else "", scene.tracker_ip,
            tuple(str(server) for server in node.trackers.servers),
        )  # fmt: skip
        wanted = own.status
        await peer.ok(81, request.encode())
        node.leadership.adopt(node.trackers.own)
        change(tracker, scene.joined, wanted)
        if scene.told:
            while await peer.ok(83) != b"\0":
                pass
    if scene.then is not None:
        await scene.then(tracker, peer)
    return peer


@pytest.mark.parametrize("vector", REPLAYED, ids=lambda v: v.name)
async def test_captured_exchange(vector: Vector, tmp_path: Path) -> None:
    scene = SCENES[vector.name]
    async with playing(scene, tmp_path, RESTARTED.get(vector.name, 0)) as tracker:
        peer = await set_up(scene, tracker)
        # The port as text is part of JOIN, 66 and 67; as a number of 58 and of the leader's brief.
        assert len(str(tracker.port)) == 5
        text = str(CAPTURED_PORT).encode(), str(tracker.port).encode()
        number = struct.pack(">i", CAPTURED_PORT), struct.pack(">i", tracker.port)
        await peer.send(vector.request.replace(*text).replace(*number))
        assert await peer.receive_packet() == vector.response.replace(*number)
        if vector.command == 82:
            assert await peer.closed()


def test_every_exchange_is_replayed() -> None:
    assert {vector.name for vector in REPLAYED} == set(SCENES)
