"""The tracker daemon on real sockets: captured exchanges, bad input, restarts, lost storages."""

from __future__ import annotations

import errno
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fdfs_tracker.state_files import PID_NAME, SERVERS_NAME
from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.errors import ConfigError, FdfsError
from fdfsfuse.proto.cluster import (
    Brief,
    Changes,
    DiskReport,
    Joined,
    ServerKey,
    StatusReport,
    SyncSource,
)
from fdfsfuse.proto.cluster_stats import TrackerStat, decode_tracker_stats
from fdfsfuse.proto.header import pack_header, pack_response
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.storage_identity import (
    MyIpRequest,
    ServerQuery,
    StorageIdsPart,
    StorageIdsRequest,
)
from fdfsfuse.proto.tracker import (
    FileRequest,
    GroupRequest,
    ServerRequest,
    ServerStatus,
    StoreTarget,
    decode_group_stats,
    decode_storage_stats,
)
from fdfsfuse.proto.tracker_peers import TrackerStatus
from tests.common.vectors import CLUSTER
from tests.common.waiting import wait_for
from tests.daemons.tracker_server import CLIENT_IP, TRACKER_IP, Clock, running_tracker

# The life of a storage ----------------------------------------------------------------------------


async def test_first_start_of_a_storage(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect("127.0.0.21")
        assert await peer.ok(60, MyIpRequest("group1", 33000).encode()) == b"127.0.0.21"
        assert Parameters.decode(await peer.ok(75)).reserved_storage_space == "1024MB"
        assert await peer.exchange(95) == (errno.ENOENT, b""), "no leader before the first JOIN"
        joined = Joined.decode(await peer.ok(81, tracker.join_request().encode()))
        assert joined == Joined(ServerStatus.INIT, "")
        assert await peer.ok(87) == b""
        assert await peer.ok(88, SyncSource().encode()) == b""
        first = Changes.decode(await peer.ok(83, Statistics(total_upload_count=3).encode()))
        leader = Brief(ServerStatus.INIT, tracker.port, TRACKER_IP, TRACKER_IP)
        me = Brief(ServerStatus.ACTIVE, 33000, "127.0.0.21", "127.0.0.21")
        assert first == Changes(leader=leader, group=(me,))
        assert await peer.ok(77) == b""
        assert await peer.ok(84, DiskReport(((5000, 2000),)).encode()) == b"\0"
        assert await peer.ok(83) == b"\0"
        client = await tracker.connect()
        target = StoreTarget.decode(await client.ok(101))
        assert (target.group, target.endpoint.ip, target.path_index) == ("group1", "127.0.0.21", 0)
        assert await client.ok(95) == f"{TRACKER_IP}:{tracker.port}".encode()
        assert TrackerStatus.decode(await client.ok(64)) == TrackerStatus(True, 0, 0)


async def test_second_storage_waits_for_its_copy(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        first = await tracker.active("127.0.0.21")
        second, joined = await tracker.join("127.0.0.22")
        assert joined.status is ServerStatus.INIT
        source = SyncSource("127.0.0.21", int(tracker.clock.now_s))
        assert SyncSource.decode(await second.ok(87)) == source
        assert SyncSource.decode(await second.ok(79)) == source
        await second.ok(88, source.encode())
        await second.ok(83)
        assert tracker.status("127.0.0.22") is ServerStatus.WAIT_SYNC
        key = ServerKey("group1", "127.0.0.22").encode()
        assert SyncSource.decode(await first.ok(86, key)) == source
        for status in (ServerStatus.SYNCING, ServerStatus.OFFLINE):
            report = StatusReport("group1", Brief(status, 0, "127.0.0.22", "127.0.0.22"))
            await first.ok(76, report.encode())
        await second.ok(83)
        assert tracker.status("127.0.0.22") is ServerStatus.ACTIVE


@pytest.mark.parametrize("command", [59, 72, 73, 74, 79, 83, 84, 85, 87, 88, 89])
async def test_commands_that_need_a_join(tmp_path: Path, command: int) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        peer = await tracker.connect("127.0.0.21")
        for body in (b"", bytes(24), bytes(1000)):
            assert await peer.exchange(command, body) == (errno.EACCES, b"")


async def test_changelog_without_join_needs_an_id(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect("127.0.0.21")
        assert await peer.exchange(77) == (errno.EINVAL, b"")


async def test_a_closed_connection_makes_the_storage_offline_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_tracker(tmp_path) as tracker:
        storage = await tracker.active("127.0.0.21")
        client = await tracker.connect()
        await client.ok(101)
        with caplog.at_level("INFO"):
            await storage.stream.aclose()
            await wait_for(lambda: tracker.status("127.0.0.21") is ServerStatus.OFFLINE)
        assert await client.exchange(101) == (errno.ENOENT, b"")
        assert "127.0.0.21 of group1 is OFFLINE (was ACTIVE): its connection ended" in caplog.text
        peer, joined = await tracker.join("127.0.0.21", init_flag=False, status=7)
        assert joined.status is ServerStatus.ONLINE
        assert await client.exchange(101) == (errno.ENOENT, b""), "no heartbeat yet"
        await peer.ok(83)
        await client.ok(101)


async def test_quit_makes_the_storage_offline(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        storage = await tracker.active("127.0.0.21")
        await storage.send(pack_header(0, 82))
        assert await storage.receive_packet() == b""
        await wait_for(lambda: tracker.status("127.0.0.21") is ServerStatus.OFFLINE)


async def test_a_silent_storage_becomes_offline(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, check_active_interval_s=0.05) as tracker:
        storage = await tracker.active("127.0.0.21")
        tracker.clock.monotonic += 1
        await wait_for(lambda: tracker.status("127.0.0.21") is ServerStatus.OFFLINE)
        await storage.ok(83)
        assert tracker.status("127.0.0.21") is ServerStatus.ACTIVE


async def test_a_tracker_that_hung_does_not_call_storages_silent(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, check_active_interval_s=0.4) as tracker:
        await tracker.active("127.0.0.21")
        time.sleep(1.0)  # noqa: ASYNC251 (nothing runs meanwhile)
        tracker.clock.monotonic += 1.0
        for _ in range(3):
            await trio.sleep(0.1)
            assert tracker.status("127.0.0.21") is ServerStatus.ACTIVE


async def test_a_newer_connection_of_a_storage_counts(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        old = await tracker.active("127.0.0.21")
        new = await tracker.active("127.0.0.21", init_flag=False)
        await old.stream.aclose()
        await new.ok(83)
        client = await tracker.connect()
        await client.ok(101)
        assert tracker.status("127.0.0.21") is ServerStatus.ACTIVE


async def test_a_join_whose_tracker_list_lacks_this_tracker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_tracker(tmp_path) as tracker:
        request = tracker.join_request(trackers=("127.0.0.9:22122",))
        peer = await tracker.connect("127.0.0.21")
        with caplog.at_level("WARNING"):
            for _ in range(3):
                assert await peer.exchange(81, request.encode()) == (errno.ENOENT, b"")
        assert caplog.text.count("may not join") == 1, "each reason once, not at each retry"
        assert not tracker.cluster.groups


# State on disk ------------------------------------------------------------------------------------


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    statistics = Statistics(total_upload_count=7, success_upload_bytes=1 << 40)
    async with running_tracker(tmp_path) as tracker:
        storage = await tracker.active("127.0.0.21", space=((900, 800), (700, 600)))
        await storage.ok(83, statistics.encode())
        await tracker.active("127.0.0.31", group="group2", upload_priority=3)
    async with running_tracker(tmp_path) as tracker:
        client = await tracker.connect()
        groups = decode_group_stats(await client.ok(91))
        assert [group.group for group in groups] == ["group1", "group2"]
        assert (groups[0].total_mb, groups[0].free_mb, groups[0].writable_count) == (1600, 1400, 0)
        (listed,) = decode_storage_stats(await client.ok(92, GroupRequest("group1").encode()))
        assert listed.status is ServerStatus.OFFLINE
        assert (listed.store_path_count, listed.version, listed.join_time) == (2, "6.16.1", 1)
        assert listed.statistics.total_upload_count == 7
        assert listed.statistics.success_upload_bytes == 1 << 40
        assert await client.exchange(101) == (errno.ENOENT, b"")
        _, joined = await tracker.join("127.0.0.21", init_flag=False, status=7, store_path_count=2)
        assert joined.status is ServerStatus.ONLINE


async def test_what_was_acknowledged_is_on_disk_before_the_answer(tmp_path: Path) -> None:
    """No clean stop: the files are looked at while the tracker runs."""
    servers = tmp_path / "data" / SERVERS_NAME
    async with running_tracker(tmp_path) as tracker:
        storage, _ = await tracker.join("127.0.0.21")
        assert "ip_addr=127.0.0.21\n\tstatus=0" in servers.read_text()
        await storage.ok(87)
        assert "status=6" in servers.read_text()
        second, _ = await tracker.join("127.0.0.22")
        await storage.ok(83)
        await second.ok(87)
        assert "status=1" in servers.read_text()
        assert "sync_src_server=127.0.0.21" in servers.read_text()
        await second.stream.aclose()
        await wait_for(lambda: tracker.cluster.groups["group1"].servers["127.0.0.22"].up_time == 0)
        client = await tracker.connect()
        await client.ok(93, ServerRequest("group1", "127.0.0.22").encode())
        assert "127.0.0.22" not in servers.read_text()
        changelog = (tmp_path / "data" / "storage_changelog.dat").read_text()
        assert changelog.endswith(" group1 127.0.0.22 4 \n")


async def test_the_initial_copy_survives_a_restart(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        second, _ = await tracker.join("127.0.0.22")
        await second.ok(87)
    async with running_tracker(tmp_path) as tracker:
        _, joined = await tracker.join("127.0.0.22", init_flag=False, status=1)
        assert joined == Joined(ServerStatus.WAIT_SYNC, "127.0.0.21")


async def test_sync_times_survive_a_restart(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        await tracker.active("127.0.0.22")
        group = tracker.cluster.groups["group1"]
        group.sync_times = {"127.0.0.21": {"127.0.0.22": 1795353703}}
    async with running_tracker(tmp_path) as tracker:
        assert tracker.cluster.groups["group1"].sync_times == {
            "127.0.0.21": {"127.0.0.22": 1795353703},
            "127.0.0.22": {},
        }


@pytest.mark.parametrize("rows", ["B,1,0", "A,0,1\ngroup1,C,1,0", "A,0,1,2"])
async def test_sync_times_of_other_servers_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: str
) -> None:
    """A C tracker that was killed saved its servers, and has the older file beside them."""
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        await tracker.active("127.0.0.22")
    text = rows.replace("A", "127.0.0.21").replace("B", "127.0.0.22").replace("C", "127.0.0.23")
    (tmp_path / "data" / "storage_sync_timestamp.dat").write_text(f"group1,{text}\n")
    async with running_tracker(tmp_path) as tracker:
        assert tracker.cluster.groups["group1"].sync_times == {}
    assert "other servers of group1" in caplog.text


def captured_file(name: str) -> bytes:
    """A state file that a C tracker sent to another one (63): its size, then the bytes."""
    (vector,) = (v for v in CLUSTER if v.name == name)
    return vector.response_body[8:]


async def test_files_of_a_c_tracker_are_understood(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "storage_groups_new.dat").write_bytes(captured_file("sys_file_groups"))
    (data / "storage_servers_new.dat").write_bytes(captured_file("sys_file_servers"))
    (data / "storage_sync_timestamp.dat").write_bytes(captured_file("sys_file_sync_timestamp"))
    (data / "storage_changelog.dat").write_bytes(captured_file("sys_file_changelog"))
    text = captured_file("sys_file_servers").decode()
    ids = [line.split("=")[1] for line in text.splitlines() if line.strip().startswith("id=")]
    table = "\n".join(f"{storage_id} group1 127.0.0.99" for storage_id in ids)
    async with running_tracker(tmp_path, storage_ids=StorageIds.parse(table, "ids")) as tracker:
        (group,) = tracker.cluster.groups.values()
        assert sorted(group.servers) == ids
        for server in group.servers.values():
            assert f"ip_addr={server.ip}" in text
            assert f"total_upload_count={server.statistics.total_upload_count}\n" in text
            assert server.port == group.port == 43000


async def test_smallest_server_entry(tmp_path: Path) -> None:
    """The minimum that a C tracker accepts (protocol/disk.md section 10)."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "storage_groups_new.dat").write_text("[Global]\ngroup_count=0\n")
    (data / "storage_servers_new.dat").write_text(
        "[Storage001]\ngroup_name=group1\nip_addr=10.0.0.1\nstatus=7\nstorage_port=23000\n"
        "store_path_count=1\nsubdir_count_per_path=256\nupload_priority=10\n"
        "[Global]\nstorage_count=1\n"
    )
    async with running_tracker(tmp_path) as tracker:
        server = tracker.cluster.groups["group1"].servers["10.0.0.1"]
        assert server.status is ServerStatus.OFFLINE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("storage_groups_new.dat", b"[Group001]\nstorage_port=1\n"),
        ("storage_groups_new.dat", b"[Group001]\ngroup_name=g\nstorage_port=x\n"),
        ("storage_servers_new.dat", b"[Storage001]\ngroup_name=g\n"),
        ("storage_servers_new.dat", b"\xff\xfe"),
        ("storage_sync_timestamp.dat", b"group1\n"),
    ],
)
async def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}: malformed"):
        async with running_tracker(tmp_path):
            pass


async def test_one_tracker_per_directory(tmp_path: Path) -> None:
    async with running_tracker(tmp_path):
        assert (tmp_path / "data" / PID_NAME).read_text().isdigit()
        with pytest.raises(FdfsError, match="another tracker"):
            async with running_tracker(tmp_path):
                pass
    async with running_tracker(tmp_path):
        pass


# Connections and bad input ------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect()
        await peer.send(pack_header(0, 111) + pack_header(0, 91) + pack_header(1, 91) + b"x")
        assert await peer.receive_packet() == pack_response()
        assert await peer.receive_packet() == pack_response()
        assert await peer.receive_packet() == pack_response(status=22)
        assert not await peer.closed()


async def test_a_request_in_small_pieces(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect()
        request = pack_header(16, 90) + GroupRequest("group1").encode()
        for byte in request:
            await peer.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert await peer.receive_packet() == pack_response(status=2)


@pytest.mark.parametrize("length", [-1, -(1 << 63), 262135, 1 << 32, (1 << 63) - 1])
async def test_impossible_lengths_end_the_connection(tmp_path: Path, length: int) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect()
        await peer.send(struct.pack(">qBB", length, 111, 0))
        assert await peer.receive_packet() == b""


async def test_the_largest_request_is_read(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.connect()
        assert await peer.exchange(111, bytes(262134)) == (errno.EINVAL, b"")
        assert not await peer.closed()


async def test_every_command_survives_garbage(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        storage = await tracker.active("127.0.0.21")
        client = await tracker.connect()
        bodies = [b"", b"\xff" * 16, bytes(16), b"\xff" * 83, bytes(145), b"\x80" * 348, b"\n" * 99]
        bodies += [
            GroupRequest("group1").encode() + tail for tail in (b"\xff" * 15, b":", b"\xff:1")
        ]
        for peer in (client, storage):
            for command in range(256):
                if command == 82:
                    continue
                for body in bodies:
                    status, answer = await peer.exchange(command, body)
                    assert status == 0 or answer == b""
        # Whatever these left behind can still be listed and saved.
        decode_storage_stats(await client.ok(92, GroupRequest("group1").encode()))
        await tracker.active("127.0.0.22", init_flag=False, status=7)
    async with running_tracker(tmp_path) as tracker:
        assert set(tracker.cluster.groups) == {"group1"}


async def test_half_a_request_ends_after_the_network_timeout(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, network_timeout_s=1.0) as tracker:
        idle = await tracker.connect()
        await idle.ok(111)
        begun = await tracker.connect()
        await begun.ok(111)
        await begun.send(pack_header(16, 90))
        slow = []
        for start in (b"", b"\0\0", pack_header(16, 90) + b"gr"):
            slow.append(await tracker.connect())
            if start:
                await slow[-1].send(start)
        for peer in slow:
            assert await peer.receive_packet() == b""
        assert await begun.receive_packet() == b"", "in the middle of a later request, too"
        await idle.ok(111)  # between requests a connection may be idle for ever


async def test_hosts_that_are_not_allowed_are_closed(tmp_path: Path) -> None:
    allow = AllowHosts.parse([f"{CLIENT_IP}/32", "localhost"])
    async with running_tracker(tmp_path, allow_hosts=allow) as tracker:
        stranger = await tracker.connect("127.0.0.77")
        try:
            await stranger.send(pack_header(0, 111))
            assert await stranger.receive_packet() == b""
        except trio.BrokenResourceError:
            pass
        await (await tracker.connect()).ok(111)
        await (await tracker.connect("127.0.0.1")).ok(111)


async def test_a_flood_of_idle_connections_leaves_room(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, max_connections=8) as tracker:
        storage = await tracker.active("127.0.0.21")
        for _ in range(40):
            await tracker.connect("127.0.0.66")
        client = await tracker.connect()
        await client.ok(101)
        await storage.ok(83)


async def test_answers_keep_coming_while_others_stall(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        for _ in range(20):
            stalled = await tracker.connect()
            await stalled.send(pack_header(16, 90) + b"gr")
        client = await tracker.connect()
        for _ in range(50):
            await client.ok(101)


# Files of a group with two storages ---------------------------------------------------------------


async def test_a_fresh_file_is_fetched_from_its_source(tmp_path: Path) -> None:
    """The name is that of protocol/file-id.md section 8, number 1."""
    name = "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
    clock = Clock(1795354458)
    async with running_tracker(tmp_path, clock=clock) as tracker:
        await tracker.active("127.0.0.11")
        await tracker.active("127.0.0.12")
        client = await tracker.connect()
        request = FileRequest("group1", name).encode()
        fresh = [await client.ok(102, request) for _ in range(3)]
        assert len(set(fresh)) == 1
        assert b"127.0.0.11" in fresh[0]
        clock.now_s += 86401
        old = {await client.ok(102, request) for _ in range(2)}
        assert len(old) == 2


async def test_what_followers_tell_is_in_the_statistics(tmp_path: Path) -> None:
    clock = Clock()
    async with running_tracker(tmp_path, clock=clock) as tracker:
        lines = tuple(f"127.0.0.{host}:{tracker.port}" for host in (2, 4))
        await tracker.join("127.0.0.21", trackers=lines[:1])
        tracker.tracker.node.trackers.learn(lines, "127.0.0.2")
        client = await tracker.connect()

        async def stat() -> TrackerStat:
            _, follower = decode_tracker_stats(await client.ok(96, bytes(3)))
            return follower

        assert not (await stat()).is_active
        follower = await tracker.connect("127.0.0.4")
        await follower.ok(58, struct.pack(">q8sq", 77, b"\xff6.16.1", tracker.port))
        await follower.ok(65, struct.pack(">iii", 3, 2, 1))
        now = int(clock.now_s)
        known = TrackerStat(lines[1], False, True, (3, 2, 1), "6.16.1", 77, now)
        assert await stat() == known
        clock.now_s += 4
        assert await stat() == replace(known, is_active=False)


async def test_many_storage_ids_come_in_parts(tmp_path: Path) -> None:
    lines = [f"{100000 + n} group1 10.0.{n // 250}.{n % 250}:23000" for n in range(600)]
    async with running_tracker(
        tmp_path, storage_ids=StorageIds.parse("\n".join(lines), "ids")
    ) as tracker:
        peer = await tracker.connect("127.0.0.21")
        parts: list[StorageIdsPart] = []
        while (start := sum(len(part.lines) for part in parts)) < len(lines):
            answer = await peer.ok(69, StorageIdsRequest(start, False).encode())
            assert len(answer) <= 8 + 8192
            parts.append(StorageIdsPart.decode(answer))
        assert [line for part in parts for line in part.lines] == lines
        assert {part.total for part in parts} == {len(lines)}


async def test_status_by_address(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active("127.0.0.21")
        client = await tracker.connect()
        query = ServerQuery("group1", "127.0.0.21", 33000).encode()
        brief = Brief.decode(await client.ok(71, query))
        assert brief == Brief(ServerStatus.ACTIVE, 33000, "127.0.0.21", "127.0.0.21")
