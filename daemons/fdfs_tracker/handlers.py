"""What a tracker answers to each command, and the commands of clients.

Source: protocol/wire.md section 3. A handler takes the session and the body and returns the
answer's body; it raises ProtocolError for status 22 and StatusError for any other. Handlers do not
await, so each command sees and changes one state. The commands of storages are in
`fdfs_tracker.storage_handlers`, those of other trackers in `fdfs_tracker.tracker_handlers`.
"""

from __future__ import annotations

import errno

from fdfs_tracker.node import Follower, Handler, Node, Session
from fdfs_tracker.storage_handlers import StorageHandlers
from fdfs_tracker.tracker_handlers import TrackerHandlers
from fdfsfuse.core import cluster_stats
from fdfsfuse.core.groups import Group, Server, storage_stat
from fdfsfuse.core.placement import Store
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.address import encode_address
from fdfsfuse.proto.cluster import VERSION
from fdfsfuse.proto.cluster_stats import (
    StorageFilter,
    TrackerFilter,
    TrackerStat,
    VolumeFilter,
    encode_tracker_stats,
)
from fdfsfuse.proto.tracker import (
    FileRequest,
    FileTargets,
    GroupRequest,
    ServerRequest,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
    expect_empty,
)

NEEDS_JOIN = frozenset({59, 72, 73, 74, 79, 83, 84, 85, 87, 88, 89})
"""Commands that are answered with 13 on a connection without JOIN."""


_FOLLOWER_SILENT_S = 3
"""A follower that pings counts as active for so long (wire.md section 3.3)."""


