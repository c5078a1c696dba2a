"""Joins, reports and deletions at a tracker: protocol/cluster.md sections 2 and 3."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.config import IdType, StoreServer, TrackerConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import (
    Brief,
    DiskReport,
    SyncReport,
    SyncSource,
)
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus as S
from tests.common.joins import new_storage

JOIN = new_storage("10.0.9.9", "10.0.9.9:22122")
A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Shell:
    """Drives a cluster as the daemon does, with a clock that tests move."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = Cluster(TrackerConfig(base_path="/t", **settings))
        self.now = 1000.0

    def join(self, ip: str = A, connection: object = None, **changes: Any) -> tuple[Group, Server]:
        request = replace(JOIN, **changes)
        self.cluster.tick(self.now)
        return self.cluster.join(request, ip, connection or object(), self.now)

    def beat(self, group: Group, server: Server, statistics: Statistics | None = None) -> None:
        self.cluster.tick(self.now)
        self.cluster.heartbeat(group, server, statistics, self.now)

    def active(self, ip: str = A, **changes: Any) -> tuple[Group, Server]:
        """A storage that went the whole way; later ones are not copied to."""
        group, server = self.join(ip, **changes)
        self.cluster.notify_source(group, server, SyncSource())
        self.beat(group, server)
        assert status(server) is S.ACTIVE
        return group, server


def status(server: Server) -> S:
    """Its status now (mypy would otherwise remember the one that was asserted before)."""
    return server.status


@pytest.fixture
def shell() -> Shell:
    return Shell()


def refused(shell: Shell, ip: str = A, **changes: Any) -> int:
    with pytest.raises(StatusError) as caught:
        shell.join(ip, **changes)
    assert caught.value.errno is not None
    return caught.value.errno


# --- JOIN -----------------------------------------------------------------------------------------


def test_the_first_storage_of_a_group(shell: Shell) -> None:
    group, server = shell.join()
    assert (server.status, server.storage_id, server.ips) == (S.INIT, A, (A,))
    assert (group.port, group.store_path_count, group.subdir_count_per_path) == (23000, 1, 256)
    assert shell.cluster.structure > 0
    assert shell.cluster.choose_source(group, server) is None
    assert status(server) is S.ONLINE
    shell.beat(group, server)
    assert status(server) is S.ACTIVE
    assert group.writable == [server]


def test_a_further_storage_gets_the_first_writable_as_its_source(shell: Shell) -> None:
    shell.active(B)
    shell.active(A)
    group, server = shell.join(C)
    shell.cluster.tick(77)
    assert shell.cluster.choose_source(group, server) == SyncSource(A, 77)
    assert status(server) is S.WAIT_SYNC
    shell.cluster.report_status("group1", Brief(S.SYNCING, 0, C, C))
    assert status(server) is S.SYNCING
    shell.beat(group, server)
    assert status(server) is S.SYNCING, "its own heartbeat does not end the copy"
    shell.cluster.report_status("group1", Brief(S.OFFLINE, 0, C, C))
    shell.beat(group, server)
    assert status(server) is S.ACTIVE
    assert server.source == SyncSource(A, 77), "stays filled for ever"


def test_no_source_while_nothing_is_writable(shell: Shell) -> None:
    group, first = shell.active(A)
    shell.cluster.disconnected(group, first, first.connection, "test")
    _, server = shell.join(B)
    with pytest.raises(StatusError) as caught:
        shell.cluster.choose_source(group, server)
    assert caught.value.errno == errno.ENOENT
    assert status(server) is S.INIT


@pytest.mark.parametrize(
    ("status", "result"),
    [(7, S.ONLINE), (6, S.ONLINE), (5, S.OFFLINE), (1, S.WAIT_SYNC), (0, S.INIT)],
)
def test_an_unknown_storage_brings_its_status(shell: Shell, status: int, result: S) -> None:
    assert shell.join(init_flag=False, status=status)[1].status is result


@pytest.mark.parametrize("status", [-1, 3, 4, 99])
def test_an_unknown_storage_with_an_impossible_status(shell: Shell, status: int) -> None:
    assert refused(shell, init_flag=False, status=status) == errno.EFAULT
    assert not shell.cluster.groups


def test_an_unknown_status_value(shell: Shell) -> None:
    assert refused(shell, init_flag=False, status=50) == errno.EINVAL


def test_a_known_storage_comes_back(shell: Shell) -> None:
    connection = object()
    group, server = shell.active(A, connection=connection)
    shell.cluster.disconnected(group, server, connection, "test")
    assert (server.status, server.up_time, group.writable) == (S.OFFLINE, 0, [])
    again = shell.join(A, init_flag=False, status=7)
    assert again == (group, server)
    assert status(server) is S.ONLINE


