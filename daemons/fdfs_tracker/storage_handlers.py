"""What a tracker answers to storages.

Source: protocol/cluster.md sections 2 and 3.
"""

from __future__ import annotations

import errno
import logging

from fdfs_tracker import trunk
from fdfs_tracker.node import Handler, Node, Session
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.address import MAX_ADDRESS_TEXT, is_ip
from fdfsfuse.proto.changelog import IpChange
from fdfsfuse.proto.cluster import (
    Brief,
    Changes,
    ClusterCommand,
    DiskReport,
    Join,
    Joined,
    ServerKey,
    StatusReport,
    SyncReport,
    SyncSource,
    decode_briefs,
)
from fdfsfuse.proto.header import GROUP_NAME_SIZE, pack_text
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.storage_identity import (
    MyIpRequest,
    ServerQuery,
    StorageIdsPart,
    StorageIdsRequest,
    decode_port,
)
from fdfsfuse.proto.tracker import ServerStatus, TrackerCommand, decode_status, expect_empty

logger = logging.getLogger(__name__)

_IDS_PART_MAX = 8192
"""Most bytes of text in one answer to 69, as in other answers that come in parts."""
_REFUSALS_KEPT = 1024


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


class StorageHandlers:
    """The commands of storages at one tracker."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ip_size = node.config.response_ip_addr_size
        self._parameters = parameters_of(node.config).encode()
        self._refusals: dict[str, str] = {}
        self.table: dict[int, Handler] = {
            ClusterCommand.GET_MY_IP: self._get_my_ip,
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
            ClusterCommand.IP_CHANGED: self._ip_changed,
            ClusterCommand.FETCH_TRUNK_FILE_ID: self._fetch_trunk_file_id,
            ClusterCommand.REPORT_TRUNK_FILE_ID: self._report_trunk_file_id,
            ClusterCommand.REPORT_TRUNK_FREE: self._report_trunk_free,
            TrackerCommand.GET_PARAMETERS: self._get_parameters,
            TrackerCommand.FETCH_STORAGE_IDS: self._fetch_storage_ids,
            TrackerCommand.GET_STORAGE_ID: self._get_storage_id,
            TrackerCommand.GET_STORAGE_STATUS: self._get_storage_status,
        }

    def _get_parameters(self, _session: Session, body: bytes) -> bytes:
        expect_empty(body)
        return self._parameters

    def _fetch_storage_ids(self, _session: Session, body: bytes) -> bytes:
        request = StorageIdsRequest.decode(body)
        table = self._node.config.storage_ids
        if table is None:
            if not request.allow_empty:
                raise StatusError(errno.EOPNOTSUPP, "no storage ids are in use")
            return StorageIdsPart(0, ()).encode()
        if not 0 <= request.start < len(table):
            raise ProtocolError(f"storage ids start at {request.start} of {len(table)}")
        lines: list[str] = []
        room = _IDS_PART_MAX
        for entry in table.entries[request.start :]:
            line = entry.line()
            room -= len(line) + 1
            if room < 0 and lines:
                break
            lines.append(line)
        return StorageIdsPart(len(table), tuple(lines)).encode()

    def _get_storage_id(self, _session: Session, body: bytes) -> bytes:
        query = ServerQuery.decode(body)
        storage_id = self._node.cluster.storage_id_at(query.group, query.ip, query.port)
        return storage_id.encode("ascii", "surrogateescape")[:MAX_ADDRESS_TEXT]

    def _get_storage_status(self, _session: Session, body: bytes) -> bytes:
        query = ServerQuery.decode(body)
        return self._node.cluster.server_at(query.group, query.ip, query.port).brief().encode()

    def _get_my_ip(self, session: Session, body: bytes) -> bytes:
        request = MyIpRequest.decode(body)
        table = self._node.config.storage_ids
        entry = table.find(request.group, session.peer_ip, request.port) if table else None
        ips = entry.hosts if entry is not None and len(entry.hosts) > 1 else (session.peer_ip,)
        return ",".join(ips).encode("ascii")

    def _get_group_name(self, session: Session, body: bytes) -> bytes:
        name = self._node.cluster.group_name_of(session.peer_ip, decode_port(body))
        return pack_text(name, GROUP_NAME_SIZE)

    def _join(self, session: Session, body: bytes) -> bytes:
        request = Join.decode(body)
        try:
            self._check_join(session, request)
            group, server = self._node.cluster.join(
                request, session.peer_ip, session, self._node.monotonic()
            )
        except StatusError as exc:
            self._note_refusal(session.peer_ip, str(exc.strerror))
            raise
        self._refusals.pop(session.peer_ip, None)
        if session.joined is not None and session.joined[1] is not server:
            self._node.cluster.disconnected(
                *session.joined, session, "it joined as another storage"
            )
        session.joined = (group, server)
        session.seen_leader = -1
        own = self._node.trackers.own
        if self._node.trackers.servers == (own,):
            # A single tracker leads; several of them first have to agree on one.
            self._node.leadership.adopt(own)
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
        self._node.trackers.learn(request.trackers, request.tracker_ip)

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
        source = self._node.cluster.choose_source(*session.joined)
        return b"" if source is None else source.encode()

    def _sync_notify(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        self._node.cluster.notify_source(*session.joined, SyncSource.decode(body))
        return b""

    def _sync_dest_query(self, session: Session, body: bytes) -> bytes:
        expect_empty(body)
        assert session.joined is not None
        source = session.joined[1].source
        return source.encode() if source.source_id else b""

    def _sync_source_request(self, _session: Session, body: bytes) -> bytes:
        key = ServerKey.decode(body)
        source = self._node.cluster.source_of(key.group, key.storage_id)
        return b"" if source is None else source.encode()

    def _changes(self, session: Session) -> bytes:
        """The answer to 83, 84 and 89: only the leader tells anything (section 3.2)."""
        assert session.joined is not None
        leadership = self._node.leadership
        leader = leadership.leader
        if not leadership.leads or leader is None:
            return Changes().encode()
        brief = None
        if session.seen_leader != leadership.changes:
            session.seen_leader = leadership.changes
            ip = leader.hosts[0]
            brief = Brief(ServerStatus.INIT, leader.port, ip[:15], ip)
        return self._node.cluster.changes_for(*session.joined, brief).encode()

    def _heartbeat(self, session: Session, body: bytes) -> bytes:
        statistics = Statistics.decode(body) if body else None
        assert session.joined is not None
        self._node.cluster.heartbeat(*session.joined, statistics, self._node.monotonic())
        return self._changes(session)

    def _disk_report(self, session: Session, body: bytes) -> bytes:
        report = DiskReport.decode(body)
        assert session.joined is not None
        self._node.cluster.disk_report(*session.joined, report, self._node.monotonic())
        return self._changes(session)

    def _sync_report(self, session: Session, body: bytes) -> bytes:
        report = SyncReport.decode(body)
        assert session.joined is not None
        self._node.cluster.sync_report(*session.joined, report, self._node.monotonic())
        return self._changes(session)

    def _replica_change(self, session: Session, body: bytes) -> bytes:
        briefs = decode_briefs(body)
        if not briefs:
            raise ProtocolError("an empty list of differences")
        assert session.joined is not None
        if not self._node.leadership.leads:  # a leader is the authority for these lists
            for brief in briefs:
                self._node.cluster.report_status(session.joined[0].name, brief)
        return b""

    def _ip_changed(self, session: Session, body: bytes) -> bytes:
        change = IpChange.decode(body)
        if change.new_ip != session.peer_ip:
            raise ProtocolError(f"{session.peer_ip} tells that its ip is {change.new_ip}")
        self._node.cluster.change_ip(change.group, change.old_ip, change.new_ip)
        return b""

    def _changelog(self, session: Session, body: bytes) -> bytes:
        if not body:
            if session.joined is None:
                raise ProtocolError("a changelog request without id needs JOIN")
            return self._node.cluster.read_changelog(session.joined[1])
        key = ServerKey.decode(body)
        return self._node.cluster.read_changelog(
            self._node.cluster.server(key.group, key.storage_id)[1]
        )

    def _report_status(self, _session: Session, body: bytes) -> bytes:
        report = StatusReport.decode(body)
        self._node.cluster.report_status(report.group, report.brief)
        return b""

    def _change_status(self, session: Session, body: bytes) -> bytes:
        if len(body) != 1:
            raise ProtocolError(f"a status has 1 byte, not {len(body)}")
        assert session.joined is not None
        self._node.cluster.change_status(*session.joined, decode_status(body[0]))
        return b""

    # --- trunk servers ------------------------------------------------------------------------

    def _fetch_trunk_file_id(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.fetch_file_id(session.joined, body)

    def _report_trunk_file_id(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.report_file_id(self._node.cluster, session.joined, body)

    def _report_trunk_free(self, session: Session, body: bytes) -> bytes:
        assert session.joined is not None
        return trunk.report_free_mb(session.joined, body)
