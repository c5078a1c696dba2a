"""What a tracker does with what storages tell it: joins, reports, status changes.

Source: protocol/cluster.md sections 2 to 4. Pure: the shell tells the time by `tick` before each
command, passes an object that stands for the connection, and afterwards looks at

- ``structure``: a counter; when it moved, the state must be on disk before the answer is sent;
- `take_notes`: lines for the operator's log.

Methods raise StatusError with the status that the command is answered with.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import replace

from fdfsfuse.core import joining, states
from fdfsfuse.core.config import StoreServer, TrackerConfig
from fdfsfuse.core.founding import Acceptor, check_ballot
from fdfsfuse.core.groups import Group, Server, storage_id_of_ip
from fdfsfuse.core.placement import Placement
from fdfsfuse.core.reasons import FILLED
from fdfsfuse.core.states import Event
from fdfsfuse.core.storage_ids import RW_BOTH
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.address import is_ip
from fdfsfuse.proto.changelog import ChangelogLine
from fdfsfuse.proto.cluster import (
    NO_SERVER,
    Brief,
    Changes,
    DiskReport,
    Join,
    SyncReport,
    SyncSource,
)
from fdfsfuse.proto.cluster_status import FounderBallot, FounderVote
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import MAX_GROUPS, MAX_SERVERS_PER_GROUP, ServerStatus

CHANGELOG_PART = 8192
"""Most bytes of the changelog in one answer."""
_STORAGE_ID = re.compile(r"[A-Za-z0-9._-]{1,15}\Z")


class Cluster:
    """All groups that this tracker knows."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self.groups: dict[str, Group] = {}
        self.placement = Placement(self.groups, config)
        self.changelog = b""
        """The whole changelog (section 3.7); the shell appends what is new to its file."""
        self.structure = 0
        self.now_s = 0
        """Unix time of the command that is being carried out."""
        self.founders: dict[str, Acceptor] = {}
        """This tracker's votes about who founds the tree of each group."""
        self._notes: list[str] = []

    def take_over(self, other: Cluster) -> None:
        """Know what *other* knows instead; for a tracker to which no storage is joined."""
        self.groups.clear()
        self.groups.update(other.groups)
        self.changelog = other.changelog
        self._changed(f"{len(self.groups)} groups were learned from another tracker")

    def tick(self, now_s: float) -> None:
        """It is *now_s* Unix seconds."""
        self.now_s = int(now_s)

    def take_notes(self) -> Sequence[str]:
        """Lines for the log since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _changed(self, note: str = "") -> None:
        self.structure += 1
        if note:
            self._notes.append(note)

    def _set_status(self, group: Group, server: Server, status: ServerStatus, why: str) -> None:
        old = server.status
        if status is old:
            return
        server.status = status
        server.since, server.event, server.waits_for = self.now_s, why, ""
        group.refresh()
        self._notes.append(
            f"storage {server.storage_id} of {group.name} is {status.name} (was {old.name}): {why}"
        )
        if {old, status} - {states.OFFLINE, states.ONLINE, states.ACTIVE}:
            # The others are not worth a write: they become OFFLINE at the next start anyway.
            self.structure += 1

    def _apply(self, group: Group, server: Server, event: Event, why: str) -> None:
        self._set_status(group, server, states.after(server.status, event), why)

    # --- looking things up --------------------------------------------------------------------

    def group(self, name: str) -> Group:
        """Status 2 when it is unknown."""
        group = self.groups.get(name)
        if group is None:
            raise StatusError(errno.ENOENT, f"no group {name!r}")
        return group

    def server(self, group_name: str, storage_id: str) -> tuple[Group, Server]:
        """Status 2 when it is unknown."""
        group = self.group(group_name)
        server = group.servers.get(storage_id)
        if server is None:
            raise StatusError(errno.ENOENT, f"no storage {storage_id!r} in {group_name}")
        return group, server

    def server_at(self, group_name: str, ip: str, port: int) -> Server:
        """The storage at an address (71). Status 2 when it is unknown."""
        group = self.group(group_name)
        server = group.find_ip(ip, port) or group.find_ip(ip)
        if server is None:
            raise StatusError(errno.ENOENT, f"no storage {ip}:{port} in {group_name}")
        return server

    def storage_id_at(self, group_name: str, ip: str, port: int) -> str:
        """The id of the storage at an address (70): without storage ids, the ip unchecked."""
        if self.config.storage_ids is None:
            return ip
        entry = self.config.storage_ids.find(group_name, ip, port)
        if entry is None:
            raise StatusError(errno.ENOENT, f"no storage id for {ip}:{port} in {group_name}")
        return entry.storage_id

    def group_name_of(self, ip: str, port: int) -> str:
        """The group of a storage at an address, by the table of storage ids (109)."""
        if self.config.storage_ids is None:
            raise StatusError(errno.EOPNOTSUPP, "no storage ids are in use")
        entry = self.config.storage_ids.find(None, ip, port)
        if entry is None:
            raise StatusError(errno.ENOENT, f"no storage id for {ip}:{port}")
        return entry.group_name

    # --- JOIN (section 2.6) -------------------------------------------------------------------

    def join(
        self, request: Join, peer_ip: str, connection: object, now: float
    ) -> tuple[Group, Server]:
        """Add or bring back a storage.

        Args:
            now: monotonic seconds.

        Raises:
            StatusError: the join is refused; the text says why.
        """
        entry = joining.id_entry(self.config, request, peer_ip)
        storage_id = storage_id_of_ip(peer_ip) if entry is None else entry.storage_id
        group = self.groups.get(request.group) or Group(request.group)
        server = group.servers.get(storage_id)
        first_status = joining.first_status(request) if server is None else None
        joining.check_fit(self.config, group, storage_id, request)
        new_group = request.group not in self.groups
        if (new_group and len(self.groups) >= MAX_GROUPS) or (
            server is None and len(group.servers) >= MAX_SERVERS_PER_GROUP
        ):
            raise StatusError(errno.ENOSPC, "too many groups or storages")
        ips = joining.addresses(entry, peer_ip)
        rw_mode = RW_BOTH if entry is None else entry.rw_mode
        if server is None:
            server = Server(storage_id, ips, request.port, rw_mode=rw_mode)
            server.status = first_status or ServerStatus.INIT
            server.since = self.now_s
            server.changelog_offset = len(self.changelog)
            group.servers[storage_id] = server
            self.groups[request.group] = group
            group.refresh()
            self._changed(f"new storage {storage_id} in {group.name}, {server.status.name}")
        else:
            lost = request.join_time != server.join_time and server.status in states.AVAILABLE | {
                states.RECOVERY
            }
            kept = server.replaced_data and server.status not in states.GONE
            server.replaced_data = request.init_flag and (lost or kept)
        self._update(group, server, request)
        server.ips, server.rw_mode = ips, rw_mode
        server.connection = connection
        server.heard_at = now
        server.seen_group_change = -1
        # A storage that has just joined knows of no trunk server.
        server.seen_trunk_change = -1 if group.trunk_server else group.trunk_changes
        if first_status is None:
            event = Event.JOINED_WITHOUT_DATA if request.init_flag else Event.JOINED
            self._apply(group, server, event, f"joined from {peer_ip}")
        if server.status is ServerStatus.INIT:
            server.changelog_offset = len(self.changelog)
            # That of an earlier initial copy: a new one will be chosen, with a later time.
            server.source = SyncSource()
        return group, server

    def _update(self, group: Group, server: Server, request: Join) -> None:
        """Take over what a join says about the storage, and what the group makes of it."""
        before = server.settings()
        server.port = request.port
        server.store_path_count = request.store_path_count
        server.subdir_count_per_path = request.subdir_count_per_path
        server.upload_priority = request.upload_priority
        server.join_time = request.join_time
        server.up_time = server.started_s = request.up_time
        server.version = "".join(c for c in request.version if c.isascii() and c.isprintable())
        if len(server.space) != server.store_path_count:
            server.space = ()
        if before != server.settings():
            self._changed()
        group.agree(server)

    # --- the initial copy (sections 2.7, 4.3) -------------------------------------------------

    def choose_source(self, group: Group, server: Server) -> SyncSource | None:
        """87: who copies the group's data to *server*; None when there is nothing to copy."""
        others = [s for s in group.members() if s is not server and s.status in states.AVAILABLE]
        if not others:
            self._apply(group, server, Event.NOTHING_TO_COPY, "the first storage of its group")
            self._changed()
            return None
        source = next((s for s in group.writable if s is not server), None)
        if source is None:
            server.waits_for = "waits for a storage of the group that is ACTIVE and writable"
            raise StatusError(errno.ENOENT, f"no storage of {group.name} can be a source")
        server.source = SyncSource(source.storage_id, self.now_s)
        self._apply(group, server, Event.SOURCE_CHOSEN, f"gets its data from {source.storage_id}")
        self._changed()
        return server.source

    def notify_source(self, group: Group, server: Server, source: SyncSource) -> None:
        """88: the storage says what was decided about its initial copy."""
        if not source.source_id:
            self._apply(group, server, Event.NOTIFIED_NO_SOURCE, "it needs no copy")
            return
        known = group.servers.get(source.source_id)
        if known is None or known.status in states.GONE:
            raise StatusError(errno.ENOENT, f"source {source.source_id!r} is unknown")
        if not server.source.source_id:
            server.source = source
            self._changed()
        self._apply(group, server, Event.NOTIFIED_SOURCE, f"its source is {source.source_id}")

    def source_of(self, group_name: str, storage_id: str) -> SyncSource | None:
        """86: the recorded source of a storage, None when it has none."""
        group, server = self.server(group_name, storage_id)
        if server.status is ServerStatus.INIT or server.status in states.GONE:
            raise StatusError(errno.ENOENT, f"storage {storage_id} is {server.status.name}")
        if not server.source.source_id:
            return None
        source = group.servers.get(server.source.source_id)
        if source is None or source.status not in states.AVAILABLE | {states.RECOVERY}:
            raise StatusError(errno.ENOENT, f"source {server.source.source_id} is not available")
        return server.source

    # --- reports (section 3) ------------------------------------------------------------------

    def heartbeat(
        self, group: Group, server: Server, statistics: Statistics | None, now: float
    ) -> None:
        """83: the storage is alive; None when its statistics have not changed."""
        server.heard_at = now
        server.last_heart_beat_time = self.now_s
        if statistics is not None:
            server.statistics = statistics
        server.statistics = replace(
            server.statistics,
            last_synced_timestamp=server.last_synced_timestamp,
            last_heart_beat_time=self.now_s,
        )
        self._apply(group, server, Event.REPORTED, "heartbeat")

    def disk_report(self, group: Group, server: Server, report: DiskReport, now: float) -> None:
        """84: space of each store path. Status 22 when their number is wrong."""
        if len(report.paths) not in (group.store_path_count, server.store_path_count):
            raise StatusError(errno.EINVAL, f"a disk report of {len(report.paths)} store paths")
        server.heard_at = now
        server.report_space(report.paths)
        self._apply(group, server, Event.REPORTED, "disk report")

    def sync_report(self, group: Group, server: Server, report: SyncReport, now: float) -> None:
        """89: until when *server* has the changes of each other member (section 3.8)."""
        server.heard_at = now
        times = []
        for source_id, timestamp in report.times:
            source = group.servers.get(source_id)
            if (
                timestamp > 0
                and source is not None
                and source is not server
                and source.status is ServerStatus.ACTIVE
            ):
                group.sync_times.setdefault(source_id, {})[server.storage_id] = timestamp
                times.append(timestamp)
        if not times:
            return
        if self.config.store_server is StoreServer.ROUND_ROBIN:
            server.last_synced_timestamp = min(times)
        else:
            server.last_synced_timestamp = max(server.last_synced_timestamp, *times)

    def changes_for(self, group: Group, server: Server, leader: Brief | None) -> Changes:
        """The answer to 83, 84 and 89: the members, if they changed since the last answer."""
        members = None
        if server.seen_group_change != group.changes:
            server.seen_group_change = group.changes
            members = group.list_for(server)
        trunk_server = None
        if server.seen_trunk_change != group.trunk_changes:
            server.seen_trunk_change = group.trunk_changes
            trunk = group.servers.get(group.trunk_server)
            trunk_server = NO_SERVER if trunk is None else trunk.brief()
        return Changes(leader=leader, trunk_server=trunk_server, group=members)

    def disconnected(self, group: Group, server: Server, connection: object, why: str) -> None:
        """A connection that had joined ended; nothing happens if the storage has a newer one."""
        if server.connection is not connection:
            return
        server.connection = None
        server.up_time = 0
        self._apply(group, server, Event.DISCONNECTED, why)

    def expire(self, now: float) -> None:
        """Mark storages OFFLINE that have been silent for longer than check_active_interval."""
        limit_s = self.config.check_active_interval_s
        for group in self.groups.values():
            for server in group.servers.values():
                if server.status is ServerStatus.ACTIVE and now - server.heard_at > limit_s:
                    self._apply(group, server, Event.SILENT, f"silent for more than {limit_s:g} s")

    def excuse(self, seconds: float) -> None:
        """Nothing could be heard for so long: no storage was silent then."""
        for group in self.groups.values():
            for server in group.servers.values():
                server.heard_at += seconds

    def report_status(self, group_name: str, brief: Brief) -> None:
        """76: somebody reports the status of a member.

        ONLINE and ACTIVE are not believed: only the storage's own connection makes it that. NONE is
        how a C storage remembers one that was removed; it comes by 85.
        """
        group = self.group(group_name)
        server = group.servers.get(brief.storage_id)
        if brief.status in (ServerStatus.ONLINE, ServerStatus.ACTIVE, ServerStatus.NONE):
            return
        if server is None:
            if brief.status in states.GONE or not is_ip(brief.ip):
                return
            if not _STORAGE_ID.match(brief.storage_id):
                return
            if len(group.servers) >= MAX_SERVERS_PER_GROUP:
                return
            server = Server(brief.storage_id, (brief.ip,), brief.port or group.port, brief.status)
            server.store_path_count = group.store_path_count
            server.subdir_count_per_path = group.subdir_count_per_path
            group.servers[brief.storage_id] = server
            group.refresh()
            self._changed(f"storage {brief.storage_id} of {group.name} was reported by another")
            return
        status = states.merge_report(server.status, brief.status)
        filled = server.status is ServerStatus.SYNCING and status is ServerStatus.OFFLINE
        self._set_status(group, server, status, FILLED if filled else "reported by a storage")

    def change_status(self, group: Group, server: Server, told: ServerStatus) -> None:
        """59: the storage brings the status that it has at the leader."""
        self._set_status(group, server, states.override(server.status, told), "told by the leader")

    def change_ip(self, group_name: str, old_ip: str, new_ip: str) -> None:
        """78: a storage goes on with another ip; status 2 or 17 when that cannot be."""
        if self.config.storage_ids is not None:
            raise StatusError(errno.EOPNOTSUPP, "storages are known by their ids")
        group = self.group(group_name)
        new_id = storage_id_of_ip(new_ip)
        known = group.servers.get(new_id)
        if known is not None and known.status not in states.GONE:
            raise StatusError(errno.EEXIST, f"{new_ip} is a storage of {group_name} already")
        server = group.find_ip(old_ip)
        if server is None or server.status in states.GONE:
            raise StatusError(errno.ENOENT, f"no storage {old_ip} in {group_name}")
        old_id = server.storage_id
        line = ChangelogLine(self.now_s, group_name, old_id, ServerStatus.IP_CHANGED, new_id)
        self.changelog += line.encode()
        group.change_id(server, new_id)
        server.ips = (new_ip,)
        if len(group.servers) < MAX_SERVERS_PER_GROUP:  # else the changelog alone tells it
            # A stub with the old ip stays, so that peers notice.
            stub = Server(old_id, (old_ip,), 0, ServerStatus.IP_CHANGED)
            stub.since, stub.event = self.now_s, f"it goes on as {new_ip}"
            group.servers[old_id] = stub
        group.refresh()
        self._changed(f"storage {old_id} of {group_name} goes on as {new_ip}")

    # --- founding (core/founding.py) ----------------------------------------------------------

    def others_have_data(self, group: Group, server: Server) -> bool:
        """Whether 87 of *server* is not answered with "nothing to copy" anyway."""
        return any(s is not server and s.status in states.AVAILABLE for s in group.members())

    def removed(self, group_name: str) -> list[str]:
        """Ids of the storages of a group that an administrator removed."""
        group = self.groups.get(group_name)
        servers = () if group is None else group.servers.values()
        return [s.storage_id for s in servers if s.status is ServerStatus.DELETED]

    def vote(self, request: FounderBallot) -> FounderVote:
        """This tracker's vote about the founder of a group; to be on disk before it is sent.

        Raises:
            ProtocolError: the request cannot be meant.
        """
        check_ballot(request)
        if request.group not in self.founders and len(self.founders) >= MAX_GROUPS:
            raise StatusError(errno.ENOSPC, "too many groups")
        acceptor = self.founders.setdefault(request.group, Acceptor())
        answer = acceptor.vote(request)
        self.structure += 1
        return answer

    # --- administration -----------------------------------------------------------------------

    def delete_storage(self, group_name: str, storage_id: str) -> None:
        """93. Status 16 while it is connected or rebuilding, 114 when it is deleted already."""
        group, server = self.server(group_name, storage_id)
        if server.status is ServerStatus.IP_CHANGED:
            raise StatusError(errno.ENOENT, f"storage {storage_id} was replaced")
        if server.status is ServerStatus.DELETED:
            raise StatusError(errno.EALREADY, f"storage {storage_id} is deleted")
        if states.after(server.status, Event.REMOVED) is not ServerStatus.DELETED:
            raise StatusError(errno.EBUSY, f"storage {storage_id} is {server.status.name}")
        line = ChangelogLine(self.now_s, group.name, storage_id, ServerStatus.DELETED)
        self.changelog += line.encode()
        if group.name in self.founders:
            self.founders[group.name].forget(storage_id)
        self._apply(group, server, Event.REMOVED, "deleted by an administrator")

    def forget_server(self, group_name: str, storage_id: str) -> None:
        """144: drop a server that is gone from the lists. Status 16 when it is not gone."""
        group, server = self.server(group_name, storage_id)
        if server.status not in states.GONE:
            raise StatusError(errno.EBUSY, f"storage {storage_id} is {server.status.name}")
        group.forget(storage_id)
        self._changed(f"storage {storage_id} of {group_name} is forgotten")

    def delete_group(self, group_name: str) -> None:
        """108. Status 16 while it has storages, deleted ones included."""
        group = self.group(group_name)
        if group.servers:
            raise StatusError(errno.EBUSY, f"{group_name} has {len(group.servers)} storages")
        del self.groups[group_name]
        self.founders.pop(group_name, None)
        self._changed(f"group {group_name} is deleted")

    def set_trunk_server(self, group_name: str, storage_id: str) -> None:
        """The leader has chosen the group's trunk server, or tells it (65); '' for nobody."""
        group = self.groups.get(group_name)
        if group is not None and group.trunk_server != storage_id:
            group.trunk_server = storage_id
            group.last_trunk_server = storage_id or group.last_trunk_server
            group.trunk_changes += 1
            self._changed(f"trunk server of {group_name}: {storage_id or 'none'}")

    def note_trunk_file_id(self, group: Group, number: int) -> None:
        """73: the trunk server has begun another trunk file."""
        if group.current_trunk_file_id < number:
            group.current_trunk_file_id = number
            self._changed()

    def read_changelog(self, server: Server) -> bytes:
        """77: whole lines that *server* has not been given yet, at most 8 KiB."""
        start = min(server.changelog_offset, len(self.changelog))
        part = self.changelog[start : start + CHANGELOG_PART]
        part = part[: part.rfind(b"\n") + 1]
        if part:
            server.changelog_offset = start + len(part)
            self._changed()
        return part
