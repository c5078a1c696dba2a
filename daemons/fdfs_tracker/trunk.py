"""Trunk servers of C storages: 94 of administrators, 72 to 74 of the servers, and choosing them.

Source: protocol/wire.md section 3.4, protocol/cluster.md sections 8.1 and 8.2.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Awaitable, Callable

import trio

from fdfs_tracker.node import Node
from fdfs_tracker.peers import Network
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core import trunk_servers
from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.trunk_servers import check_trunk_server
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.tracker import ServerRequest, expect_empty

logger = logging.getLogger(__name__)

_FILE_ID = struct.Struct(">i")
_FREE_MB = struct.Struct(">q")


_GET_BINLOG_SIZE, _DELETE_BINLOG_MARKS = 31, 32
"""Commands to storages."""
_LOOK_S = 1.0


class TrunkServers:
    """Chooses the trunk servers of all groups while this tracker leads the others.

    Args:
        network: how storages are reached.
        save: puts the node's state on the disk; raises OSError.
    """

    def __init__(self, node: Node, network: Network, save: Callable[[], Awaitable[None]]) -> None:
        self._node = node
        self._network = network
        self._save = save
        self._choosing = trio.Lock()
        self._tried: dict[str, tuple[int, float]] = {}
        """By group: its changes when nobody could be chosen, and when to try again anyway."""
        self._checked: dict[str, tuple[str, int]] = {}
        """By group: id and start of the trunk server that is known to be one."""

    async def run(self) -> None:
        """Choose whenever that is due, until cancelled."""
        if not self._node.config.trunk.use_trunk_file:
            return
        while True:
            await trio.sleep(_LOOK_S)
            for group in list(self._node.cluster.groups.values()):
                if (
                    self._is_due(group) and not self._failed_just_now(group)
                ) or not await self._is_still_one(group):
                    await self._choose(group)

    async def _is_still_one(self, group: Group) -> bool:
        """False when the trunk server was started anew and is none any more: a storage of ours, or
        one with other settings, has taken its place."""
        server = group.servers.get(group.trunk_server)
        if server is None or server.connection is None or not self._node.leadership.leads:
            return True
        start = server.storage_id, server.started_s
        if self._checked.get(group.name) == start:
            return True
        try:
            await self._ask(server, _GET_BINLOG_SIZE)
        except StatusError as exc:
            if group.trunk_server != server.storage_id:
                return True  # another one was appointed meanwhile
            logger.warning("%s is no trunk server any more: %s", server.storage_id, exc)
            self._checked.pop(group.name, None)
            self._node.cluster.set_trunk_server(group.name, "")
            return False
        except PROBLEMS:
            return True  # asked again, or found silent
        self._checked[group.name] = start
        return True

    def _is_due(self, group: Group) -> bool:
        node = self._node
        return node.leadership.leads and trunk_servers.is_due(
            group,
            node.config,
            now=node.monotonic(),
            listening_since=node.started,
            now_s=node.now_s(),
        )

    def _failed_just_now(self, group: Group) -> bool:
        changes, not_before = self._tried.get(group.name, (-1, 0.0))
        return changes == group.changes and self._node.monotonic() < not_before

    async def _choose(self, group: Group) -> None:
        node = self._node
        interval_s = node.config.check_active_interval_s
        self._tried[group.name] = group.changes, node.monotonic() + interval_s
        async with self._choosing:
            sizes: dict[str, int] = {}
            for server in trunk_servers.candidates(group, node.config):
                try:
                    answer = await self._ask(server, _GET_BINLOG_SIZE)
                    sizes[server.storage_id] = _number(_FREE_MB, answer)
                except PROBLEMS as exc:
                    logger.debug("%s is no trunk server: %s", server.storage_id, exc)
            chosen = group.servers.get(trunk_servers.choose(sizes))
            if chosen is None:
                return
            if not self._is_due(group):
                return  # meanwhile the old one was heard of, or another one was appointed
            try:
                await self._appoint(group, chosen)
            except PROBLEMS as exc:
                logger.warning("%s does not become the trunk server: %s", chosen.storage_id, exc)
            except OSError as exc:
                logger.error("cannot save the state: %s", exc)

    async def appoint(self, body: bytes) -> bytes:
        """94: make a storage the trunk server of its group, or tell who it is.

        Raises:
            StatusError: 95 this tracker does not lead, there are no trunk files, or the storage
                refuses; others: `trunk_servers.check_appointable`.
        """
        request = ServerRequest.decode(body)
        node = self._node
        if not node.leadership.leads or not node.config.trunk.use_trunk_file:
            raise StatusError(errno.EOPNOTSUPP, "no leader, or no trunk files are in use")
        group = node.cluster.group(request.group)
        if not request.storage_id:
            if group.trunk_server not in group.servers:
                raise StatusError(errno.ENOENT, f"{group.name} has no trunk server")
            return group.trunk_server.encode("ascii") + b"\0"
        async with self._choosing:
            server = trunk_servers.check_appointable(group, request.storage_id)
            try:
                await self._ask(server, _GET_BINLOG_SIZE)
                await self._appoint(group, server)
            except PROBLEMS as exc:
                text = f"{server.storage_id} does not become the trunk server: {exc}"
                raise StatusError(errno.EOPNOTSUPP, text) from exc
        return group.trunk_server.encode("ascii") + b"\0"

    async def _appoint(self, group: Group, server: Server) -> None:
        """Raises OSError, or one of `PROBLEMS` when the storage refuses."""
        if server.storage_id != group.last_trunk_server:
            # What it knows of the free room, and of what others know, may be old.
            await self._ask(server, _DELETE_BINLOG_MARKS)
        if not self._node.leadership.leads:
            raise StatusError(errno.EOPNOTSUPP, "another tracker leads now")
        self._node.cluster.tick(self._node.now_s())
        self._node.cluster.set_trunk_server(group.name, server.storage_id)
        await self._save()

    async def _ask(self, server: Server, command: int) -> bytes:
        """Raises one of `PROBLEMS`."""
        connection = await self._network.connect(ServerAddress(server.ips, server.port))
        try:
            return await connection.request(command)
        finally:
            connection.close()


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
