"""Who may join a group, and as what: the checks of JOIN (protocol/cluster.md section 2.6).

Functions of what a storage says and what is known; they raise StatusError with the reason.
"""

from __future__ import annotations

import errno

from fdfsfuse.core.config import IdType, TrackerConfig
from fdfsfuse.core.groups import Group
from fdfsfuse.core.storage_ids import StorageIdEntry
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.address import is_ip
from fdfsfuse.proto.cluster import Join
from fdfsfuse.proto.tracker import ServerStatus

_NEVER_JOINS_WITH = frozenset({3, 4, 99})


def addresses(entry: StorageIdEntry | None, peer_ip: str) -> tuple[str, ...]:
    """The addresses to give to clients: those of the table if they are all ips, else the peer's."""
    if entry is not None and all(is_ip(host) for host in entry.hosts):
        return entry.hosts
    return (peer_ip,)


def id_entry(config: TrackerConfig, request: Join, peer_ip: str) -> StorageIdEntry | None:
    """The joining storage's line in the table of storage ids; None when none is used."""
    table = config.storage_ids
    if table is None:
        return None
    if config.trust_storage_server_id and request.storage_id:
        entry = table.by_id(request.storage_id)
        if entry is not None and entry.group_name != request.group:
            entry = None
    else:
        entry = table.find(request.group, peer_ip, request.port)
    if entry is None:
        raise StatusError(
            errno.ENOENT,
            f"storage {request.storage_id or peer_ip}:{request.port} of {request.group} "
            "is not in the table of storage ids",
        )
    return entry


def first_status(request: Join) -> ServerStatus:
    """The status of a server that this tracker did not know."""
    if request.init_flag:
        return ServerStatus.INIT
    if request.status < 0 or request.status in _NEVER_JOINS_WITH:
        raise StatusError(errno.EFAULT, f"an unknown storage with status {request.status}")
    try:
        status = ServerStatus(request.status)
    except ValueError:
        raise StatusError(errno.EINVAL, f"status {request.status}") from None
    return ServerStatus.ONLINE if status is ServerStatus.ACTIVE else status


def check_fit(config: TrackerConfig, group: Group, storage_id: str, request: Join) -> None:
    """Port, path count and sub directory count must agree within a group."""
    others = [s for s in group.members() if s.storage_id != storage_id]
    several_ports = config.use_storage_id and config.id_type_in_filename is IdType.ID
    if not several_ports and any(s.port != request.port for s in others):
        raise StatusError(
            errno.EINVAL,
            f"port {request.port}, but the storages of {group.name} use {group.port}",
        )
    if request.store_path_count < group.store_path_count and any(
        s.store_path_count != request.store_path_count for s in others
    ):
        raise StatusError(
            errno.EINVAL,
            f"store_path_count {request.store_path_count}, but {group.name} has "
            f"{group.store_path_count}",
        )
    if any(s.subdir_count_per_path != request.subdir_count_per_path for s in others):
        raise StatusError(
            errno.EINVAL,
            f"subdir_count_per_path {request.subdir_count_per_path}, but {group.name} has "
            f"{group.subdir_count_per_path}",
        )
