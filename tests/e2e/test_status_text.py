"""What fdfs status and fdfs admin make of what servers told, without servers."""

from __future__ import annotations

import io
from dataclasses import replace

import msgspec
import pytest
from rich.console import Console

from fdfsfuse.cli.cluster_state import (
    ClusterState,
    Volume,
    behind_s,
    state_of,
    trackers_state,
    why,
)
from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.removal import (
    find_storage,
    find_volume,
    plan_group,
    plan_server,
    plan_tree,
)
from fdfsfuse.cli.status_text import cluster_data, render
from fdfsfuse.client.address import Address
from fdfsfuse.client.cluster_view import ReplicationView, TrackerView
from fdfsfuse.proto.cluster_status import (
    ClusterStatus,
    GroupState,
    PeerReplication,
    ReplicationStatus,
    ServerState,
)
from fdfsfuse.proto.names import View
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import GroupStat, ServerStatus, StorageStat

A, B, C = "10.0.0.4", "10.0.0.5", "10.0.0.6"
T1, T2 = "10.0.0.1:22122", "10.0.0.2:22122"
S = ServerStatus


def storage(storage_id: str, status: S = S.ACTIVE, **changes: object) -> StorageStat:
    stat = StorageStat(
        status, 6, storage_id, storage_id, "", "6.16.1", 1, 2, 1000, 500, 10, 10, 1, 256, 0, 23000
    )
    return replace(stat, **changes)  # type: ignore[arg-type]


def volume(*storages: StorageStat, keeps_names: str = A) -> Volume:
    active = sum(s.status is S.ACTIVE for s in storages)
    stat = GroupStat(
        group="group1",
        total_mb=1000,
        free_mb=500,
        reserved_mb=10,
        trunk_free_mb=0,
        storage_count=len(storages),
        storage_port=23000,
        readable_count=active,
        writable_count=active,
        current_write_server=0,
        store_path_count=1,
        subdir_count_per_path=256,
        trunk_file_id=-1,
    )
    view = View(1, keeps_names, [keeps_names], "0" * 32) if keeps_names else None
    return Volume(stat, list(storages), view)


def sends(found: Volume, source_id: str, *peers: PeerReplication) -> None:
    status = ReplicationStatus(1, source_id, list(peers))
    found.replication[source_id] = ReplicationView(status)


def tracker(address: str, leader: str, *servers: ServerState) -> TrackerView:
    host, _, port = address.rpartition(":")
    status = ClusterStatus(1, address, leader, 1, 2, [], [GroupState("group1", list(servers))])
    return TrackerView(Address(host, int(port)), status, leader)


def told(storage_id: str, status: S, reason: str, **synced_from: int) -> ServerState:
    ids = {key.replace("_", ".")[1:]: until for key, until in synced_from.items()}
    return ServerState(storage_id, storage_id, 23000, int(status), 5, reason, "", ids)


def replace_groups(status: ClusterStatus, founder: str) -> ClusterStatus:
    return msgspec.structs.replace(status, groups=[GroupState("group1", [], founder)])


def text_of(cluster: ClusterState) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render(cluster))
    return out.getvalue()


def test_a_server_that_is_being_filled() -> None:
    filled = storage(C, S.SYNCING, source_id=A)
    found = volume(storage(A), storage(B), filled)
    sends(found, A, PeerReplication(C, "copying", False, "", 48210, 31 << 30, 90.0, 360.0))
    cluster = ClusterState([tracker(T1, T1, told(C, S.SYNCING, "is being filled"))], [found])
    text = text_of(cluster)
    assert "trackers  ok: all trackers answer" in text
    assert f"{T1}  leads" in text
    assert "group1  degraded: not active: 10.0.0.6" in text
    assert (
        "still to come: 48,210 changes (31.0 GiB) left, oldest 2 min old, done in about 6 min"
        in text
    )
    data = cluster_data(cluster)["volumes"][0]["storages"][2]
    assert data["filling"]["records_left"] == 48210
    assert data["why"] == "is being filled"
    assert data["since"] == 5