class Handlers:
    """The commands of one tracker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._placement = node.cluster.placement
        self._ip_size = node.config.response_ip_addr_size
        self.table: dict[int, Handler] = {
            TrackerCommand.ACTIVE_TEST: self._active_test,
            TrackerCommand.QUERY_STORE_ONE: self._query_store,
            TrackerCommand.QUERY_STORE_ONE_IN_GROUP: self._query_store_in_group,
            TrackerCommand.QUERY_STORE_ALL: self._query_store_all,
            TrackerCommand.QUERY_STORE_ALL_IN_GROUP: self._query_store_all_in_group,
            TrackerCommand.QUERY_FETCH_ONE: self._query_fetch,
            TrackerCommand.QUERY_FETCH_ALL: self._query_fetch_all,
            TrackerCommand.QUERY_UPDATE: self._query_update,
            TrackerCommand.LIST_ONE_GROUP: self._list_one_group,
            TrackerCommand.LIST_ALL_GROUPS: self._list_all_groups,
            TrackerCommand.LIST_STORAGES: self._list_storages,
            TrackerCommand.DELETE_STORAGE: self._delete_storage,
            TrackerCommand.DELETE_GROUP: self._delete_group,
            TrackerCommand.GET_LEADER: self._get_leader,
            TrackerCommand.TRACKER_STATS: self._tracker_stats,
            TrackerCommand.STORAGE_STATS: self._storage_stats,
            TrackerCommand.VOLUME_STATS: self._volume_stats,
            **StorageHandlers(node).table,
            **TrackerHandlers(node).table,
        }

    def answer(self, session: Session, command: int, body: bytes) -> bytes:
        """The body of the answer. Raises StatusError, ProtocolError (22)."""
        handler = self.table.get(command)
        if command in NEEDS_JOIN and session.joined is None:
            raise StatusError(errno.EACCES, f"command {command} needs JOIN")
        if handler is None:
            raise ProtocolError(f"unknown command {command}")
        self._node.cluster.tick(self._node.now_s())
        return handler(session, body)

    def ended(self, session: Session) -> None:
        """The connection of *session* is gone."""
        if session.joined is not None:
            self._node.cluster.tick(self._node.now_s())
            self._node.cluster.disconnected(*session.joined, session, "its connection ended")

    # --- clients ------------------------------------------------------------------------------

    def _active_test(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        return b""

    def _target(self, session: Session, store: Store) -> bytes:
        endpoint = store.servers[0].endpoint(session.peer_ip)
        return StoreTarget(store.group.name, endpoint, store.path_index).encode(self._ip_size)

    def _targets(self, session: Session, store: Store) -> bytes:
        endpoints = tuple(server.endpoint(session.peer_ip) for server in store.servers)
        return StoreTargets(store.group.name, endpoints, store.path_index).encode(self._ip_size)

    def _query_store(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        return self._target(session, self._placement.store(None))

    def _query_store_in_group(self, session: Session, body: bytes) -> bytes:
        return self._target(session, self._placement.store(GroupRequest.decode(body).group))

    def _query_store_all(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        return self._targets(session, self._placement.store_all(None))

    def _query_store_all_in_group(self, session: Session, body: bytes) -> bytes:
        return self._targets(session, self._placement.store_all(GroupRequest.decode(body).group))

    def _files(self, session: Session, group: str, servers: list[Server]) -> bytes:
        endpoints = tuple(server.endpoint(session.peer_ip) for server in servers)
        return FileTargets(group, endpoints).encode(self._ip_size)

    def _query_fetch(self, session: Session, body: bytes) -> bytes:
        request = FileRequest.decode(body)
        server = self._placement.fetch(request.group, request.name, self._node.now_s())
        return self._files(session, request.group, [server])

    def _query_fetch_all(self, session: Session, body: bytes) -> bytes:
        request = FileRequest.decode(body)
        servers = self._placement.fetch_all(request.group, request.name, self._node.now_s())
        return self._files(session, request.group, servers)

    def _query_update(self, session: Session, body: bytes) -> bytes:
        request = FileRequest.decode(body)
        server = self._placement.update(request.group, request.name)
        return self._files(session, request.group, [server])

    def _group_stat(self, group: Group) -> bytes:
        config = self._node.config
        stat = group.stat(config.reserved_storage_space, config.trunk.use_trunk_file)
        return stat.encode()

    def _list_one_group(self, _session: Session, body: bytes) -> bytes:
        return self._group_stat(self._node.cluster.group(GroupRequest.decode(body).group))

    def _list_all_groups(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        groups = self._node.cluster.groups
        return b"".join(self._group_stat(groups[name]) for name in sorted(groups))

    def _list_storages(self, _session: Session, body: bytes) -> bytes:
        request = ServerRequest.decode(body)
        if request.storage_id:
            group, server = self._node.cluster.server(request.group, request.storage_id)
            servers = [server]
        else:
            group = self._node.cluster.group(request.group)
            servers = group.sorted_servers()
        reserved = self._node.config.reserved_storage_space
        return b"".join(
            storage_stat(group, server, reserved).encode(self._ip_size) for server in servers
        )

    def _delete_storage(self, _session: Session, body: bytes) -> bytes:
        request = ServerRequest.decode(body)
        if not request.storage_id:
            raise ProtocolError("the storage id is missing")
        self._node.cluster.delete_storage(request.group, request.storage_id)
        return b""

    def _delete_group(self, _session: Session, body: bytes) -> bytes:
        self._node.cluster.delete_group(GroupRequest.decode(body).group)
        return b""

    def _get_leader(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        leader = self._node.leadership.leader
        if leader is None:
            raise StatusError(errno.ENOENT, "there is no leader yet")
        return encode_address(leader.hosts[0], leader.port).encode("ascii")

    def _tracker_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = TrackerFilter.decode(body)
        self._node.leadership.require()
        return encode_tracker_stats(cluster_stats.tracker_stats(self._trackers(), wanted))

    def _trackers(self) -> list[TrackerStat]:
        """The leader and the others; what those do not tell is 0."""
        node = self._node
        found = [
            TrackerStat(
                str(node.trackers.own),
                is_leader=True,
                is_active=True,
                connections=node.connections(),
                version=VERSION,
                up_time=node.started_s,
                last_heart_beat_time=0,
            )
        ]
        for server in node.trackers.others:
            follower = node.followers.get(server) or Follower(0, "")
            found.append(
                TrackerStat(
                    str(server),
                    is_leader=False,
                    is_active=node.now_s() - follower.heard_at <= _FOLLOWER_SILENT_S,
                    connections=follower.connections,
                    version=follower.version,
                    up_time=follower.up_time,
                    last_heart_beat_time=follower.heard_at,
                )
            )
        return found

    def _storage_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = StorageFilter.decode(body)
        return cluster_stats.storage_stats(
            self._node.cluster.groups, self._node.config, wanted
        ).encode()

    def _volume_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = VolumeFilter.decode(body)
        return cluster_stats.volume_stats(
            self._node.cluster.groups, self._node.config, wanted
        ).encode()