def test_an_old_connection_that_ends_late_changes_nothing(shell: Shell) -> None:
    old, new = object(), object()
    group, server = shell.active(A, connection=old)
    shell.join(A, connection=new, init_flag=False)
    shell.beat(group, server)
    shell.cluster.disconnected(group, server, old, "late")
    assert status(server) is S.ACTIVE
    shell.cluster.disconnected(group, server, new, "now")
    assert status(server) is S.OFFLINE


def test_all_members_use_one_port(shell: Shell) -> None:
    shell.join(A)
    assert refused(shell, B, port=23001) == errno.EINVAL
    group, _ = shell.join(A, port=23001)
    assert group.port == 23001, "a single member may change it"


def test_store_path_counts(shell: Shell) -> None:
    group, server = shell.join(A, store_path_count=2)
    assert refused(shell, B, store_path_count=1) == errno.EINVAL
    shell.join(B, store_path_count=3)
    assert group.store_path_count == 2
    shell.join(A, store_path_count=3)
    assert group.store_path_count == 3
    assert server.store_path_count == 3


def test_sub_directory_counts(shell: Shell) -> None:
    shell.join(A)
    assert refused(shell, B, subdir_count_per_path=16) == errno.EINVAL
    assert shell.join(A, subdir_count_per_path=16)[0].subdir_count_per_path == 16


def test_deleted_members_do_not_count(shell: Shell) -> None:
    group, server = shell.join(A)
    shell.cluster.delete_storage("group1", A)
    assert status(server) is S.DELETED
    assert shell.join(B, port=23001)[0] is group


@pytest.mark.parametrize("deleted", [True, False])
def test_server_that_comes_back_without_data_gets_a_new_copy(shell: Shell, deleted: bool) -> None:
    """Also at a tracker that does not hear its 87: the time until which it is sent is the new one,
    and it is not taken for one that has everything."""
    shell.active(A)
    group, server = shell.join(B)
    shell.cluster.notify_source(group, server, SyncSource(A, 1000))
    shell.cluster.report_status("group1", Brief(S.SYNCING, 0, B, B))
    shell.cluster.report_status("group1", Brief(S.OFFLINE, 0, B, B))
    shell.beat(group, server)
    assert status(server) is S.ACTIVE
    shell.cluster.disconnected(group, server, server.connection, "its connection ended")
    if deleted:
        shell.cluster.delete_storage("group1", B)
    shell.join(B)
    assert status(server) is S.INIT
    shell.cluster.notify_source(group, server, SyncSource(A, 2000))
    assert status(server) is S.WAIT_SYNC
    assert shell.cluster.source_of("group1", B) == SyncSource(A, 2000)


def test_groups_and_members_are_limited(shell: Shell) -> None:
    for number in range(32):
        shell.join(f"10.0.1.{number}")
    assert refused(shell, "10.0.1.32") == errno.ENOSPC
    for number in range(511):
        shell.join("10.0.2.1", group=f"other{number}")
    assert refused(shell, "10.0.2.1", group="toomany") == errno.ENOSPC


# --- storage ids ----------------------------------------------------------------------------------


def with_ids(trust: bool = True, id_type: IdType = IdType.ID) -> Shell:
    table = "100001 group1 10.0.0.1:23000\n100002 group1 10.0.0.1:23001 rw=read\n"
    table += "100003 group2 10.0.0.3,192.168.0.3\n100004 group2 host.example\n"
    return Shell(
        storage_ids=StorageIds.parse(table, "ids"),
        trust_storage_server_id=trust,
        id_type_in_filename=id_type,
    )


def test_ids_come_from_the_table() -> None:
    shell = with_ids()
    _, server = shell.join("203.0.113.5", storage_id="100001")
    assert (server.storage_id, server.ips) == ("100001", ("10.0.0.1",)), "behind NAT"
    group, second = shell.join(A, storage_id="", port=23001)
    assert (second.storage_id, second.rw_mode, group.port) == ("100002", 4, -1)
    _, third = shell.join("192.168.0.3", group="group2", storage_id="100003")
    assert third.ips == ("10.0.0.3", "192.168.0.3")
    _, fourth = shell.join("198.51.100.4", group="group2", storage_id="100004")
    assert fourth.ips == ("198.51.100.4",), "a name in the table: the address it came from"


def test_ids_that_are_not_in_the_table() -> None:
    shell = with_ids()
    assert refused(shell, A, storage_id="100009") == errno.ENOENT
    assert refused(shell, A, storage_id="100003") == errno.ENOENT, "of another group"
    assert refused(shell, C) == errno.ENOENT
    assert refused(with_ids(trust=False), C, storage_id="100001") == errno.ENOENT


def test_several_ports_need_ids_in_file_names() -> None:
    shell = with_ids(id_type=IdType.IP)
    shell.join(A)
    assert refused(shell, A, port=23001) == errno.EINVAL


