"""What a tracker answers to other trackers, and what it tells of the cluster.

Source: protocol/cluster.md section 6; our own commands: `fdfsfuse.proto.cluster_status`.
"""

from __future__ import annotations

import errno

from fdfs_tracker.node import Follower, Handler, Node, Session
from fdfs_tracker.state_files import system_files
from fdfsfuse.core import states
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.reasons import reason
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster import ClusterCommand
from fdfsfuse.proto.cluster_status import (
    ACCEPT_FOUNDER,
    CLUSTER_STATUS,
    FORGET_SERVER,
    VERSION,
    ClusterStatus,
    ForgetServer,
    FounderBallot,
    GroupState,
    ServerState,
    TrackerPeer,
)
from fdfsfuse.proto.tracker import expect_empty
from fdfsfuse.proto.tracker_peers import (
    FILE_PART_MAX,
    JoinLeader,
    LeaderPing,
    SystemFilePart,
    SystemFileRequest,
    TrunkServers,
    decode_leader,
)


class TrackerHandlers:
    """The commands of other trackers at one tracker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.table: dict[int, Handler] = {
            ClusterCommand.TRACKER_STATUS: self._tracker_status,
            ClusterCommand.SYSTEM_FILES_START: self._system_files_start,
            ClusterCommand.SYSTEM_FILES_END: self._system_files_end,
            ClusterCommand.GET_SYSTEM_FILE: self._get_system_file,
            ClusterCommand.NOTIFY_NEXT_LEADER: self._notify_next_leader,
            ClusterCommand.COMMIT_NEXT_LEADER: self._commit_next_leader,
            ClusterCommand.RESELECT_LEADER: self._reselect_leader,
            ClusterCommand.JOIN_LEADER: self._join_leader,
            ClusterCommand.PING_LEADER: self._ping_leader,
            CLUSTER_STATUS: self._cluster_status,
            ACCEPT_FOUNDER: self._accept_founder,
            FORGET_SERVER: self._forget_server,
        }

    def _tracker_status(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        self._need_groups()
        return self._node.status().encode()

    def _need_groups(self) -> None:
        if not self._node.cluster.groups:
            raise StatusError(errno.ENOENT, "no group is known")

    # --- system files (section 6.2) -----------------------------------------------------------

    def _system_files_start(self, session: Session, body: bytes) -> bytes:
        """61: the files of this moment are put aside, so nobody has to wait for the reader."""
        expect_empty(body)
        self._need_groups()
        session.files = system_files(self._node.cluster)
        return b""

    def _system_files_end(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        session.files = None
        return b""

    def _get_system_file(self, session: Session, body: bytes) -> bytes:
        request = SystemFileRequest.decode(body)
        files = session.files or system_files(self._node.cluster)
        data = files[request.index]
        if request.offset > len(data):
            raise ProtocolError(f"offset {request.offset} in a file of {len(data)} bytes")
        part = data[request.offset : request.offset + FILE_PART_MAX]
        return SystemFilePart(len(data), part).encode()

    # --- the leader (sections 6.3 to 6.5) -----------------------------------------------------

    def _notify_next_leader(self, _session: Session, body: bytes) -> bytes:
        self._node.leadership.notify(*decode_leader(body))
        return b""

    def _commit_next_leader(self, _session: Session, body: bytes) -> bytes:
        self._node.leadership.commit(*decode_leader(body))
        return b""

    def _reselect_leader(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        self._node.leadership.reselect()
        return b""

    def _join_leader(self, session: Session, body: bytes) -> bytes:
        request = JoinLeader.decode(body)
        self._node.leadership.require()
        if session.follower is not None:
            raise StatusError(errno.EEXIST, "this connection has joined already")
        follower = self._node.trackers.find(session.peer_ip, request.port)
        if follower is None:
            raise StatusError(errno.ENOENT, f"no tracker {session.peer_ip}:{request.port}")
        session.follower = follower
        version = "".join(c for c in request.version if c.isascii() and c.isprintable())
        self._node.followers[follower] = Follower(request.up_time, version)
        groups = self._node.cluster.groups.values()
        if not any(group.trunk_server for group in groups):
            # Else it is told with its first ping: it may have missed the change.
            session.seen_trunk = sum(group.trunk_changes for group in groups)
        return b""

    def _ping_leader(self, session: Session, body: bytes) -> bytes:
        ping = LeaderPing.decode(body)
        self._node.leadership.require()
        if session.follower is None:
            raise ProtocolError("a ping without 58")
        follower = self._node.followers[session.follower]
        follower.connections = ping.allocated, ping.current, ping.most
        follower.heard_at = int(self._node.now_s())
        groups = self._node.cluster.groups.values()
        changes = sum(group.trunk_changes for group in groups)
        if changes == session.seen_trunk:
            return b""
        session.seen_trunk = changes
        return TrunkServers(tuple((g.name, g.trunk_server) for g in groups)).encode()

    # --- our additions ------------------------------------------------------------------------

    def _accept_founder(self, _session: Session, body: bytes) -> bytes:
        return structs.encode(self._node.cluster.vote(structs.decode(FounderBallot, body)))

    def _forget_server(self, _session: Session, body: bytes) -> bytes:
        request = structs.decode(ForgetServer, body)
        self._node.cluster.forget_server(request.group, request.storage_id)
        return b""

    def _cluster_status(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        node = self._node
        leader = node.leadership.leader
        groups = sorted(node.cluster.groups.values(), key=lambda group: group.name)
        return structs.encode(
            ClusterStatus(
                version=VERSION,
                address=str(node.trackers.own or ""),
                leader=str(leader or ""),
                started=node.started_s,
                now=int(node.now_s()),
                trackers=[
                    node.contacts.get(server) or TrackerPeer(str(server))
                    for server in node.trackers.others
                ],
                groups=[self._group_state(group) for group in groups],
            )
        )

    def _group_state(self, group: Group) -> GroupState:
        acceptor = self._node.cluster.founders.get(group.name)
        founder = acceptor.value if acceptor is not None else None
        return GroupState(
            group.name,
            [_server_state(group, server) for server in group.sorted_servers()],
            founder.storage_id if founder is not None else "",
        )


def _server_state(group: Group, server: Server) -> ServerState:
    source = group.servers.get(server.source.source_id)
    why = reason(
        server.status,
        source_id=server.source.source_id,
        source_status=None if source is None else source.status,
        event=server.event,
    )
    if server.waits_for and server.status is states.INIT:
        why = server.waits_for
    return ServerState(
        server.storage_id,
        server.ip,
        server.port,
        int(server.status),
        server.since,
        why,
        server.source.source_id,
        {
            source_id: times[server.storage_id]
            for source_id, times in group.sync_times.items()
            if server.storage_id in times
        },
    )
