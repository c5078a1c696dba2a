"""What a tracker answers to each command.

Source: protocol/wire.md section 3, protocol/cluster.md sections 2 and 3. A handler takes the
session and the body and returns the answer's body; it raises ProtocolError for status 22 and
StatusError for any other. Handlers do not await, so each command sees and changes one state.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fdfs_tracker import trunk
from fdfsfuse import __version__
from fdfsfuse.core import cluster_stats
from fdfsfuse.core.cluster import Cluster, is_ip
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.groups import Group, Server, storage_stat
from fdfsfuse.core.placement import Store
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.cluster import (
    MAX_ADDRESS_TEXT,
    Brief,
    ClusterCommand,
    DiskReport,
    Join,
    Joined,
    MyIpRequest,
    ServerKey,
    ServerQuery,
    StatusReport,
    StorageIdsPart,
    StorageIdsRequest,
    SyncReport,
    SyncSource,
    TrackerStatus,
    decode_briefs,
    decode_port,
    encode_address,
)
from fdfsfuse.proto.cluster_stats import (
    StorageFilter,
    TrackerFilter,
    TrackerStat,
    VolumeFilter,
    encode_tracker_stats,
)
from fdfsfuse.proto.header import GROUP_NAME_SIZE, pack_text
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import (
    FileRequest,
    FileTargets,
    GroupRequest,
    ServerRequest,
    ServerStatus,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
    decode_status,
    expect_empty,
)

logger = logging.getLogger(__name__)

NEEDS_JOIN = frozenset({59, 72, 73, 74, 79, 83, 84, 85, 87, 88, 89})
"""Commands that are answered with 13 on a connection without JOIN."""
_IDS_PER_PACKET = 2048
_REFUSALS_KEPT = 1024


@dataclass(slots=True, eq=False)
class Session:
    """One connection. ``joined`` is set by JOIN; ``leader`` is told once, then None."""

    peer_ip: str
    joined: tuple[Group, Server] | None = None
    leader: Brief | None = field(default=None)


def parameters_of(config: TrackerConfig) -> Parameters:
    """The answer to 75."""
    trunk = config.trunk
    return Parameters(
        use_storage_id=config.use_storage_id,
        id_type_in_filename=config.id_type_in_filename.value,
        trust_storage_server_id=config.trust_storage_server_id,
        response_ip_addr_size=config.response_ip_addr_size,
        storage_ip_changed_auto_adjust=config.storage_ip_changed_auto_adjust,
        storage_sync_file_max_delay=config.storage_sync_file_max_delay_s,
        store_path=int(config.store_path),
        reserved_storage_space=str(config.reserved_storage_space),
        use_trunk_file=trunk.use_trunk_file,
        slot_min_size=trunk.slot_min_size,
        slot_max_size=trunk.slot_max_size,
        trunk_alloc_alignment_size=trunk.alloc_alignment_size,
        trunk_file_size=trunk.file_size,
        trunk_create_file_advance=trunk.create_file_advance,
        trunk_create_file_time_base=_clock(trunk.create_file_time_base),
        trunk_create_file_interval=trunk.create_file_interval_s,
        trunk_create_file_space_threshold=trunk.create_file_space_threshold,
        trunk_init_check_occupying=trunk.init_check_occupying,
        trunk_init_reload_from_binlog=trunk.init_reload_from_binlog,
        trunk_free_space_merge=trunk.free_space_merge,
        delete_unused_trunk_files=trunk.delete_unused_files,
        trunk_compress_binlog_min_interval=trunk.compress_binlog_min_interval_s,
        trunk_compress_binlog_interval=trunk.compress_binlog_interval_s,
        trunk_compress_binlog_time_base=_clock(trunk.compress_binlog_time_base),
        trunk_binlog_max_backups=trunk.binlog_max_backups,
        store_slave_file_use_link=config.store_slave_file_use_link,
    )


def _clock(time_of_day: tuple[int, int]) -> str:
    return f"{time_of_day[0]:02d}:{time_of_day[1]:02d}"


class Handlers:
    """The commands of one tracker.

    Args:
        port: where this tracker listens.
        now_s: Unix time. monotonic: a clock that never jumps; both in seconds.
    """

    def __init__(
        self,
        config: TrackerConfig,
        cluster: Cluster,
        port: int,
        *,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._placement = cluster.placement
        self._port = port
        self._now_s = now_s
        self._monotonic = monotonic
        self._started = monotonic()
        self._up_time = int(now_s())
        self.connections: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
        """Connections of this tracker: allowed, current, most at once. Set by the shell."""
        self._ip_size = config.response_ip_addr_size
        self._parameters = parameters_of(config).encode()
        self._leader_ip = ""
        self._refusals: dict[str, str] = {}
        self.table: dict[int, Callable[[Session, bytes], bytes]] = {
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
            TrackerCommand.GET_PARAMETERS: self._get_parameters,
            TrackerCommand.FETCH_STORAGE_IDS: self._fetch_storage_ids,
            TrackerCommand.GET_STORAGE_ID: self._get_storage_id,
            TrackerCommand.GET_STORAGE_STATUS: self._get_storage_status,
            TrackerCommand.SET_TRUNK_SERVER: self._set_trunk_server,
            TrackerCommand.TRACKER_STATS: self._tracker_stats,
            TrackerCommand.STORAGE_STATS: self._storage_stats,
            TrackerCommand.VOLUME_STATS: self._volume_stats,
            ClusterCommand.GET_MY_IP: self._get_my_ip,
            ClusterCommand.TRACKER_STATUS: self._tracker_status,
            ClusterCommand.GET_GROUP_NAME: self._get_group_name,
            ClusterCommand.JOIN: self._join,
            ClusterCommand.SYNC_DEST_REQUEST: self._sync_dest_request,
            ClusterCommand.SYNC_NOTIFY: self._sync_notify,
            ClusterCommand.SYNC_DEST_QUERY: self._sync_dest_query,
            ClusterCommand.SYNC_SOURCE_REQUEST: self._sync_source_request,
            ClusterCommand.HEARTBEAT: self._heartbeat,
            ClusterCommand.DISK_REPORT: self._disk_report,
            ClusterCommand.SYNC_REPORT: self._sync_report,
            ClusterCommand.REPLICA_CHANGE: self._replica_change,
            ClusterCommand.CHANGELOG: self._changelog,
            ClusterCommand.REPORT_STATUS: self._report_status,
            ClusterCommand.CHANGE_STATUS: self._change_status,
            ClusterCommand.FETCH_TRUNK_FILE_ID: self._fetch_trunk_file_id,
            ClusterCommand.REPORT_TRUNK_FILE_ID: self._report_trunk_file_id,
            ClusterCommand.REPORT_TRUNK_FREE: self._report_trunk_free,
        }

    def answer(self, session: Session, command: int, body: bytes) -> bytes:
        """The body of the answer. Raises StatusError, ProtocolError (22)."""
        handler = self.table.get(command)
        if command in NEEDS_JOIN and session.joined is None:
            raise StatusError(errno.EACCES, f"command {command} needs JOIN")
        if handler is None:
            raise ProtocolError(f"unknown command {command}")
        return handler(session, body)

    def ended(self, session: Session) -> None:
        """The connection of *session* is gone."""
        if session.joined is not None:
            self._cluster.disconnected(*session.joined, session, "its connection ended")

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
        server = self._placement.fetch(request.group, request.name, self._now_s())
        return self._files(session, request.group, [server])

    def _query_fetch_all(self, session: Session, body: bytes) -> bytes:
        request = FileRequest.decode(body)
        servers = self._placement.fetch_all(request.group, request.name, self._now_s())
        return self._files(session, request.group, servers)

    def _query_update(self, session: Session, body: bytes) -> bytes:
        request = FileRequest.decode(body)
        server = self._placement.update(request.group, request.name)
        return self._files(session, request.group, [server])

    def _group_stat(self, group: Group) -> bytes:
        config = self._config
        stat = group.stat(config.reserved_storage_space, config.trunk.use_trunk_file)
        return stat.encode()

    def _list_one_group(self, _session: Session, body: bytes) -> bytes:
        return self._group_stat(self._cluster.group(GroupRequest.decode(body).group))

    def _list_all_groups(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        groups = self._cluster.groups
        return b"".join(self._group_stat(groups[name]) for name in sorted(groups))

    def _list_storages(self, _session: Session, body: bytes) -> bytes:
        request = ServerRequest.decode(body)
        if request.storage_id:
            group, server = self._cluster.server(request.group, request.storage_id)
            servers = [server]
        else:
            group = self._cluster.group(request.group)
            servers = group.sorted_servers()
        reserved = self._config.reserved_storage_space
        return b"".join(
            storage_stat(group, server, reserved).encode(self._ip_size) for server in servers
        )

    def _delete_storage(self, _session: Session, body: bytes) -> bytes:
        request = ServerRequest.decode(body)
        if not request.storage_id:
            raise ProtocolError("the storage id is missing")
        self._cluster.delete_storage(request.group, request.storage_id, int(self._now_s()))
        return b""

    def _delete_group(self, _session: Session, body: bytes) -> bytes:
        self._cluster.delete_group(GroupRequest.decode(body).group)
        return b""

    def _get_leader(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        if not self._leader_ip:
            raise StatusError(errno.ENOENT, "there is no leader yet")
        return encode_address(self._leader_ip, self._port).encode("ascii")

    def _get_parameters(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        return self._parameters

    def _set_trunk_server(self, _session: Session, body: bytes) -> bytes:
        return trunk.set_trunk_server(self._cluster, body, leads=bool(self._leader_ip))

    def _tracker_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = TrackerFilter.decode(body)
        if not self._leader_ip:
            raise StatusError(errno.EOPNOTSUPP, "this tracker is not the leader")
        myself = TrackerStat(
            encode_address(self._leader_ip, self._port),
            is_leader=True,
            is_active=True,
            connections=self.connections(),
            version=__version__,
            up_time=self._up_time,
            last_heart_beat_time=0,
        )
        return encode_tracker_stats(cluster_stats.tracker_stats([myself], wanted))

    def _storage_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = StorageFilter.decode(body)
        return cluster_stats.storage_stats(self._cluster.groups, self._config, wanted).encode()

    def _volume_stats(self, _session: Session, body: bytes) -> bytes:
        wanted = VolumeFilter.decode(body)
        return cluster_stats.volume_stats(self._cluster.groups, self._config, wanted).encode()

    def _fetch_storage_ids(self, _session: Session, body: bytes) -> bytes:
        request = StorageIdsRequest.decode(body)
        table = self._config.storage_ids
        if table is None:
            if not request.allow_empty:
                raise StatusError(errno.EOPNOTSUPP, "no storage ids are in use")
            return StorageIdsPart(0, ()).encode()
        if not 0 <= request.start < len(table):
            raise ProtocolError(f"storage ids start at {request.start} of {len(table)}")
        entries = table.entries[request.start : request.start + _IDS_PER_PACKET]
        return StorageIdsPart(len(table), tuple(entry.line() for entry in entries)).encode()

    def _get_storage_id(self, _session: Session, body: bytes) -> bytes:
        query = ServerQuery.decode(body)
        storage_id = self._cluster.storage_id_at(query.group, query.ip, query.port)
        return storage_id.encode("ascii", "surrogateescape")[:MAX_ADDRESS_TEXT]

    def _get_storage_status(self, _session: Session, body: bytes) -> bytes:
        query = ServerQuery.decode(body)
        return self._cluster.server_at(query.group, query.ip, query.port).brief().encode()

    # --- storages -----------------------------------------------------------------------------

    def _get_my_ip(self, session: Session, body: bytes) -> bytes:
        request = MyIpRequest.decode(body)
        table = self._config.storage_ids
        entry = table.find(request.group, session.peer_ip, request.port) if table else None
        ips = entry.hosts if entry is not None and len(entry.hosts) > 1 else (session.peer_ip,)
        return ",".join(ips).encode("ascii")

    def _get_group_name(self, session: Session, body: bytes) -> bytes:
        name = self._cluster.group_name_of(session.peer_ip, decode_port(body))
        return pack_text(name, GROUP_NAME_SIZE)

    def _tracker_status(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        if not self._cluster.groups:
            raise StatusError(errno.ENOENT, "no group is known")
        running_s = int(self._monotonic() - self._started) // 300 * 300
        return TrackerStatus(bool(self._leader_ip), running_s, 0).encode()

    def _join(self, session: Session, body: bytes) -> bytes:
        request = Join.decode(body)
        try:
            self._check_join(session, request)
            group, server = self._cluster.join(
                request, session.peer_ip, session, int(self._now_s()), self._monotonic()
            )
        except StatusError as exc:
            self._note_refusal(session.peer_ip, str(exc.strerror))
            raise
        self._refusals.pop(session.peer_ip, None)
        if session.joined is not None and session.joined[1] is not server:
            self._cluster.disconnected(*session.joined, session, "it joined as another storage")
        session.joined = (group, server)
        if len(request.trackers) == 1:
            # A single tracker leads; several of them would first have to agree on one.
            self._leader_ip = request.tracker_ip
            ip = request.tracker_ip
            session.leader = Brief(ServerStatus.INIT, self._port, ip[:15], ip)
        return Joined(server.status, server.source.source_id).encode()

    def _check_join(self, session: Session, request: Join) -> None:
        """What has to do with this tracker rather than with the groups."""
        if not is_ip(request.tracker_ip):
            raise ProtocolError("a join without the address that was used for the tracker")
        if ":" in session.peer_ip and self._ip_size == 16:
            raise StatusError(
                errno.EINVAL,
                "a storage with an IPv6 address needs response_ip_addr_size = IPv6 in tracker.conf",
            )
        own = {request.tracker_ip, *self._config.bind_addr}
        if not any(
            port == str(self._port) and own & {host.strip("[]") for host in hosts.split(",")}
            for hosts, _, port in (line.rpartition(":") for line in request.trackers)
        ):
            raise StatusError(
                errno.ENOENT,
                f"its list of trackers {', '.join(request.trackers)} does not name this one "
                f"({request.tracker_ip}, port {self._port})",
            )

    def _note_refusal(self, peer_ip: str, why: str) -> None:
        """Log a refused join once, not at each of the storage's retries."""
        if self._refusals.get(peer_ip) == why:
            return
        if len(self._refusals) >= _REFUSALS_KEPT:
            self._refusals.clear()
        self._refusals[peer_ip] = why
        shown = why.encode("ascii", "replace").decode("ascii")
        logger.warning("storage %s may not join: %s", peer_ip, shown)

    def _sync_dest_request(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        assert session.joined is not None
        source = self._cluster.choose_source(*session.joined, int(self._now_s()))
        return b"" if source is None else source.encode()

    def _sync_notify(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        self._cluster.notify_source(*session.joined, SyncSource.decode(body))
        return b""

    def _sync_dest_query(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        assert session.joined is not None
        source = session.joined[1].source
        return source.encode() if source.source_id else b""

    def _sync_source_request(self, _session: Session, body: bytes) -> bytes:
        key = ServerKey.decode(body)
        source = self._cluster.source_of(key.group, key.storage_id)
        return b"" if source is None else source.encode()

    def _changes(self, session: Session) -> bytes:
        assert session.joined is not None
        leader, session.leader = session.leader, None
        return self._cluster.changes_for(*session.joined, leader).encode()

    def _heartbeat(self, session: Session, body: bytes) -> bytes:
        statistics = Statistics.decode(body) if body else None
        assert session.joined is not None
        self._cluster.heartbeat(*session.joined, statistics, int(self._now_s()), self._monotonic())
        return self._changes(session)

    def _disk_report(self, session: Session, body: bytes) -> bytes:
        report = DiskReport.decode(body)
        assert session.joined is not None
        self._cluster.disk_report(*session.joined, report, self._monotonic())
        return self._changes(session)

    def _sync_report(self, session: Session, body: bytes) -> bytes:
        report = SyncReport.decode(body)
        assert session.joined is not None
        self._cluster.sync_report(*session.joined, report, self._monotonic())
        return self._changes(session)

    def _replica_change(self, _session: Session, body: bytes) -> bytes:
        if not decode_briefs(body):
            raise ProtocolError("an empty list of differences")
        return b""  # a leader ignores it (cluster.md section 3.4)

    def _changelog(self, session: Session, body: bytes) -> bytes:
        if not body:
            if session.joined is None:
                raise ProtocolError("a changelog request without id needs JOIN")
            return self._cluster.read_changelog(session.joined[1])
        key = ServerKey.decode(body)
        return self._cluster.read_changelog(self._cluster.server(key.group, key.storage_id)[1])

    def _report_status(self, _session: Session, body: bytes) -> bytes:
        report = StatusReport.decode(body)
        self._cluster.report_status(report.group, report.brief)
        return b""

    def _change_status(self, session: Session, body: bytes) -> bytes:
        if len(body) != 1:
            raise ProtocolError(f"a status has 1 byte, not {len(body)}")
        assert session.joined is not None
        self._cluster.change_status(*session.joined, decode_status(body[0]))
        return b""

    def _fetch_trunk_file_id(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.fetch_file_id(session.joined, body)

    def _report_trunk_file_id(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.report_file_id(self._cluster, session.joined, body)

    def _report_trunk_free(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.report_free_mb(session.joined, body)
