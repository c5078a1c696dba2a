"""Which storage is handed out: a test for each rule of protocol/load-balancing.md."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StoreLookup, StorePathMode, StoreServer, TrackerConfig, TrunkConfig
from fdfsfuse.core.groups import Group, Server, network_type, storage_id_of_ip
from fdfsfuse.core.placement import (
    Placement,
    default_server,
    has_file,
    is_old,
    is_probably_synced,
    is_source,
    is_synced,
    wanted_file,
)
from fdfsfuse.core.storage_ids import RW_BOTH, RW_NONE, RW_READ, RW_WRITE
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import SyncSource
from fdfsfuse.proto.fileid import encode_base, encode_source, make_suffix
from fdfsfuse.proto.tracker import ServerStatus

T = 1_000_000
"""Timestamp of the files in these tests."""


def name_of(source: str, timestamp: int = T, *, appender: bool = False, slave: bool = False) -> str:
    base = encode_base(
        encode_source(source), timestamp, 5, 0, make_suffix("txt", 7), 1, appender=appender
    )
    return f"M00/00/00/{base}" if not slave else f"M00/00/00/{base[:-4]}_120x120.txt"


def make_server(storage_id: str, rw_mode: int = RW_BOTH, **fields: Any) -> Server:
    server = Server(storage_id, (storage_id,), 23000, ServerStatus.ACTIVE, rw_mode)
    server.report_space(fields.pop("space", ((1000, 500), (1000, 500))))
    for key, value in fields.items():
        setattr(server, key, value)
    return server


def make_group(name: str, servers: Sequence[Server]) -> Group:
    group = Group(name, servers={server.storage_id: server for server in servers})
    group.refresh()
    return group


def placement(*groups: Group, **settings: Any) -> Placement:
    settings.setdefault("reserved_storage_space", ReservedSpace(100))
    config = TrackerConfig(base_path="/t", **settings)
    return Placement({group.name: group for group in groups}, config)


def stores(place: Placement, count: int, group: str | None = None) -> list[tuple[str, str, int]]:
    found = []
    for _ in range(count):
        store = place.store(group)
        found.append((store.group.name, store.servers[0].storage_id, store.path_index))
    return found


def status_of(call: Any, *arguments: Any) -> int:
    with pytest.raises(StatusError) as caught:
        call(*arguments)
    assert caught.value.errno is not None
    return caught.value.errno


A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


# --- section 1 ------------------------------------------------------------------------------------


def test_only_active_storages_are_handed_out() -> None:
    for status in ServerStatus:
        server = make_server(A, status=status)
        group = make_group("group1", [server])
        assert bool(group.readable) is (status is ServerStatus.ACTIVE)
        assert bool(group.writable) is (status is ServerStatus.ACTIVE)


def test_lists_are_sorted_by_id_as_text() -> None:
    group = make_group("g", [make_server("10.0.0.9"), make_server("10.0.0.10")])
    assert [server.storage_id for server in group.writable] == ["10.0.0.10", "10.0.0.9"]


def test_default_server() -> None:
    servers = [make_server(A, upload_priority=5), make_server(B, upload_priority=1)]
    group = make_group("g", [*servers, make_server(C, upload_priority=1)])
    assert default_server(group, StoreServer.ROUND_ROBIN) is servers[0]
    assert default_server(group, StoreServer.FIRST_BY_IP) is servers[0]
    assert default_server(group, StoreServer.LOWEST_PRIORITY) is servers[1], "ties: first by id"
    assert default_server(make_group("g", [make_server(A, RW_READ)]), StoreServer(0)) is None


# --- section 2 ------------------------------------------------------------------------------------


def test_space_of_a_storage_is_the_sum_of_its_paths() -> None:
    server = make_server(A, space=((10, 4), (20, 5)))
    assert (server.total_mb, server.free_mb) == (30, 9)


def test_space_of_a_group_is_that_of_its_fullest_storage() -> None:
    full, empty = make_server(A, space=((10, 1),)), make_server(B, space=((99, 90),))
    group = make_group("g", [full, empty])
    assert group.least_space() == (1, 10)
    full.status = ServerStatus.OFFLINE
    group.refresh()
    assert group.least_space() == (90, 99), "an offline storage does not count"
    empty.status = ServerStatus.OFFLINE
    assert group.least_space() == (1, 10), "unless all are offline"


# --- section 3: groups ----------------------------------------------------------------------------


def two_groups(**settings: Any) -> Placement:
    return placement(
        make_group("group1", [make_server(A), make_server(B)]),
        make_group("group2", [make_server(C)]),
        **settings,
    )


def test_the_observed_round_robin_sequence() -> None:
    assert stores(two_groups(), 6) == [
        ("group1", A, 0),
        ("group2", C, 0),
        ("group1", B, 0),
        ("group2", C, 1),
        ("group1", A, 1),
        ("group2", C, 0),
    ]


def test_round_robin_skips_groups_without_writable_storage_or_space() -> None:
    place = placement(
        make_group("group1", [make_server(A, RW_READ)]),
        make_group("group2", [make_server(B, space=((1000, 100),))]),
        make_group("group3", [make_server(C)]),
    )
    assert [group for group, _, _ in stores(place, 3)] == ["group3"] * 3


def test_specified_group() -> None:
    place = two_groups(store_lookup=StoreLookup.SPECIFIED, store_group="group2")
    assert [group for group, _, _ in stores(place, 2)] == ["group2", "group2"]
    unknown = two_groups(store_lookup=StoreLookup.SPECIFIED, store_group="group9")
    assert status_of(unknown.store, None) == errno.ENOENT
    full = placement(
        make_group("group1", [make_server(A, space=((1000, 1),))]),
        store_lookup=StoreLookup.SPECIFIED,
        store_group="group1",
    )
    assert status_of(full.store, None) == errno.ENOSPC


def test_load_balance_takes_the_group_with_most_free_space() -> None:
    first = make_server(A, space=((1000, 300),))
    second = make_server(B, space=((1000, 400),))
    place = placement(
        make_group("group1", [first]),
        make_group("group2", [second]),
        make_group("group3", [make_server(C, RW_READ, space=((9000, 9000),))]),
        store_lookup=StoreLookup.LOAD_BALANCE,
    )
    assert [group for group, _, _ in stores(place, 2)] == ["group2", "group2"]
    first.report_space(((1000, 500),))
    assert stores(place, 1)[0][0] == "group1"


def test_load_balance_takes_the_next_group_when_the_best_is_full() -> None:
    place = placement(
        make_group("group1", [make_server(A, space=((1000, 400),))]),
        make_group("group2", [make_server(B, space=((100000, 500),))]),
        store_lookup=StoreLookup.LOAD_BALANCE,
        reserved_storage_space=ReservedSpace.parse("10%"),
    )
    assert stores(place, 1)[0][0] == "group1"


def trunk_groups(**settings: Any) -> Placement:
    """Three groups that are full but for what is free inside trunk files."""
    groups = [
        make_group(f"group{number}", [make_server(ip, space=((1000, free),))])
        for number, ip, free in ((1, A, 90), (2, B, 95), (3, C, 80))
    ]
    for group, trunk_free_mb in zip(groups, (30, 0, 40), strict=True):
        group.trunk_free_mb = trunk_free_mb
    return placement(*groups, trunk=TrunkConfig(use_trunk_file=True), **settings)


def test_in_trunk_mode_room_inside_trunk_files_counts() -> None:
    place = trunk_groups()
    assert [group for group, _, _ in stores(place, 3)] == ["group1", "group3", "group1"]
    assert status_of(place.store, "group2") == errno.ENOSPC


def test_load_balance_in_trunk_mode_takes_the_group_with_most_room_inside_trunk_files() -> None:
    assert stores(trunk_groups(store_lookup=StoreLookup.LOAD_BALANCE), 1)[0][0] == "group3"


def test_room_inside_trunk_files_does_not_count_in_other_modes() -> None:
    group = make_group("group1", [make_server(A, space=((1000, 90),))])
    group.trunk_free_mb = 1000
    assert status_of(placement(group).store, None) == errno.ENOSPC


def test_a_given_group() -> None:
    place = two_groups()
    assert stores(place, 3, "group1") == [("group1", A, 0), ("group1", B, 0), ("group1", A, 1)]
    assert status_of(place.store, "group3") == errno.ENOENT


def test_statuses_when_nothing_can_be_given() -> None:
    assert status_of(placement().store, None) == errno.ENOENT
    unwritable = placement(make_group("group1", [make_server(A, RW_NONE)]))
    assert status_of(unwritable.store, None) == errno.ENOENT
    assert status_of(unwritable.store, "group1") == errno.ENOENT
    full = placement(make_group("group1", [make_server(A, space=((1000, 100),))]))
    for call, group in ((full.store, None), (full.store, "group1"), (full.store_all, "group1")):
        assert status_of(call, group) == errno.ENOSPC


# --- section 3: storages --------------------------------------------------------------------------


def test_store_server_round_robin_has_a_counter_per_group() -> None:
    place = two_groups()
    assert [server for _, server, _ in stores(place, 3, "group1")] == [A, B, A]
    assert [server for _, server, _ in stores(place, 2, "group2")] == [C, C]
    assert stores(place, 1, "group1")[0][1] == B


def test_store_server_first_by_ip() -> None:
    place = two_groups(store_server=StoreServer.FIRST_BY_IP)
    assert [server for _, server, _ in stores(place, 2, "group1")] == [A, A]


def test_store_server_lowest_priority() -> None:
    group = make_group("g", [make_server(A), make_server(B, upload_priority=3)])
    place = placement(group, store_server=StoreServer.LOWEST_PRIORITY)
    assert [server for _, server, _ in stores(place, 2)] == [B, B]


def test_all_writable_storages_regardless_of_their_space() -> None:
    servers = [make_server(A), make_server(B, RW_READ), make_server(C, RW_WRITE)]
    servers[2].space = ((1000, 1), (1000, 1))
    place = placement(make_group("g", servers))
    store = place.store_all(None)
    assert [server.storage_id for server in store.servers] == [A, C]
    assert store.path_index == 0
    assert place.store_all("g").path_index == 1, "the counter of the first writable storage"
    assert stores(place, 1, "g") == [("g", A, 0)]


# --- section 3: store paths -----------------------------------------------------------------------


def test_store_path_round_robin_skips_full_paths() -> None:
    space = ((1000, 500), (1000, 10), (1000, 500))
    place = placement(make_group("g", [make_server(A, space=space)]))
    assert [path for _, _, path in stores(place, 4)] == [0, 2, 0, 2]


def test_store_path_load_balance() -> None:
    server = make_server(A, space=((1000, 400), (1000, 500), (1000, 450)))
    place = placement(make_group("g", [server]), store_path=StorePathMode.LOAD_BALANCE)
    assert [path for _, _, path in stores(place, 2)] == [1, 1]
    server.report_space(((1000, 600), (1000, 500), (1000, 450)))
    assert stores(place, 1)[0][2] == 0


def test_store_path_load_balance_takes_the_following_when_the_best_is_full() -> None:
    server = make_server(A, space=((1000, 300), (90000, 500)))
    place = placement(
        make_group("g", [server]),
        store_path=StorePathMode.LOAD_BALANCE,
        reserved_storage_space=ReservedSpace(0, 0.0085),
    )
    assert stores(place, 1)[0][2] == 0


def test_no_store_path_passes() -> None:
    place = placement(
        make_group("g", [make_server(A, space=((1000, 50), (1000, 50)))]),
        reserved_storage_space=ReservedSpace(99),
    )
    assert stores(place, 1)[0][2] == 0, "99 div 2 is 49, and 50 is more"
    full = placement(
        make_group("g", [make_server(A, space=((1000, 49), (1000, 51)))]),
        reserved_storage_space=ReservedSpace(99),
    )
    assert [path for _, _, path in stores(full, 2)] == [1, 1]
    uneven = placement(
        make_group("g", [make_server(A, space=((100, 9), (100000, 5000)))]),
        reserved_storage_space=ReservedSpace.parse("9%"),
    )
    assert status_of(uneven.store, None) == errno.ENOSPC


def test_a_storage_that_has_not_reported_its_space_gets_no_upload() -> None:
    group = make_group("g", [make_server(A), make_server(B, space=())])
    place = placement(group)
    assert stores(place, 1)[0][1] == A
    assert status_of(place.store, None) == errno.ENOSPC


# --- section 4 ------------------------------------------------------------------------------------


def config(**settings: Any) -> TrackerConfig:
    return TrackerConfig(base_path="/t", **settings)


def test_rule_a_the_source_has_the_file() -> None:
    group = make_group("g", [make_server(A), make_server(B)])
    file = wanted_file(group, name_of(A))
    assert is_source(group.servers[A], file)
    assert not is_source(group.servers[B], file)
    assert has_file(group.servers[A], file, T, config())
    assert not has_file(group.servers[B], file, T, config())


def test_rule_b_old_files_are_everywhere() -> None:
    file = wanted_file(make_group("g", []), name_of(A))
    assert not is_old(file, T + 86400, 86400)
    assert is_old(file, T + 86401, 86400)


def test_rule_c_later_changes_have_arrived() -> None:
    file = wanted_file(make_group("g", []), name_of(A))
    assert not is_synced(make_server(B, last_synced_timestamp=T), file)
    assert is_synced(make_server(B, last_synced_timestamp=T + 1), file)


def test_rule_d_synced_up_to_it_and_time_has_passed() -> None:
    file = wanted_file(make_group("g", []), name_of(A))
    server = make_server(B, last_synced_timestamp=T - 1)
    assert not is_probably_synced(server, file, T + 300, 300)
    assert is_probably_synced(server, file, T + 301, 300)
    server.last_synced_timestamp = T - 2
    assert not is_probably_synced(server, file, T + 301, 300)


def fetched(place: Placement, name: str, now_s: float, count: int = 1) -> list[str]:
    return [place.fetch("g", name, now_s).storage_id for _ in range(count)]


def test_a_storage_that_has_nothing_of_the_source_is_not_read_from() -> None:
    servers = [make_server(A), make_server(B), make_server(C)]
    group = make_group("g", servers)
    # B and C have newer changes of each other, only B has those of A.
    group.sync_times = {A: {B: T + 1}, B: {C: T + 50}, C: {B: T + 50}}
    for server in servers:
        server.last_synced_timestamp = T + 50
    file = wanted_file(group, name_of(A, T))
    assert [is_synced(server, file) for server in servers[1:]] == [True, False]
    place = placement(group)
    now_s = T + 10
    assert {place.fetch("g", name_of(A, T), now_s).storage_id for _ in range(6)} == {A, B}
    assert [s.storage_id for s in place.fetch_all("g", name_of(A, T), now_s)] == [A, B]
    # What is older than its initial copy it got with that.
    servers[2].source = SyncSource(B, T + 1)
    assert {place.fetch("g", name_of(A, T), now_s).storage_id for _ in range(6)} == {A, B, C}


def test_a_fresh_file_comes_from_its_source_only() -> None:
    place = placement(make_group("g", [make_server(A), make_server(B), make_server(C)]))
    assert fetched(place, name_of(B), T, 3) == [B, B, B]
    assert [s.storage_id for s in place.fetch_all("g", name_of(B), T)] == [B]


def test_an_old_file_comes_from_all_in_turn() -> None:
    place = placement(make_group("g", [make_server(A), make_server(B), make_server(C)]))
    assert fetched(place, name_of(B), T + 90000, 4) == [A, B, C, A]
    assert [s.storage_id for s in place.fetch_all("g", name_of(B), T + 90000)] == [A, B, C]


def test_source_first() -> None:
    group = make_group("g", [make_server(A), make_server(B)])
    place = placement(group, download_source_first=True)
    assert fetched(place, name_of(B), T + 90000, 3) == [B, B, B]


@pytest.mark.parametrize("kind", ["appender", "slave"])
def test_appenders_and_slaves_come_from_their_source_at_any_age(kind: str) -> None:
    name = name_of(B, appender=kind == "appender", slave=kind == "slave")
    servers = [make_server(A), make_server(B)]
    group = make_group("g", servers)
    place = placement(group)
    assert fetched(place, name, T + 90000, 2) == [B, B]
    assert [s.storage_id for s in place.fetch_all("g", name, T + 90000)] == [B]
    servers[1].status = ServerStatus.OFFLINE
    group.refresh()
    assert fetched(place, name, T + 90000) == [A], "else the default server"
    assert [s.storage_id for s in place.fetch_all("g", name, T)] == [A]


def test_the_default_server_serves_what_nobody_is_known_to_have() -> None:
    place = placement(make_group("g", [make_server(A), make_server(B)]))
    assert fetched(place, name_of("10.9.9.9"), T) == [A]


def test_nothing_readable() -> None:
    place = placement(make_group("g", [make_server(A, RW_WRITE)]))
    assert status_of(place.fetch, "g", name_of(A), T) == errno.ENOENT
    assert status_of(place.fetch_all, "g", name_of(A), T) == errno.ENOENT
    assert status_of(place.fetch, "nogroup", name_of(A), T) == errno.ENOENT


def test_a_name_that_cannot_be_decoded_is_an_old_normal_file() -> None:
    place = placement(make_group("g", [make_server(A), make_server(B)]))
    assert fetched(place, "x" * 30, T, 2) == [A, B]


def test_the_source_may_be_a_storage_id() -> None:
    server = make_server("100002", ips=("10.0.0.7",))
    group = make_group("g", [make_server("100001", ips=("10.0.0.6",)), server])
    assert wanted_file(group, name_of("100002")).source is server
    assert wanted_file(group, name_of("10.0.0.7")).source is server, "uploaded before ids were used"
    assert wanted_file(group, name_of("100009")).source is None


# --- section 6 ------------------------------------------------------------------------------------


def test_updates_go_to_the_source_else_to_the_next_writable() -> None:
    servers = [make_server(A), make_server(B)]
    group = make_group("g", servers)
    place = placement(group)
    assert [place.update("g", name_of(B)).storage_id for _ in range(2)] == [B, B]
    unknown = name_of("10.9.9.9")
    assert [place.update("g", unknown).storage_id for _ in range(3)] == [A, B, A]
    for server in servers:
        server.rw_mode = RW_READ
    group.refresh()
    assert status_of(place.update, "g", name_of(B)) == errno.ENOENT
    assert status_of(place.update, "nogroup", name_of(B)) == errno.ENOENT


# --- section 7 ------------------------------------------------------------------------------------


def test_read_write_separation() -> None:
    servers = [make_server("1"), make_server("2", RW_READ), make_server("3", RW_WRITE)]
    place = placement(make_group("g", servers))
    assert [server for _, server, _ in stores(place, 3)] == ["1", "3", "1"]
    to_3 = name_of("3")
    assert fetched(place, to_3, T) == ["1"], "default server while it is not synced"
    servers[1].last_synced_timestamp = T + 1
    assert fetched(place, to_3, T) == ["2"]
    assert place.update("g", to_3).storage_id == "3"
    appender = name_of("3", appender=True)
    assert fetched(place, appender, T) == ["1"]
    assert [s.storage_id for s in place.fetch_all("g", appender, T)] == ["1"]


def test_a_group_whose_only_storage_is_read_only() -> None:
    place = placement(make_group("g", [make_server("1", RW_READ)]))
    for call in (place.store, place.store_all):
        assert status_of(call, "g") == errno.ENOENT
        assert status_of(call, None) == errno.ENOENT
    assert status_of(place.update, "g", name_of("1")) == errno.ENOENT
    assert fetched(place, name_of("1"), T) == ["1"]
    assert status_of(place.fetch, "g", name_of("9", appender=True), T) == errno.ENOENT


# --- section 8 ------------------------------------------------------------------------------------


def test_the_address_suits_the_client() -> None:
    server = make_server("1", ips=("10.0.0.7", "192.0.2.7"))
    assert server.ip_for("10.99.0.1") == "10.0.0.7"
    assert server.ip_for("198.51.100.1") == "192.0.2.7"
    assert server.ip_for("192.168.0.1") == "10.0.0.7", "else the inner one"
    assert [network_type(ip) for ip in ("10.1.1.1", "172.31.0.1", "192.168.9.9", "8.8.8.8")] == [
        0,
        1,
        2,
        -1,
    ]


def test_the_id_of_an_ipv6_storage() -> None:
    assert storage_id_of_ip("2001:db8::1") == "8VBL_wAAAAA."
    assert storage_id_of_ip("10.0.0.1") == "10.0.0.1"