def test_only_what_is_not_well_between_servers_is_shown() -> None:
    found = volume(storage(A), storage(B))
    sends(found, A, PeerReplication(B, "idle", True))
    sends(found, B, PeerReplication(A, "idle", False))
    cluster = ClusterState([tracker(T1, T1)], [found])
    assert state_of(found) == ("ok", "all storages are active")
    assert "in sync" not in text_of(cluster)
    sends(found, A, PeerReplication(B, "failing", False, "it did not answer", 1, 5, 2.0))
    assert state_of(found) == ("degraded", f"not in sync: {B}")
    assert f"not in sync with {B}: failing (it did not answer), 1 change (5 bytes) left" in text_of(
        cluster
    )
    # Stock storages are fed and never waited for: they are in sync when they have everything.
    found.replication[B] = ReplicationView(stock=True)
    sends(found, A, PeerReplication(B, "idle", False))
    assert state_of(found)[0] == "ok"


def test_files_that_cannot_be_read() -> None:
    found = volume(storage(A), storage(B))
    sends(found, A, PeerReplication(B, "idle", True, unreadable=2))
    sends(found, B, PeerReplication(A, "idle", True))
    assert state_of(found) == ("degraded", f"some files are not copied to others: {A}")
    text = text_of(cluster_of(found))
    assert f"2 files cannot be brought to {B}, which has no copy: see the log" in text


def test_a_group_that_was_moved_from_c_servers() -> None:
    found = volume(storage(A), storage(B))
    found.view, found.view_problem, found.stock = None, "stock FastDFS servers", True
    found.replication = {A: ReplicationView(stock=True), B: ReplicationView(stock=True)}
    assert "stock FastDFS servers" in text_of(cluster_of(found))
    sends(found, A, PeerReplication(B, "idle", False))
    assert "fdfs admin names init group1 SERVER" in text_of(cluster_of(found))


def test_a_group_all_of_whose_servers_were_moved_from_c_servers() -> None:
    found = volume(storage(A))
    found.view, found.view_problem, found.treeless = None, "no tree", True
    assert "fdfs admin names init group1 SERVER" in text_of(cluster_of(found))
    assert state_of(found) == ("degraded", "names: no tree")


def test_trackers_that_are_not_well() -> None:
    found = volume(storage(A))
    lost = TrackerView(Address("10.0.0.2", 22122), problem="no answer")
    cluster = ClusterState([tracker(T1, T1), lost], [found])
    assert trackers_state(cluster) == ("degraded", "1 of 2 cannot be reached: 10.0.0.2:22122")
    cluster = ClusterState([tracker(T1, T1), tracker(T2, T2)], [found])
    assert trackers_state(cluster)[0] == "degraded"
    cluster = ClusterState([tracker(T1, T1), tracker(T2, T1)], [found])
    assert trackers_state(cluster) == ("ok", "2 trackers are no safer than 1; use 3")


def test_trackers_that_differ_about_a_server() -> None:
    found = volume(storage(A))
    cluster = ClusterState(
        [
            tracker(T1, T2, told(A, S.ACTIVE, "works")),
            tracker(T2, T2, told(A, S.OFFLINE, "not connected: its connection ended")),
        ],
        [found],
    )
    assert why(cluster, found, found.storages[0]) == f"works; {T2} knows it as OFFLINE"


def test_a_stock_cluster_tells_its_delay_by_timestamps() -> None:
    late = storage(B, statistics=Statistics(last_source_update=100, last_synced_timestamp=880))
    found = volume(storage(A, statistics=Statistics(last_source_update=1000)), late, keeps_names="")
    found.stock = True
    cluster = ClusterState(
        [TrackerView(Address("10.0.0.1", 22122), leader=T1, stock=True)], [found]
    )
    assert behind_s(found, late) == 120.0
    text = text_of(cluster)
    assert "10.0.0.1:22122  leads  FastDFS" in text
    assert "about 2 min behind the others" in text
    filled = storage(C, S.WAIT_SYNC, source_id=A)
    found.storages = [storage(A, S.OFFLINE), filled]
    assert why(cluster, found, filled) == f"waits for {A} to start filling it, which is OFFLINE"


# Removing -----------------------------------------------------------------------------------------


def cluster_of(found: Volume, *servers: ServerState) -> ClusterState:
    return ClusterState([tracker(T1, T1, *servers)], [found])


@pytest.mark.parametrize("status", [S.ACTIVE, S.ONLINE, S.RECOVERY])
def test_what_runs_is_not_removed(status: S) -> None:
    found = volume(storage(A), storage(B, status))
    plan = plan_server(cluster_of(found), found, found.storages[1])
    assert len(plan.obstacles) == 1
    assert B in plan.obstacles[0]


