"""What a tracker answers about trunk servers: 94 of administrators, 72 to 74 of the servers.

Source: protocol/wire.md section 3.4, protocol/cluster.md section 8.2.
"""

from __future__ import annotations

import errno
import struct

from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.trunk_servers import check_trunk_server
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker import ServerRequest, expect_empty

_FILE_ID = struct.Struct(">i")
_FREE_MB = struct.Struct(">q")


def set_trunk_server(cluster: Cluster, body: bytes, *, leads: bool) -> bytes:
    """94: appoint a trunk server, or ask who it is. *leads*: this tracker is the leader."""
    request = ServerRequest.decode(body)
    if not leads or not cluster.config.trunk.use_trunk_file:
        raise StatusError(errno.EOPNOTSUPP, "no leader, or no trunk files are in use")
    return cluster.appoint_trunk_server(request.group, request.storage_id).encode("ascii") + b"\0"


def fetch_file_id(joined: tuple[Group, Server], body: bytes) -> bytes:
    """72: the highest number of a trunk file."""
    expect_empty(body)
    check_trunk_server(*joined)
    return _FILE_ID.pack(joined[0].current_trunk_file_id)


def report_file_id(cluster: Cluster, joined: tuple[Group, Server], body: bytes) -> bytes:
    """73: a new trunk file."""
    check_trunk_server(*joined)
    cluster.note_trunk_file_id(joined[0], _number(_FILE_ID, body))
    return b""


def report_free_mb(joined: tuple[Group, Server], body: bytes) -> bytes:
    """74: how much room there is inside trunk files."""
    check_trunk_server(*joined)
    joined[0].trunk_free_mb = _number(_FREE_MB, body)
    return b""


def _number(layout: struct.Struct, body: bytes) -> int:
    if len(body) != layout.size:
        raise ProtocolError(f"a number has {layout.size} bytes, not {len(body)}")
    (value,) = layout.unpack(body)
    if value < 0:
        raise ProtocolError(f"{value} is not possible")
    return int(value)
