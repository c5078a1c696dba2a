"""Trunk servers of groups whose storages are C servers: who gives out room in trunk files.

Source: protocol/wire.md section 3.4 (94), protocol/cluster.md section 8. Our storages make no trunk
files, so a tracker appoints nobody by itself; an administrator can. Functions of a group that
raise StatusError or, for 22, ProtocolError.
"""

from __future__ import annotations

import errno

from fdfsfuse.core.groups import Group, Server, is_trunk_server
from fdfsfuse.core.storage_ids import RW_WRITE
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker import ServerStatus


def appoint(group: Group, storage_id: str) -> bool:
    """94: make *storage_id* the trunk server, '' asks only. True when it has changed.

    Raises:
        StatusError: 2 there is none, or no such storage; 114 it is that already, 17 another one is
            ACTIVE; 64 it is not ACTIVE, 13 not writable.
    """
    current = group.servers.get(group.trunk_server)
    if not storage_id:
        if current is None:
            raise StatusError(errno.ENOENT, f"{group.name} has no trunk server")
        return False
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
    group.last_trunk_server, group.trunk_server = group.trunk_server, storage_id
    group.trunk_changes += 1
    return True


def check_trunk_server(group: Group, server: Server) -> None:
    """72, 73 and 74 come from the trunk server only. Raises ProtocolError."""
    if not is_trunk_server(group, server):
        raise ProtocolError(f"{server.storage_id} is not the trunk server of {group.name}")