def test_the_only_server_takes_everything_with_it() -> None:
    found = volume(storage(A, S.OFFLINE), storage(B, S.DELETED))
    found.view = None
    found.stock = True
    plan = plan_server(cluster_of(found), found, found.storages[0])
    assert plan.losses == ["10.0.0.4 is the only server of group1: all of its files"]
    assert plan_group(found).losses


def test_nobody_else_has_all_files() -> None:
    found = volume(storage(A), storage(B, S.OFFLINE), storage(C, S.SYNCING, source_id=B))
    found.storages[0] = storage(A, S.WAIT_SYNC, source_id=B)
    plan = plan_server(cluster_of(found), found, found.storages[1])
    assert plan.losses == ["no other server of group1 has all files yet"]
    assert f"{C} is being filled by it and starts anew" in plan.effects


def test_changes_that_reached_nobody() -> None:
    gone = storage(B, S.OFFLINE, statistics=Statistics(last_source_update=1000))
    found = volume(storage(A), gone, storage(C))

    def losses(*servers: ServerState) -> list[str]:
        return plan_server(cluster_of(found, *servers), found, gone).losses

    behind = told(A, S.ACTIVE, "works", _10_0_0_5=900)
    assert len(losses(behind)) == 1
    assert losses(behind, told(C, S.ACTIVE, "works", _10_0_0_5=1000)) == []
    assert len(losses()) == 1, "nobody tells: it may be"
    found.storages[1] = gone = replace(gone, statistics=Statistics())
    assert losses() == [], "clients never changed anything there"


def test_a_tree_is_founded_only_where_there_can_be_no_other() -> None:
    def obstacles(found: Volume, founder: str = "") -> list[str]:
        cluster = cluster_of(found)
        if founder:
            status = cluster.trackers[0].status
            assert status is not None
            cluster.trackers[0].status = replace_groups(status, founder)
        return plan_tree(cluster, found, found.storages[0]).obstacles

    found = volume(storage(A), storage(B))
    assert obstacles(found) == ["group1 has a tree, which 10.0.0.4 keeps"]
    found.view = None
    assert obstacles(found) == []
    assert obstacles(found, A) == []
    assert obstacles(found, B) == [f"{B} founded the tree of group1 and cannot be asked now"]
    found.replication[B] = ReplicationView(stock=True)
    assert obstacles(found, B) == []
    found.storages[1] = storage(B, S.OFFLINE)
    assert obstacles(found) == [f"{B} is OFFLINE: all servers of group1 have to be ACTIVE"]
    found.storages[1] = storage(B, S.DELETED)
    assert obstacles(found) == []


def test_who_keeps_the_names() -> None:
    found = volume(storage(A, S.OFFLINE), storage(B))
    plan = plan_server(cluster_of(found), found, found.storages[0])
    assert plan.losses == ["10.0.0.4 keeps the names of group1: its directory tree"]
    found.view, found.view_problem = None, "no storage answers"
    plan = plan_server(cluster_of(found), found, found.storages[0])
    assert "if 10.0.0.4 keeps them" in plan.losses[0]
    # The trackers remember who founded the tree.
    for founder, losses in ((A, 1), (B, 0)):
        cluster = cluster_of(found)
        status = cluster.trackers[0].status
        assert status is not None
        cluster.trackers[0].status = replace_groups(status, founder)
        assert len(plan_server(cluster, found, found.storages[0]).losses) == losses
        state = found.storages[0 if founder == A else 1].status.name
        assert f"kept by {founder}, which is {state}: no storage answers" in text_of(cluster)


def test_removed_already() -> None:
    found = volume(storage(A), storage(B, S.DELETED))
    plan = plan_server(cluster_of(found), found, found.storages[1])
    assert (plan.obstacles, plan.losses) == ([], [])
    assert plan.effects == ["10.0.0.5 is DELETED already"]


def test_names_that_do_not_exist() -> None:
    found = volume(storage(A))
    with pytest.raises(NotFound, match="there are: group1"):
        find_volume(cluster_of(found), "group9")
    with pytest.raises(NotFound, match=A):
        find_storage(found, B)