def test_own_id_and_group_name() -> None:
    shell = with_ids()
    assert shell.cluster.storage_id_at("group1", A, 23001) == "100002"
    assert shell.cluster.group_name_of("192.168.0.3", 1) == "group2"
    with pytest.raises(StatusError):
        shell.cluster.storage_id_at("group1", C, 1)
    plain = Shell()
    assert plain.cluster.storage_id_at("any", A, 1) == A
    with pytest.raises(StatusError) as caught:
        plain.cluster.group_name_of(A, 1)
    assert caught.value.errno == errno.EOPNOTSUPP


# --- reports --------------------------------------------------------------------------------------


def test_heartbeats_carry_statistics(shell: Shell) -> None:
    group, server = shell.active()
    shell.now = 2000
    shell.beat(group, server, Statistics(total_upload_count=5, last_heart_beat_time=9))
    assert server.statistics.total_upload_count == 5
    assert server.statistics.last_heart_beat_time == 2000
    shell.beat(group, server)
    assert server.statistics.total_upload_count == 5


def test_silence_makes_offline_and_a_heartbeat_active_again(shell: Shell) -> None:
    group, server = shell.active()
    shell.now += 100
    shell.cluster.expire(shell.now)
    assert status(server) is S.ACTIVE
    shell.now += 1
    shell.cluster.expire(shell.now)
    assert status(server) is S.OFFLINE
    shell.beat(group, server)
    assert status(server) is S.ACTIVE, "without a JOIN"


def test_disk_reports(shell: Shell) -> None:
    group, server = shell.active()
    shell.cluster.disk_report(group, server, DiskReport(((100, 40),)), shell.now)
    assert (server.total_mb, server.free_mb) == (100, 40)
    with pytest.raises(StatusError) as caught:
        shell.cluster.disk_report(group, server, DiskReport(((1, 1), (1, 1))), shell.now)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("mode", "last"), [(StoreServer.ROUND_ROBIN, 30), (StoreServer.FIRST_BY_IP, 40)]
)
def test_sync_timestamps(mode: StoreServer, last: int) -> None:
    shell = Shell(store_server=mode)
    group, server = shell.active(A)
    shell.active(B)
    shell.active(C)
    for times in (((B, 40), (C, 20)), ((A, 99), (B, 35), (C, 30), ("10.9.9.9", 1), ("x", 0))):
        shell.cluster.sync_report(group, server, SyncReport(times), shell.now)
    assert group.sync_times == {B: {A: 35}, C: {A: 30}}
    assert server.last_synced_timestamp == last


def test_changes_are_told_once_per_storage_and_again_after_a_join(shell: Shell) -> None:
    group, first = shell.active(A)

    def members(server: Server) -> list[str] | None:
        listed = shell.cluster.changes_for(group, server, None).group
        return None if listed is None else [brief.storage_id for brief in listed]

    assert members(first) == [A]
    assert members(first) is None
    _, second = shell.join(B)
    assert members(first) == [A, B]
    assert members(second) == [A, B]
    assert members(second) is None
    shell.join(B)
    assert members(second) == [A, B]


def test_a_member_that_came_back_empty_is_told_as_new_first(shell: Shell) -> None:
    """Storages do not believe that an ACTIVE one is to be filled (protocol/cluster.md 3.3)."""
    group, first = shell.active(A)
    shell.active(B)

    def told() -> list[S | None]:
        changes = shell.cluster.changes_for(group, first, None)
        return [brief.status for brief in changes.group or ()]

    assert told() == [S.ACTIVE, S.ACTIVE]
    group.servers[B].connection = None
    _, again = shell.join(B, join_time=9)
    shell.cluster.choose_source(group, again)
    assert again.status is S.WAIT_SYNC
    assert told() == [S.ACTIVE, S.INIT]
    assert told() == [S.ACTIVE, S.WAIT_SYNC]
    assert told() == []
    shell.cluster.report_status("group1", Brief(S.SYNCING, 0, B, B))
    assert told() == [S.ACTIVE, S.SYNCING]
    _, again = shell.join(B, join_time=10)
    shell.cluster.choose_source(group, again)
    assert told() == [S.ACTIVE, S.INIT]
    assert told() == [S.ACTIVE, S.WAIT_SYNC]
    # It hears of itself as it is, and so does who has not heard of it before.
    assert [b.status for b in shell.cluster.changes_for(group, again, None).group or ()] == [
        S.ACTIVE,
        S.WAIT_SYNC,
    ]


