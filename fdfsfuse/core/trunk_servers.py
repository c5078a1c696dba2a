"""Trunk servers of groups with C storages: who gives out room in trunk files.

Source: protocol/cluster.md section 8.1, protocol/wire.md section 3.4 (94). Our storages make no
trunk files and refuse to be asked about them (31), so none of them is ever chosen. Functions of a
group; `fdfs_tracker.trunk` asks the storages.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from fdfsfuse.core import states
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.groups import Group, Server, is_trunk_server
from fdfsfuse.core.placement import default_server
from fdfsfuse.core.storage_ids import RW_WRITE
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker import ServerStatus

_PATIENCE = 2
_PATIENCE_AT_START = 3
_PATIENCE_CHECKING = 5
"""Silence after which a trunk server is replaced, in units of check_active_interval: at any time,
within `_START` such intervals of its start, and then with trunk_init_check_occupying."""
_START = 10


def is_due(
    group: Group, config: TrackerConfig, *, now: float, listening_since: float, now_s: float
) -> bool:
    """Whether a trunk server is to be chosen: there is none, or it has been silent for too long.

    Args:
        now: monotonic seconds, as ``listening_since``, before which nobody could be heard.
        now_s: Unix time.
    """
    server = group.servers.get(group.trunk_server)
    if not group.writable:
        return False
    if server is None or server.status in states.GONE:
        return True
    interval_s = config.check_active_interval_s
    patience = _PATIENCE
    if now_s - server.started_s < _START * interval_s:
        checks = config.trunk.init_check_occupying
        patience = _PATIENCE_CHECKING if checks else _PATIENCE_AT_START
        if config.trunk.init_reload_from_binlog:
            patience *= 2
    return now - max(server.heard_at, listening_since) > patience * interval_s


def candidates(group: Group, config: TrackerConfig) -> list[Server]:
    """Who may be asked for the size of its trunk binlog: the store server first."""
    first = default_server(group, config.store_server)
    return [s for s in (first, *(s for s in group.writable if s is not first)) if s is not None]


def choose(sizes: Mapping[str, int]) -> str:
    """The id to appoint, '' for nobody. *sizes*: of trunk binlogs, in the order of `candidates`.

    One that has more of the binlog than the first of them knows better what is free.
    """
    ids = list(sizes)
    larger = [storage_id for storage_id in ids if sizes[storage_id] > sizes[ids[0]]]
    return (larger or ids[:1] or [""])[-1]


def check_appointable(group: Group, storage_id: str) -> Server:
    """94: the server *storage_id*, if it may be made the trunk server.

    Raises:
        StatusError: 2 there is none; 114 it is that already, 17 another one is ACTIVE; 64 it is
            not ACTIVE, 13 not writable.
    """
    current = group.servers.get(group.trunk_server)
    if current is not None and current.status is ServerStatus.ACTIVE:
        if storage_id == current.storage_id:
            raise StatusError(errno.EALREADY, f"{storage_id} is the trunk server")
        raise StatusError(errno.EEXIST, f"{current.storage_id} is the trunk server")
    server = group.servers.get(storage_id)
    if server is None:
        raise StatusError(errno.ENOENT, f"no storage {storage_id!r} in {group.name}")
    if server.status is not ServerStatus.ACTIVE:
        raise StatusError(errno.ENONET, f"storage {storage_id} is {server.status.name}")
    if not server.rw_mode & RW_WRITE:
        raise StatusError(errno.EACCES, f"storage {storage_id} is not writable")
    return server


def check_trunk_server(group: Group, server: Server) -> None:
    """72, 73 and 74 come from the trunk server only. Raises ProtocolError."""
    if not is_trunk_server(group, server):
        raise ProtocolError(f"{server.storage_id} is not the trunk server of {group.name}")
