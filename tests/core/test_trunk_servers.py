"""Choosing trunk servers: protocol/cluster.md section 8.1, protocol/wire.md section 3.4 (94)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fdfsfuse.core.config import StoreServer, TrackerConfig, TrunkConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.storage_ids import RW_READ
from fdfsfuse.core.trunk_servers import (
    candidates,
    check_appointable,
    check_trunk_server,
    choose,
    is_due,
)
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker import ServerStatus

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def group(*storage_ids: str) -> Group:
    servers = {ip: Server(ip, (ip,), 23000, ServerStatus.ACTIVE) for ip in storage_ids}
    made = Group("group1", servers=servers)
    made.refresh()
    return made


def due(made: Group, silent_s: float, *, started_ago_s: float = 1e6, **trunk: Any) -> bool:
    config = TrackerConfig(
        base_path="/t", check_active_interval_s=100, trunk=TrunkConfig(True, **trunk)
    )
    now_s = 1_700_000_000
    for server in made.servers.values():
        server.heard_at = 5000 - silent_s
        server.started_s = now_s - int(started_ago_s)
    return is_due(made, config, now=5000, listening_since=0, now_s=now_s)


def test_without_a_trunk_server_one_is_chosen() -> None:
    made = group(A)
    assert due(made, 0)
    made.trunk_server = "10.0.0.9"
    assert due(made, 0)
    made.trunk_server = A
    assert not due(made, 0)
    made.servers[A].status = ServerStatus.DELETED
    assert due(made, 0)
    made.refresh()
    assert not due(made, 0), "nobody is writable"


@pytest.mark.parametrize(
    ("started_ago_s", "trunk", "limit_s"),
    [
        (1001, {}, 200),
        (999, {}, 300),
        (999, {"init_check_occupying": True}, 500),
        (999, {"init_check_occupying": True, "init_reload_from_binlog": True}, 1000),
    ],
)
def test_a_silent_trunk_server_is_replaced(
    started_ago_s: float, trunk: dict[str, bool], limit_s: float
) -> None:
    made = group(A, B)
    made.trunk_server = A
    assert not due(made, limit_s, started_ago_s=started_ago_s, **trunk)
    assert due(made, limit_s + 1, started_ago_s=started_ago_s, **trunk)


def test_a_tracker_that_has_just_started_has_heard_nobody_yet() -> None:
    made = group(A, B)
    made.trunk_server = A
    config = TrackerConfig(base_path="/t", check_active_interval_s=100)
    assert not is_due(made, config, now=5000, listening_since=4900, now_s=1e9)
    assert is_due(made, config, now=5300, listening_since=4900, now_s=1e9)


def test_the_store_server_is_asked_first() -> None:
    made = group(A, B, C)
    made.servers[A].rw_mode = RW_READ
    made.servers[C].upload_priority = 1
    made.refresh()
    config = TrackerConfig(base_path="/t", store_server=StoreServer.FIRST_BY_IP)
    assert [s.storage_id for s in candidates(made, config)] == [B, C]
    config = TrackerConfig(base_path="/t", store_server=StoreServer.LOWEST_PRIORITY)
    assert [s.storage_id for s in candidates(made, config)] == [C, B]


def test_the_one_with_more_of_the_binlog_is_chosen() -> None:
    assert choose({}) == ""
    assert choose({A: 0, B: 0}) == A
    assert choose({A: 5, B: 9, C: 7}) == C
    assert choose({A: 5, B: 5, C: 4}) == A


# --- 94 -------------------------------------------------------------------------------------------


def appointed(made: Group, storage_id: str) -> int:
    """The status of appointing."""
    try:
        check_appointable(made, storage_id)
    except StatusError as exc:
        return exc.errno or 0
    return 0


def test_who_may_be_appointed() -> None:
    made = group(A, B, C)
    made.servers[B].status = ServerStatus.OFFLINE
    made.servers[C].rw_mode = RW_READ
    assert appointed(made, "10.0.0.9") == errno.ENOENT
    assert appointed(made, B) == errno.ENONET
    assert appointed(made, C) == errno.EACCES
    assert appointed(made, A) == 0
    made.trunk_server = A
    assert appointed(made, A) == errno.EALREADY
    assert appointed(made, "10.0.0.9") == errno.EEXIST
    made.servers[A].status = ServerStatus.OFFLINE
    made.servers[B].status = ServerStatus.ACTIVE
    assert appointed(made, B) == 0


def test_only_the_trunk_server_reports_trunk_files() -> None:
    made = group(A, B)
    with pytest.raises(ProtocolError):
        check_trunk_server(made, made.servers[A])
    made.trunk_server = A
    check_trunk_server(made, made.servers[A])
    with pytest.raises(ProtocolError):
        check_trunk_server(made, made.servers[B])