def test_reports_about_members(shell: Shell) -> None:
    group, server = shell.active(A)
    report = shell.cluster.report_status
    report("group1", Brief(S.RECOVERY, 0, A, A))
    assert status(server) is S.ACTIVE
    report("group1", Brief(S.SYNCING, 0, B, B))
    assert group.servers[B].status is S.SYNCING
    assert group.servers[B].port == 23000
    report("group1", Brief(S.ACTIVE, 0, B, B))
    assert group.servers[B].status is S.SYNCING, "only its own connection makes it that"
    for brief in (
        Brief(S.DELETED, 1, "10.0.0.7", "10.0.0.7"),
        Brief(S.ACTIVE, 1, "10.0.0.7", "10.0.0.7"),
        Brief(S.NONE, 1, "10.0.0.7", "10.0.0.7"),
        Brief(S.NONE, 0, B, B),
        Brief(S.OFFLINE, 1, "x\ny", "10.0.0.7"),
        Brief(S.OFFLINE, 1, "10.0.0.7", "localhost"),
        Brief(S.OFFLINE, 1, "", "10.0.0.7"),
    ):
        report("group1", brief)
    assert sorted(group.servers) == [A, B]
    assert group.servers[B].status is S.SYNCING
    with pytest.raises(StatusError):
        report("nogroup", Brief(S.OFFLINE, 1, A, A))


def test_notified_sources(shell: Shell) -> None:
    shell.active(A)
    group, server = shell.join(B)
    with pytest.raises(StatusError):
        shell.cluster.notify_source(group, server, SyncSource("10.9.9.9", 1))
    shell.cluster.notify_source(group, server, SyncSource(A, 1))
    assert (server.status, server.source) == (S.WAIT_SYNC, SyncSource(A, 1))
    assert shell.cluster.source_of("group1", B) == SyncSource(A, 1)
    assert shell.cluster.source_of("group1", A) is None
    with pytest.raises(StatusError):
        shell.cluster.source_of("group1", C)


def test_status_brought_from_the_leader(shell: Shell) -> None:
    group, server = shell.join(A)
    shell.cluster.change_status(group, server, S.ACTIVE)
    assert status(server) is S.OFFLINE


# --- administration -------------------------------------------------------------------------------


def test_deleting_a_storage(shell: Shell) -> None:
    group, server = shell.active(A)
    _, peer = shell.active(B)

    def delete(storage_id: str) -> int:
        with pytest.raises(StatusError) as caught:
            shell.cluster.delete_storage("group1", storage_id)
        return caught.value.errno or 0

    assert delete(A) == errno.EBUSY
    assert delete(C) == errno.ENOENT
    shell.cluster.disconnected(group, server, server.connection, "test")
    shell.cluster.tick(1795353293)
    shell.cluster.delete_storage("group1", A)
    assert status(server) is S.DELETED
    assert delete(A) == errno.EALREADY
    assert shell.cluster.changelog == f"1795353293 group1 {A} 4 \n".encode()
    assert shell.cluster.read_changelog(peer) == shell.cluster.changelog
    assert shell.cluster.read_changelog(peer) == b"", "told once"
    assert len(shell.cluster.changes_for(group, peer, None).group or ()) == 2, "still listed"
    assert shell.join(A)[1].status is S.INIT, "joins as if it were new"


def test_changelog_parts_end_at_lines(shell: Shell) -> None:
    _, peer = shell.active(B)
    shell.cluster.changelog = b"".join(b"%d group1 10.0.0.1 4 \n" % n for n in range(1000))
    parts = []
    while part := shell.cluster.read_changelog(peer):
        assert len(part) <= 8192
        assert part.endswith(b"\n")
        parts.append(part)
    assert b"".join(parts) == shell.cluster.changelog


def test_deleting_a_group(shell: Shell) -> None:
    shell.join(A)
    with pytest.raises(StatusError) as caught:
        shell.cluster.delete_group("group1")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(StatusError):
        shell.cluster.delete_group("group2")
    shell.cluster.groups["group1"].servers.clear()
    shell.cluster.delete_group("group1")
    assert not shell.cluster.groups


def test_notes_tell_an_operator_what_happened_and_why(shell: Shell) -> None:
    group, server = shell.active(A)
    shell.cluster.disconnected(group, server, server.connection, "its connection ended")
    assert list(shell.cluster.take_notes()) == [
        "new storage 10.0.0.1 in group1, INIT",
        "storage 10.0.0.1 of group1 is ONLINE (was INIT): it needs no copy",
        "storage 10.0.0.1 of group1 is ACTIVE (was ONLINE): heartbeat",
        "storage 10.0.0.1 of group1 is OFFLINE (was ACTIVE): its connection ended",
    ]
    assert list(shell.cluster.take_notes()) == []


def test_coming_and_going_needs_no_write(shell: Shell) -> None:
    group, server = shell.active(A)
    structure = shell.cluster.structure
    for _ in range(3):
        shell.cluster.disconnected(group, server, server.connection, "test")
        shell.join(A, init_flag=False)
        shell.beat(group, server)
    assert shell.cluster.structure == structure
